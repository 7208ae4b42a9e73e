"""Instructions on the memory as a whole. A module has at most one."""

from compiler.wasm import leb
from compiler.wasm.expr import I32, Effect, i32_operand

_INIT = b"\xfc\x08"
_DROP = b"\xfc\x09"
_COPY = b"\xfc\x0a\x00\x00"
_FILL = b"\xfc\x0b\x00"
_SIZE = b"\x3f\x00"


def init(segment: int, target: I32, source: I32, size_bytes: I32 | int) -> Effect:
    """Return code that copies from a passive data segment, `source` bytes behind its start."""
    return Effect(target.code + source.code + i32_operand(size_bytes).code + _INIT + leb.unsigned(segment) + b"\x00")


def drop(segment: int) -> Effect:
    """Return code that gives a passive data segment up."""
    return Effect(_DROP + leb.unsigned(segment))


def copy(target: I32, source: I32, size_bytes: I32 | int) -> Effect:
    """Return code that copies memory; the two ranges may overlap."""
    return Effect(target.code + source.code + i32_operand(size_bytes).code + _COPY)


def fill(target: I32, byte: I32 | int, size_bytes: I32 | int) -> Effect:
    """Return code that sets every byte of a range to `byte`."""
    return Effect(target.code + i32_operand(byte).code + i32_operand(size_bytes).code + _FILL)


def size_pages() -> I32:
    """Return how many pages the memory has."""
    return I32(_SIZE)
