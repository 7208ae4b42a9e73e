"""What went wrong inside a model, from the engine's words to ours."""

from wasmtime import Trap, TrapCode

from agent.runtime.errors import DeadlineError, FaultError, StackOverflowError, TrapError, printable

_PHRASES = {
    TrapCode.MEMORY_OUT_OF_BOUNDS: "memory access out of bounds",
    TrapCode.TABLE_OUT_OF_BOUNDS: "table access out of bounds",
    TrapCode.INDIRECT_CALL_TO_NULL: "indirect call to an empty table entry",
    TrapCode.BAD_SIGNATURE: "indirect call of a function with another signature",
    TrapCode.INTEGER_OVERFLOW: "integer overflow",
    TrapCode.INTEGER_DIVISION_BY_ZERO: "integer divide by zero",
    TrapCode.BAD_CONVERSION_TO_INTEGER: "conversion to integer of NaN or of a number too large",
    TrapCode.UNREACHABLE: "unreachable code reached",
}


def explain_trap(trap: Trap, deadline_ms: int, stack_kib: int) -> FaultError:
    """Return the error that says what the model did, and in which of its functions."""
    code = trap.trap_code
    function, offset = _place(trap)
    place = f"layer {function!r}" if function else "an unnamed function"
    if code is TrapCode.INTERRUPT:
        message = f"stopped in {place}: expected an answer within {deadline_ms:,} ms"
        return DeadlineError(message, function=function, offset=offset)
    if code is TrapCode.STACK_OVERFLOW:
        message = f"stack overflow in {place}: expected at most {stack_kib} KiB of stack"
        return StackOverflowError(message, function=function, offset=offset)
    kind = code.name.lower() if code else "unknown"
    phrase = _PHRASES.get(code, kind.replace("_", " ")) if code else "unknown reason"
    message = f"trap in {place}: {phrase} (at offset {offset:#x} of the wasm file)"
    return TrapError(message, kind=kind, function=function, offset=offset)


def _place(trap: Trap) -> tuple[str | None, int]:
    """Return the named function nearest to the trap, and the trap's offset in the wasm file."""
    frames = trap.frames
    named = (frame.func_name for frame in frames)
    function = next((printable(name) for name in named if name), None)
    return function, frames[0].module_offset if frames else 0
