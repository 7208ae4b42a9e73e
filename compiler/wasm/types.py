"""Value types, function types and the error of building a module wrongly."""

import enum
from typing import Final

import msgspec

from compiler.errors import InternalError

PAGE_BYTES: Final = 65_536
MAX_PAGES: Final = 65_536


class EncodeError(InternalError):
    """Our own bug: what was built is not a WebAssembly module."""

    code = "encode"


class ValueType(enum.IntEnum):
    """The type of a value; the number is its encoding."""

    I32 = 0x7F
    I64 = 0x7E
    F32 = 0x7D
    F64 = 0x7C
    V128 = 0x7B
    FUNCREF = 0x70
    EXTERNREF = 0x6F


class FunctionType(msgspec.Struct, frozen=True):
    """What a function takes and returns."""

    params: tuple[ValueType, ...] = ()
    results: tuple[ValueType, ...] = ()
