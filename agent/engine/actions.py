"""What the engine asks of the world. Receipts are stored in one transaction with the state that they report."""

import msgspec

from agent.engine.state import Installed
from protocol.lifecycle import DeploymentState
from protocol.manifest import FileRef
from protocol.messages import Progress, Reason


class EmitReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """Report one transition."""

    model: str
    deployment_id: str
    version: str
    state: DeploymentState
    progress: Progress | None = None
    reason: Reason | None = None
    measures: dict[str, int] = {}


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Serve a committed release from the disk; answer only when that fails, with LoadFailed."""

    model: str
    installed: Installed


class DeploymentAction(msgspec.Struct, frozen=True, kw_only=True):
    """Something to do for one deployment."""

    model: str
    deployment_id: str


class Download(DeploymentAction, frozen=True, kw_only=True):
    """Get every file of the release; answer Planned, Progressed and Downloaded."""

    version: str
    manifest: FileRef


class Verify(DeploymentAction, frozen=True, kw_only=True):
    """Check every file again; answer Verified."""

    candidate: Installed


class Compile(DeploymentAction, frozen=True, kw_only=True):
    """Compile and instantiate; answer Compiled."""

    candidate: Installed


class Test(DeploymentAction, frozen=True, kw_only=True):
    """Run the self-test; answer Tested."""

    candidate: Installed


class Activate(DeploymentAction, frozen=True, kw_only=True):
    """Swap the tested release in; answer Swapped."""

    candidate: Installed


class Reactivate(DeploymentAction, frozen=True, kw_only=True):
    """After a restart: load the provisional release from the disk and swap it in; answer Swapped."""

    candidate: Installed


class Commit(DeploymentAction, frozen=True, kw_only=True):
    """Tell the host that the release is no longer provisional; answer Committed, or Failed if it does not answer."""

    version: str


class RollBack(DeploymentAction, frozen=True, kw_only=True):
    """Serve what was served before; answer RolledBack. `has_previous` is False after a first installation."""

    has_previous: bool


class Abandon(DeploymentAction, frozen=True, kw_only=True):
    """Give up all work on a deployment."""


class Unload(msgspec.Struct, frozen=True, kw_only=True):
    """Stop serving a model."""

    model: str


class Collect(msgspec.Struct, frozen=True, kw_only=True):
    """Delete files that nothing refers to any more; not while a download may yet turn out to need them."""


class Announce(msgspec.Struct, frozen=True, kw_only=True):
    """The slots or the accepted assignment changed: say so in the birth message."""


Action = (
    EmitReceipt
    | Load
    | Download
    | Verify
    | Compile
    | Test
    | Activate
    | Reactivate
    | Commit
    | RollBack
    | Abandon
    | Unload
    | Collect
    | Announce
)
