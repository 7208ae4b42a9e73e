"""The error tree of the agent, besides that of the runtime (`agent.runtime.errors`).

    AgentError             the agent cannot do what was asked
    ├── IdentityError      the device is not enrolled, or its identity is damaged
    ├── EnrollmentError    the controller would not or could not enrol this device
    ├── PolicyError        the device's policy file is not valid
    ├── StateError         the agent's database cannot be used
    ├── RefusedError       the two trust domains contradict each other
    ├── CorruptFileError   a file on the disk is not what its name says
    ├── DiskQuotaError     the device's policy allows no more disk
    ├── DiskFullError      the disk has no more room
    ├── LinkError          the broker cannot be spoken to
    ├── InputFileError     what `fleet-agent infer` is given are no inputs (`agent.inputs`)
    ├── CaptureError       the file is not a capture (`agent.captures`)
    ├── HostError          no resident release to do this with (`agent.host`)
    ├── ListenerError      the local API cannot be offered there (`agent.serving.listeners`)
    ├── OverloadedError    too many callers wait for a model (`agent.serving.gate`)
    ├── RequestTimeoutError
    │                      a caller's turn did not come in time (`agent.serving.gate`)
    ├── SequenceError      the call does not go on from where the model is (`agent.serving.sequences`)
    ├── NoSuchPathError    the local API has nothing at that path (`agent.serving.routes`)
    └── ClientError        the agent did not answer a local client as asked (`agent.client`)

Each class carries a stable `code`.
"""


class AgentError(Exception):
    """The agent cannot do what was asked."""

    code = "agent"


class IdentityError(AgentError):
    """The device is not enrolled, or its identity is damaged."""

    code = "identity"


class EnrollmentError(AgentError):
    """The controller would not or could not enrol this device."""

    code = "enrollment"


class PolicyError(AgentError):
    """The device's policy file is not valid."""

    code = "policy"


class StateError(AgentError):
    """The agent's database cannot be used."""

    code = "state"


class RefusedError(AgentError):
    """The two trust domains contradict each other."""

    code = "domains_disagree"


class CorruptFileError(AgentError):
    """A file on the disk is not what its name says."""

    code = "file_corrupt"


class DiskQuotaError(AgentError):
    """The device's policy allows no more disk."""

    code = "disk_quota"


class DiskFullError(AgentError):
    """The disk has no more room."""

    code = "disk_full"


class LinkError(AgentError):
    """The broker cannot be spoken to."""

    code = "link"
