"""Makes typed functions out of the table of opcodes: `f32x4.add` as text becomes a function of two vectors.

The modules `i32`, `f32x4`, … consist of these. Each checks against the table when it is made that the types agree.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from compiler.wasm import leb
from compiler.wasm.expr import EXPRESSIONS, I32, V128, Effect, Expr
from compiler.wasm.opcode import Immediate
from compiler.wasm.opcodes import OPCODES
from compiler.wasm.types import EncodeError

A = TypeVar("A", bound=Expr)
B = TypeVar("B", bound=Expr)
C = TypeVar("C", bound=Expr)
R = TypeVar("R", bound=Expr)

VECTOR_CONST = OPCODES["v128.const"].code
"""What the sixteen bytes of a constant follow."""
_LANE_BITS = {"i8x16": 8, "i16x8": 16, "i32x4": 32, "i64x2": 64, "f32x4": 32, "f64x2": 64}


def _code(name: str, operands: tuple[type[Expr], ...], result: type[Expr] | None, *immediates: Immediate) -> bytes:
    """Return the opcode of `name`, when the table says the same of its types."""
    opcode = OPCODES[name]
    types = tuple(operand.type for operand in operands)
    if (opcode.operands, opcode.result) != (types, result.type if result else None):
        raise EncodeError(f"{name}: expected {opcode.operands} -> {opcode.result}, got {types} -> {result}")
    if opcode.immediate not in (immediates or (Immediate.NONE,)):
        raise EncodeError(f"{name} has other immediates than expected")
    return opcode.code


def unary(name: str, operand: type[A], result: type[R]) -> Callable[[A], R]:
    """Return the instruction `name` as a function of one value."""
    code = _code(name, (operand,), result)
    return lambda a: result(a.code + code)


def binary(name: str, left: type[A], right: type[B], result: type[R]) -> Callable[[A, B], R]:
    """Return the instruction `name` as a function of two values."""
    code = _code(name, (left, right), result)
    return lambda a, b: result(a.code + b.code + code)


def ternary(name: str, first: type[A], second: type[B], third: type[C], result: type[R]) -> Callable[[A, B, C], R]:
    """Return the instruction `name` as a function of three values."""
    code = _code(name, (first, second, third), result)
    return lambda a, b, c: result(a.code + b.code + c.code + code)


def vector_unary(name: str) -> Callable[[V128], V128]:
    """Return a vector instruction of one vector."""
    return unary(name, V128, V128)


def vector_binary(name: str) -> Callable[[V128, V128], V128]:
    """Return a vector instruction of two vectors."""
    return binary(name, V128, V128, V128)


def vector_ternary(name: str) -> Callable[[V128, V128, V128], V128]:
    """Return a vector instruction of three vectors."""
    return ternary(name, V128, V128, V128, V128)


def vector_shift(name: str) -> Callable[[V128, I32], V128]:
    """Return a vector instruction of a vector and a count of bits."""
    return binary(name, V128, I32, V128)


class ExtractLane(Generic[R]):
    """An instruction that takes one lane out of a vector."""

    def __init__(self, name: str, result: type[R]) -> None:
        self._opcode = _code(name, (V128,), result, Immediate.LANE)
        self._result = result
        self.lanes = 128 // _LANE_BITS[name.split(".", maxsplit=1)[0]]

    def __call__(self, vector: V128, lane: int) -> R:
        """Return lane number `lane` of `vector`."""
        _check_lane(lane, self.lanes)
        return self._result(vector.code + self._opcode + bytes([lane]))


class ReplaceLane(Generic[A]):
    """An instruction that replaces one lane of a vector."""

    def __init__(self, name: str, value: type[A]) -> None:
        self._opcode = _code(name, (V128, value), V128, Immediate.LANE)
        self.lanes = 128 // _LANE_BITS[name.split(".", maxsplit=1)[0]]

    def __call__(self, vector: V128, lane: int, value: A) -> V128:
        """Return `vector` with `value` in lane number `lane`."""
        _check_lane(lane, self.lanes)
        return V128(vector.code + value.code + self._opcode + bytes([lane]))


class Load(Generic[R]):
    """An instruction that reads memory; `size_bytes` is what it reads, which is also the alignment that it hints."""

    def __init__(self, name: str, result: type[R], size_bytes: int) -> None:
        self._opcode = _code(name, (I32,), result, Immediate.MEMORY) + leb.unsigned(size_bytes.bit_length() - 1)
        self._result = result

    def __call__(self, address: I32, offset: int = 0) -> R:
        """Return what lies `offset` bytes behind `address`."""
        return self._result(address.code + self._opcode + _offset(offset))


class Store(Generic[A]):
    """An instruction that writes `size_bytes` to memory."""

    def __init__(self, name: str, value: type[A], size_bytes: int) -> None:
        self._opcode = _code(name, (I32, value), None, Immediate.MEMORY) + leb.unsigned(size_bytes.bit_length() - 1)

    def __call__(self, address: I32, value: A, offset: int = 0) -> Effect:
        """Return code that writes `value` at `offset` bytes behind `address`."""
        return Effect(address.code + value.code + self._opcode + _offset(offset))


class LoadLane:
    """An instruction that reads one lane of a vector from memory."""

    def __init__(self, name: str, size_bytes: int) -> None:
        code = _code(name, (I32, V128), V128, Immediate.MEMORY_LANE)
        self._opcode = code + leb.unsigned(size_bytes.bit_length() - 1)
        self.lanes = 16 // size_bytes

    def __call__(self, address: I32, vector: V128, lane: int, offset: int = 0) -> V128:
        """Return `vector` with lane number `lane` from `offset` bytes behind `address`."""
        _check_lane(lane, self.lanes)
        return V128(address.code + vector.code + self._opcode + _offset(offset) + bytes([lane]))


class StoreLane:
    """An instruction that writes one lane of a vector to memory."""

    def __init__(self, name: str, size_bytes: int) -> None:
        code = _code(name, (I32, V128), None, Immediate.MEMORY_LANE)
        self._opcode = code + leb.unsigned(size_bytes.bit_length() - 1)
        self.lanes = 16 // size_bytes

    def __call__(self, address: I32, vector: V128, lane: int, offset: int = 0) -> Effect:
        """Return code that writes lane number `lane` of `vector` at `offset` bytes behind `address`."""
        _check_lane(lane, self.lanes)
        return Effect(address.code + vector.code + self._opcode + _offset(offset) + bytes([lane]))


def _check_lane(lane: int, lanes: int) -> None:
    if not 0 <= lane < lanes:
        raise EncodeError(f"expected a lane from 0 to {lanes - 1}, got {lane}")


def _offset(offset: int) -> bytes:
    if not 0 <= offset < 1 << 32:
        raise EncodeError(f"expected an offset from 0 to 2**32 - 1, got {offset}")
    return leb.unsigned(offset)


def by_name(name: str, *operands: Expr) -> Expr:
    """Return the instruction `name` without immediates, for code that chooses it by the type of its operands."""
    opcode = OPCODES[name]
    if [o.type for o in operands] != list(opcode.operands) or opcode.result is None:
        raise EncodeError(f"{name}: expected {opcode.operands}, got {[o.type for o in operands]}")
    if opcode.immediate is not Immediate.NONE:
        raise EncodeError(f"{name} has immediates")
    return EXPRESSIONS[opcode.result](b"".join(o.code for o in operands) + opcode.code)
