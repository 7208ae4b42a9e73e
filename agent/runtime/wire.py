"""What goes between the agent and a process that runs one model: terms in, errors out."""

import itertools
from typing import Annotated, Final

import msgspec

from agent.runtime.errors import (
    AbiError,
    CompileError,
    DeadlineError,
    DeviceMemoryError,
    FaultError,
    InputError,
    MemoryCapError,
    ModelClosedError,
    ModelError,
    ProcessDiedError,
    SelfTestError,
    StackLimitError,
    StackOverflowError,
    StatusError,
    TimerError,
    TrapError,
    UndeclaredImportError,
    one_line,
    printable,
)
from agent.runtime.sandbox import Terms

INFER, RESET, CHECK = b"i", b"r", b"c"
MAX_MESSAGE_BYTES: Final = 128 * 1024
"""Terms of 64 inputs and 64 outputs with the longest names, and any error, fit in one datagram."""
MAX_TEXT_CHARS: Final = 2_000
"""Of what a process says about an error: it goes into logs, and the process may have been taken over."""

_PLAIN: Final[dict[str, type[ModelError]]] = {
    kind.code: kind
    for kind in (
        AbiError,
        CompileError,
        DeviceMemoryError,
        InputError,
        MemoryCapError,
        ModelClosedError,
        SelfTestError,
        StackLimitError,
        TimerError,
        UndeclaredImportError,
    )
}
_FAULTS: Final[dict[str, type[FaultError]]] = {
    kind.code: kind for kind in (TrapError, StackOverflowError, DeadlineError, ProcessDiedError)
}


MemoryBytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The instance is sound, and this is what it is like."""

    memory_bytes: MemoryBytes
    can_reset: bool


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """The call succeeded; outputs are in the shared memory."""

    memory_bytes: MemoryBytes


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The call, or the start, ended with a ModelError."""

    code: str
    message: str
    memory_bytes: MemoryBytes = 0
    kind: str = ""
    function: str | None = None
    offset: int = 0
    status: int = 0


Reply = Ready | Done | Failed
_replies: Final = msgspec.msgpack.Decoder(Reply)
_terms: Final = msgspec.msgpack.Decoder(Terms)


def encode(value: Reply | Terms) -> bytes:
    """Return a message as it goes through the socket."""
    return msgspec.msgpack.encode(value)


def decode_reply(raw: bytes) -> Reply:
    """Return what a model's process says; raises ProcessDiedError if it is no reply: the process is not believed."""
    try:
        reply: Reply = _replies.decode(raw)
    except msgspec.DecodeError as error:
        raise ProcessDiedError(f"the model's process spoke nonsense: {one_line(str(error))}") from error
    return reply


def decode_terms(raw: bytes) -> Terms:
    """Return the terms that the agent sent."""
    return _terms.decode(raw)


def describe(error: ModelError, memory_bytes: int) -> Failed:
    """Return an error in a form that goes through a socket."""
    failed = Failed(code=error.code, message=str(error), memory_bytes=memory_bytes)
    if isinstance(error, FaultError):
        return msgspec.structs.replace(failed, kind=error.kind, function=error.function, offset=error.offset)
    if isinstance(error, StatusError):
        return msgspec.structs.replace(failed, status=error.status)
    return failed


def restore(failed: Failed) -> ModelError:
    """Return the error that `describe` was given; bounded and printable, whoever spoke."""
    message = printable(failed.message, MAX_TEXT_CHARS)
    if fault := _FAULTS.get(failed.code):
        function = None if failed.function is None else printable(failed.function)
        return fault(message, kind=printable(failed.kind), function=function, offset=failed.offset)
    if failed.code == StatusError.code:
        return StatusError(message, status=failed.status)
    return _PLAIN.get(failed.code, ModelError)(message)


def layout(terms: Terms) -> tuple[list[slice], list[slice]]:
    """Return where each input and each output lies in the shared memory."""
    sizes = [tensor.size_bytes for tensor in (*terms.inputs, *terms.outputs)]
    ends = list(itertools.accumulate(sizes))
    parts = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return parts[: len(terms.inputs)], parts[len(terms.inputs) :]
