"""What can happen to a device. Events about a deployment name it: those of one that ended are ignored."""

import msgspec

from agent.engine.state import Goal, Installed
from protocol.assignment import AgentConfig
from protocol.messages import Progress, Reason


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """The agent runs again: what is committed is served, without storing anything, since the disk may be full."""


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """Follows Started: what was in work at the stop, the crash or the loss of power is taken up."""


class Stopping(msgspec.Struct, frozen=True, kw_only=True):
    """The agent is about to end of its own accord."""


class Squeezed(msgspec.Struct, frozen=True, kw_only=True):
    """A download finds no room on the disk: the previous releases have to make way."""


class PolicyRead(msgspec.Struct, frozen=True, kw_only=True):
    """The device's policy was read again: what was not allowed may be now."""


class Ticked(msgspec.Struct, frozen=True, kw_only=True):
    """Time has passed."""


class AssignmentAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """The director wants this; the same may be said again, when more is known about it."""

    version: int
    goals: dict[str, Goal]
    canceled: tuple[str, ...] = ()
    config: AgentConfig = AgentConfig()


class DeploymentEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something about one deployment."""

    model: str
    deployment_id: str


class Planned(DeploymentEvent, frozen=True, kw_only=True):
    """The manifest is here, fits the device, and says which files are needed."""

    candidate: Installed


class Progressed(DeploymentEvent, frozen=True, kw_only=True):
    """The download went on, or says what it waits for."""

    progress: Progress
    waiting: Reason | None = None


class Downloaded(DeploymentEvent, frozen=True, kw_only=True):
    """All files of the release are on the disk."""


class Verified(DeploymentEvent, frozen=True, kw_only=True):
    """Every file is what the signed metadata names."""

    elapsed_ms: int


class Compiled(DeploymentEvent, frozen=True, kw_only=True):
    """The module is compiled for this device and instantiated under its caps."""

    elapsed_ms: int


class Tested(DeploymentEvent, frozen=True, kw_only=True):
    """The self-test passed on this device's own CPU."""

    elapsed_ms: int


class Swapped(DeploymentEvent, frozen=True, kw_only=True):
    """Requests are answered by the new release."""

    swap_us: int


class Committed(DeploymentEvent, frozen=True, kw_only=True):
    """The host no longer holds the new release for provisional."""


class RolledBack(DeploymentEvent, frozen=True, kw_only=True):
    """Requests are answered by the release before, or, with an error, by none."""

    error: Reason | None = None


class Failed(DeploymentEvent, frozen=True, kw_only=True):
    """The work on a deployment ended badly; `is_rejection` when no other attempt could end better."""

    reason: Reason
    is_rejection: bool = False


class Spoiled(DeploymentEvent, frozen=True, kw_only=True):
    """A file of the release is not what it was when it was downloaded; it has been deleted."""

    reason: Reason


class Faulted(msgspec.Struct, frozen=True, kw_only=True):
    """A release failed while it answered a request."""

    model: str
    version: str
    reason: Reason


class LoadFailed(msgspec.Struct, frozen=True, kw_only=True):
    """A committed release is not served: its files are damaged, or the device's policy does not allow it any more."""

    model: str
    version: str
    reason: Reason


Event = (
    Started
    | Resumed
    | Stopping
    | Squeezed
    | PolicyRead
    | Ticked
    | AssignmentAccepted
    | Planned
    | Progressed
    | Downloaded
    | Verified
    | Compiled
    | Tested
    | Swapped
    | Committed
    | RolledBack
    | Failed
    | Spoiled
    | Faulted
    | LoadFailed
)
