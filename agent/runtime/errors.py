"""The error tree of the device runtime.

    ModelError                  a module or a call of it cannot be accepted; the daemon itself is fine
    ├── CompileError            it is not a module that the engine accepts
    ├── AbiError                it is a module, but not a model: exports, pointers or sizes are wrong
    ├── UndeclaredImportError   it asks for functions of a host; a model gets none
    ├── MemoryCapError          it needs more memory, or larger tables, than it may have
    ├── FaultError              it went wrong while it ran, at some place
    │   ├── TrapError           it hit a trap: division by zero, out of bounds, unreachable, …
    │   ├── StackOverflowError  it used up its stack
    │   ├── DeadlineError       it ran longer than it may
    │   └── ProcessDiedError    the model's process ended by itself, or is not to be believed
    ├── StatusError             it said itself that it failed
    ├── SelfTestError           its outputs are not those that the release promises
    ├── InputError              the caller's tensors do not fit the model
    ├── ModelClosedError        the model was closed before the call began
    ├── ProcessGoneError        its process had ended before the call began
    ├── ProcessStartError       the machine does not let us start a process for the model
    ├── StackLimitError         the system gives a program less stack than the model may use
    └── DeviceMemoryError       the device has too little free memory for it now

Each class carries a stable `code`: it is what a receipt, a telemetry counter and a test name.
"""

MAX_NAME_CHARS = 80


class ModelError(Exception):
    """A module, or a call of it, cannot be accepted."""

    code = "model"


class CompileError(ModelError):
    """The bytes are not a module that the engine accepts."""

    code = "compile_failed"


class AbiError(ModelError):
    """The module does not keep the tensor ABI (`protocol.tensors`)."""

    code = "abi"


class UndeclaredImportError(ModelError):
    """The module imports something, and a model is given nothing."""

    code = "undeclared_import"


class MemoryCapError(ModelError):
    """The module needs more memory, or larger tables, than it may have."""

    code = "memory_cap"


class FaultError(ModelError):
    """The model went wrong while it ran; the family of the faults below, and never sent itself.

    `kind` is the fault's stable name (`integer_division_by_zero`), `function` the named function nearest to it (a
    compiled model names its functions after the layers), `offset` the position in the wasm file. Whoever knows adds
    the release, the SHA-256 of its input and the name of the file where the input was kept.
    """

    code = "fault"
    release = ""
    input_digest = ""
    capture = ""

    def __init__(self, message: str, *, kind: str = "", function: str | None = None, offset: int = 0) -> None:
        super().__init__(message)
        self.kind = kind or self.code
        self.function = function
        self.offset = offset


class TrapError(FaultError):
    """The model hit a trap."""

    code = "trap"


class StackOverflowError(FaultError):
    """The model used up its stack."""

    code = "stack_overflow"


class DeadlineError(FaultError):
    """The model ran longer than it may."""

    code = "deadline_exceeded"


class ProcessDiedError(FaultError):
    """The model's process ended by itself, or is not to be believed.

    It broke the engine or a limit of the kernel, or the machine ran out of memory.
    """

    code = "process_died"


class StatusError(ModelError):
    """The model said itself that it failed; `status` is the number that it returned."""

    code = "model_status"

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class SelfTestError(ModelError):
    """The model's outputs are not those that the release promises."""

    code = "self_test_failed"


class InputError(ModelError):
    """The caller's tensors do not fit the model; the model itself did not run."""

    code = "bad_input"


class ModelClosedError(ModelError):
    """The model was closed before the call began."""

    code = "closed"


class ProcessGoneError(ModelError):
    """The model's process had ended before the call began, which did not run: nothing is known against the model."""

    code = "process_gone"


class ProcessStartError(ModelError):
    """The machine does not let us start a process for the model."""

    code = "process_start"


class StackLimitError(ModelError):
    """The system gives a program less stack than the model may use; nothing is known against the model."""

    code = "stack_limit"


class TimerError(ModelError):
    """The system gives no timer that would stop the model; nothing is known against the model."""

    code = "no_timer"


class DeviceMemoryError(ModelError):
    """The device has too little free memory for it now; nothing is known against the model."""

    code = "out_of_memory"


def printable(name: str, max_chars: int = MAX_NAME_CHARS) -> str:
    """Return a name from a module as it may appear in a message: short, without control characters."""
    text = "".join(c if c.isprintable() else "?" for c in name[:max_chars])
    return text + "…" if len(name) > max_chars else text


def one_line(text: str) -> str:
    """Return what the engine says on one line, shortened; the innermost cause comes last."""
    words = " ".join(text.replace("Caused by:", " ").split())
    return words if len(words) <= 300 else "…".join((words[:200], words[-100:]))
