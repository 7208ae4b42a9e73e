"""Typed expressions: a value is the code that computes it, in the place where it is used.

An expression that reads a local reads it when the code runs, so one that is used twice is computed twice: set a local
to keep a value. The order in which code is written is the order in which it runs.
"""

from typing import ClassVar, Final, Generic, TypeVar

from compiler.wasm import leb
from compiler.wasm.types import EncodeError, ValueType

E = TypeVar("E", bound="Expr")

_LOCAL_GET: Final = b"\x20"
_LOCAL_SET: Final = b"\x21"
_LOCAL_TEE: Final = b"\x22"
_I32_CONST: Final = b"\x41"
_I32_ADD: Final = b"\x6a"
_I32_SUB: Final = b"\x6b"
_I32_MUL: Final = b"\x6c"
_I32_AND: Final = b"\x71"


class Expr:
    """Code that leaves one value, of the type of its class."""

    __slots__ = ("code",)
    type: ClassVar[ValueType]

    def __init__(self, code: bytes) -> None:
        self.code = code


class Effect:
    """Code that leaves no value."""

    __slots__ = ("code",)

    def __init__(self, code: bytes) -> None:
        self.code = code


class I32(Expr):
    """A 32-bit integer; addresses and conditions are of this type."""

    __slots__ = ()
    type = ValueType.I32

    def __add__(self, other: "I32 | int") -> "I32":
        return I32(self.code + i32_operand(other).code + _I32_ADD)

    def __sub__(self, other: "I32 | int") -> "I32":
        return I32(self.code + i32_operand(other).code + _I32_SUB)

    def __mul__(self, other: "I32 | int") -> "I32":
        return I32(self.code + i32_operand(other).code + _I32_MUL)

    def __and__(self, other: "I32 | int") -> "I32":
        return I32(self.code + i32_operand(other).code + _I32_AND)


class I64(Expr):
    """A 64-bit integer."""

    __slots__ = ()
    type = ValueType.I64


class F32(Expr):
    """A 32-bit float."""

    __slots__ = ()
    type = ValueType.F32


class F64(Expr):
    """A 64-bit float."""

    __slots__ = ()
    type = ValueType.F64


class V128(Expr):
    """A vector of 128 bits."""

    __slots__ = ()
    type = ValueType.V128


EXPRESSIONS: Final[dict[ValueType, type[Expr]]] = {kind.type: kind for kind in (I32, I64, F32, F64, V128)}
"""The class of expressions of a type."""


def i32_const(value: int) -> I32:
    """Return a constant; from -2**31 to 2**32 - 1, so that addresses and signed numbers both fit."""
    if not -(1 << 31) <= value < 1 << 32:
        raise EncodeError(f"expected a 32-bit integer, got {value}")
    return I32(_I32_CONST + leb.signed(value - (1 << 32) if value >= 1 << 31 else value))


def i32_operand(value: I32 | int) -> I32:
    """Return `value` as an expression."""
    return i32_const(value) if isinstance(value, int) else value


class _Variable(Generic[E]):
    """What a local can do besides being read. The classes below join it to an expression of its type."""

    __slots__ = ()
    _kind: type[E]
    _index: bytes
    _body: bytearray

    def set(self, value: E) -> None:
        """Write code that sets the local."""
        self._body.extend(value.code + _LOCAL_SET + self._index)

    def tee(self, value: E) -> E:
        """Return `value`, which also sets the local when it is computed."""
        return self._kind(value.code + _LOCAL_TEE + self._index)


class I32Local(I32, _Variable[I32]):
    """A local variable."""

    __slots__ = ("_body", "_index")
    _kind = I32

    def __init__(self, index: int, body: bytearray) -> None:
        self._index, self._body = leb.unsigned(index), body
        super().__init__(_LOCAL_GET + self._index)

    def advance(self, step: int) -> None:
        """Write code that adds `step`; nothing when it is 0."""
        if step:
            self.set(self + step)


class I64Local(I64, _Variable[I64]):
    """A local variable."""

    __slots__ = ("_body", "_index")
    _kind = I64

    def __init__(self, index: int, body: bytearray) -> None:
        self._index, self._body = leb.unsigned(index), body
        super().__init__(_LOCAL_GET + self._index)


class F32Local(F32, _Variable[F32]):
    """A local variable."""

    __slots__ = ("_body", "_index")
    _kind = F32

    def __init__(self, index: int, body: bytearray) -> None:
        self._index, self._body = leb.unsigned(index), body
        super().__init__(_LOCAL_GET + self._index)


class F64Local(F64, _Variable[F64]):
    """A local variable."""

    __slots__ = ("_body", "_index")
    _kind = F64

    def __init__(self, index: int, body: bytearray) -> None:
        self._index, self._body = leb.unsigned(index), body
        super().__init__(_LOCAL_GET + self._index)


class V128Local(V128, _Variable[V128]):
    """A local variable."""

    __slots__ = ("_body", "_index")
    _kind = V128

    def __init__(self, index: int, body: bytearray) -> None:
        self._index, self._body = leb.unsigned(index), body
        super().__init__(_LOCAL_GET + self._index)
