"""The error tree of the controller.

    ControllerError            something could not be done; says why, and what to do next
    ├── NotFoundError          no such model, release, device, group, rollout or file
    ├── ConflictError          another change came first, or the thing exists already
    ├── RefusedError           understood, but a rule of the fleet forbids it
    ├── WorkspaceError         the fleet's folder is missing, damaged or in the way
    ├── UnreadableError        a file of the service's disk cannot be read or cut now
    └── BrokerError            the MQTT broker does not start, answer or accept

Each class carries a stable `code`: it is what an API problem, a `--json` error and a test name. What a device or a
signed document got wrong is a `protocol.errors.ProtocolError`, which the API reports by its own code.
"""


class ControllerError(Exception):
    """Something could not be done. `hint` names the next thing to do, or is empty."""

    code = "controller"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class NotFoundError(ControllerError):
    """There is no such thing."""

    code = "not_found"


class ConflictError(ControllerError):
    """Another change came first, or the thing exists already."""

    code = "conflict"


class RefusedError(ControllerError):
    """Understood, but a rule of the fleet forbids it."""

    code = "refused"


class WorkspaceError(ControllerError):
    """The fleet's folder is missing, damaged or in the way."""

    code = "workspace"


class UnreadableError(ControllerError):
    """A file of the service's disk cannot be read or cut now; it may be again."""

    code = "unreadable"


class BrokerError(ControllerError):
    """The MQTT broker does not start, answer or accept."""

    code = "broker"
