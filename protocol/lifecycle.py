"""The lives of rollouts, waves, deployments: one table each, shared by both sides.

A table maps each state to the states that may follow; a state that maps to nothing is final.
"""

from collections.abc import Mapping
from typing import Literal, TypeVar

from protocol.errors import TransitionError

RolloutState = Literal[
    "draft",
    "waiting_for_approval",
    "approval_denied",
    "scheduled",
    "running",
    "paused",
    "finished",
    "stopping",
    "stopped",
    "rolling_back",
    "rolled_back",
]
WaveState = Literal["scheduled", "running", "soaking", "finished", "error"]
DeploymentState = Literal[
    "queued",
    "retrieved",
    "waiting_for_confirmation",
    "downloading",
    "downloaded",
    "verifying",
    "installing",
    "testing",
    "shadowing",
    "activated",
    "committing",
    "succeeded",
    "failed",
    "rejected",
    "timed_out",
    "canceled",
    "removed",
    "superseded",
    "already_installed",
    "rolled_back",
    "rollback_failed",
]
S = TypeVar("S", bound=str)
Table = Mapping[S, tuple[S, ...]]

ROLLOUT: Table[RolloutState] = {
    "draft": ("waiting_for_approval", "scheduled", "running", "stopped"),
    "waiting_for_approval": ("approval_denied", "scheduled", "running", "stopped"),
    "approval_denied": (),
    "scheduled": ("running", "stopping", "stopped"),
    "running": ("paused", "finished", "stopping", "rolling_back"),
    "paused": ("running", "stopping", "rolling_back"),
    "finished": ("rolling_back",),
    "stopping": ("stopped",),
    "stopped": ("rolling_back",),
    "rolling_back": ("rolled_back",),
    "rolled_back": (),
}

WAVE: Table[WaveState] = {
    "scheduled": ("running", "error"),
    "running": ("soaking", "finished", "error"),
    "soaking": ("finished", "error"),
    "finished": (),
    "error": (),
}

# A device that lost power goes back to `downloading`: it looks for the files again, and those that are
# already on its disk and verify are not fetched a second time.
_LEAVE: tuple[DeploymentState, ...] = ("failed", "rejected", "timed_out", "canceled", "superseded")

DEPLOYMENT: Table[DeploymentState] = {
    "queued": ("retrieved", "rejected", "timed_out", "canceled", "superseded"),
    "retrieved": ("waiting_for_confirmation", "downloading", "already_installed", "removed", *_LEAVE),
    "waiting_for_confirmation": ("downloading", *_LEAVE),
    "downloading": ("downloading", "downloaded", *_LEAVE),
    "downloaded": ("downloading", "verifying", *_LEAVE),
    "verifying": ("downloading", "installing", *_LEAVE),
    "installing": ("downloading", "testing", *_LEAVE),
    "testing": ("downloading", "shadowing", "activated", *_LEAVE),
    "shadowing": ("downloading", "activated", *_LEAVE),
    "activated": ("committing", "rolled_back", "rollback_failed"),
    "committing": ("succeeded", "rolled_back", "rollback_failed"),
    "succeeded": (),
    "failed": (),
    "rejected": (),
    "timed_out": (),
    "canceled": (),
    "removed": (),
    "superseded": (),
    "already_installed": (),
    "rolled_back": (),
    "rollback_failed": (),
}

GOOD_ENDS: frozenset[DeploymentState] = frozenset({"succeeded", "already_installed", "removed"})
BAD_ENDS: frozenset[DeploymentState] = frozenset({"failed", "rejected", "timed_out", "rolled_back", "rollback_failed"})
NEUTRAL_ENDS: frozenset[DeploymentState] = frozenset({"canceled", "superseded"})


def is_final(table: Table[S], state: S) -> bool:
    """Return whether nothing may follow `state`."""
    return not table[state]


def allows(table: Table[S], old: S, new: S) -> bool:
    """Return whether `new` may directly follow `old`."""
    return new in table[old]


def require(table: Table[S], old: S, new: S) -> None:
    """Raise TransitionError unless `new` may directly follow `old`."""
    if not allows(table, old, new):
        raise TransitionError(f"no transition from {old!r} to {new!r}")


def reachable(table: Table[S], start: S) -> frozenset[S]:
    """Return every state that can come after `start`."""
    seen: set[S] = set()
    todo = [start]
    while todo:
        for state in table[todo.pop()]:
            if state not in seen:
                seen.add(state)
                todo.append(state)
    return frozenset(seen)
