"""What is known of one instruction: its opcode, its immediates, the types of its operands and of its result."""

import enum
from collections.abc import Iterator
from typing import Final

import msgspec

from compiler.wasm import leb
from compiler.wasm.types import ValueType

SIMD_PREFIX: Final = 0xFD
BULK_PREFIX: Final = 0xFC
FIRST_RELAXED: Final = 0x100
"""Opcodes behind the SIMD prefix from here on are relaxed SIMD."""


class Immediate(enum.Enum):
    """What follows an opcode."""

    NONE = enum.auto()
    MEMORY = enum.auto()
    """Alignment and offset."""
    LANE = enum.auto()
    MEMORY_LANE = enum.auto()
    BYTES_16 = enum.auto()
    """A vector constant, or the lanes of a shuffle."""
    I32 = enum.auto()
    I64 = enum.auto()
    F32 = enum.auto()
    F64 = enum.auto()
    INDEX = enum.auto()
    INDEX_2 = enum.auto()
    BLOCK = enum.auto()
    BRANCH_TABLE = enum.auto()
    HEAP_TYPE = enum.auto()
    VALUE_TYPES = enum.auto()


class Opcode(msgspec.Struct, frozen=True):
    """One instruction. `operands` and `result` say nothing when they depend on an immediate."""

    name: str
    prefix: int | None
    number: int
    immediate: Immediate
    operands: tuple[ValueType, ...]
    result: ValueType | None

    @property
    def code(self) -> bytes:
        """The bytes before the immediates."""
        return bytes([self.number]) if self.prefix is None else bytes([self.prefix]) + leb.unsigned(self.number)

    @property
    def required_feature(self) -> str | None:
        """The engine feature without which this is not valid, or None."""
        if self.prefix != SIMD_PREFIX:
            return None
        return "simd128" if self.number < FIRST_RELAXED else "relaxed_simd"


_LETTERS = {
    "i": ValueType.I32,
    "l": ValueType.I64,
    "f": ValueType.F32,
    "d": ValueType.F64,
    "v": ValueType.V128,
}


def opcodes(
    prefix: int | None, first: int, signature: str, names: str, immediate: Immediate = Immediate.NONE
) -> Iterator[Opcode]:
    """Yield instructions with consecutive numbers and one signature: operands, a colon, the result."""
    operands, _, result = signature.partition(":")
    types = tuple(_LETTERS[letter] for letter in operands)
    for number, name in enumerate(names.split(), first):
        yield Opcode(name, prefix, number, immediate, types, _LETTERS[result] if result else None)


def suffixed(shape: str, names: str) -> str:
    """Return `names` with `shape.` before each."""
    return " ".join(f"{shape}.{name}" for name in names.split())
