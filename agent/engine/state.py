"""What a device remembers about each of its models. Plain values: they are stored as JSON after every step."""

import msgspec

from protocol.assignment import AgentConfig
from protocol.identifiers import Digest
from protocol.lifecycle import DeploymentState
from protocol.manifest import FileRef
from protocol.messages import Reason, SlotReport

MAX_SETTLED = 256
"""How many finished deployments a device remembers, so as to start none of them again."""


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """How a deployment ended on this device."""

    deployment_id: str
    state: DeploymentState
    code: str = ""
    """That of the reason, if it ended badly."""

    @property
    def is_installed(self) -> bool:
        """Whether it left the release on the device."""
        return self.state in ("succeeded", "already_installed")


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """What the accepted assignment wants of one model."""

    deployment_id: str
    version: str
    is_removal: bool = False
    manifest: FileRef | None = None
    """The manifest that both trust domains name; None until the image repository knows the release."""
    is_open: bool = False
    """The director has not heard how the deployment ended."""
    refusal: Reason | None = None
    """Why the release must not be run at all: the two domains contradict each other."""


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """A release whose files belong on this device's disk."""

    version: str
    deployment_id: str
    manifest: FileRef
    module: FileRef
    vectors: FileRef

    @property
    def files(self) -> tuple[FileRef, ...]:
        """Everything of the release that has to stay on the disk."""
        return (self.manifest, self.module, self.vectors)


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment in progress."""

    goal: Goal
    state: DeploymentState
    since_ms: int
    """When it entered the state, on the engine's clock."""
    reported_ms: int = 0
    candidate: Installed | None = None
    measures: dict[str, int] = {}
    is_serving: bool = False
    """The release answers requests since this start of the agent: the soak runs."""
    setbacks: int = 0
    """How often the agent died while it worked on this release, or found its files damaged."""
    is_paused: bool = False
    """The agent stopped of its own accord: the next start is not a crash."""
    is_repair: bool = False
    """The release succeeded before and is not served any more: nothing is reported again."""
    is_outdated: bool = False
    """The policy changed while this repair was made: if it fails, it is tried again at once."""
    fault: Reason | None = None
    """Why it is being rolled back."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model: its committed slots, its deployment in progress, and what the assignment wants."""

    active: Installed | None = None
    previous: Installed | None = None
    current: Deployment | None = None
    goal: Goal | None = None
    failed_repairs: int = 0
    """How often in a row the release of the goal could not be brought back."""
    repair_at_ms: int = 0
    """When that is tried again, on the engine's clock."""
    trouble: Reason | None = None
    """Why a release that was committed is not served any more."""
    unserved: Installed | None = None
    """That release, while the assignment wants it. Its files stay: what it lacks may come back without a network."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the engine knows."""

    models: dict[str, Model] = {}
    settled: tuple[Ended, ...] = ()
    config: AgentConfig = AgentConfig()
    director_version: int = 0


def slots(state: State) -> tuple[SlotReport, ...]:
    """Return which releases the device holds."""
    return tuple(
        SlotReport(
            model=name,
            active=model.active.version if model.active else None,
            previous=model.previous.version if model.previous else None,
            candidate=model.current.goal.version if model.current and not model.current.goal.is_removal else None,
        )
        for name, model in sorted(state.models.items())
        if model.active or model.previous or model.current
    )


def troubles(state: State) -> dict[str, Reason]:
    """Return which committed releases are not served, by model, and why."""
    return {name: model.trouble for name, model in sorted(state.models.items()) if model.trouble}


def references(state: State) -> frozenset[Digest]:
    """Return the digests of all files that must stay on the disk."""
    keep: set[Digest] = set()
    for model in state.models.values():
        current = model.current
        for installed in (model.active, model.previous, model.unserved, current.candidate if current else None):
            if installed:
                keep.update(file.digest for file in installed.files)
        if current and current.goal.manifest:
            keep.add(current.goal.manifest.digest)
    return frozenset(keep)
