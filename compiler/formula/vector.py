"""Formulas as vector code: four elements at a time, each in a lane of 32 bits.

Floats and 32-bit integers are as they are, narrower integers are widened, truth is a lane of ones. Formulas with wider
types, and the few operations that vectors lack, are left to `compiler.formula.scalar`.
"""

from collections.abc import Callable, Sequence
from typing import Final

from compiler.dtypes import DType
from compiler.errors import InternalError
from compiler.formula.formula import Formula, Instruction
from compiler.kernels import elementary, logarithm, trigonometry
from compiler.kernels.target import Target
from compiler.wasm import V128, Function, V128Local, f32x4, i32, i32x4, v128

_WIDE: Final = frozenset({DType.I64, DType.U64, DType.F64})
_NO_INTEGERS: Final = frozenset({"div", "mod", "fmod", "pow", "shift_left", "shift_right"})

FUNCTIONS: Final[dict[str, Callable[[Function, Target, V128], V128]]] = {
    "exp": elementary.exp,
    "log": logarithm.log,
    "sigmoid": elementary.sigmoid,
    "tanh": elementary.tanh,
    "erf": elementary.erf,
    "sin": trigonometry.sin,
    "cos": trigonometry.cos,
    "tan": trigonometry.tan,
    "asin": trigonometry.asin,
    "acos": trigonometry.acos,
    "atan": trigonometry.atan,
}
"""Elementary functions of floats."""

_FLOAT: Final[dict[str, Callable[..., V128]]] = {
    "neg": f32x4.neg,
    "abs": f32x4.abs_,
    "sqrt": f32x4.sqrt,
    "floor": f32x4.floor,
    "ceil": f32x4.ceil,
    "trunc": f32x4.trunc,
    "round": f32x4.nearest,
    "add": f32x4.add,
    "sub": f32x4.sub,
    "mul": f32x4.mul,
    "div": f32x4.div,
    "min": f32x4.min_,
    "max": f32x4.max_,
    "at_least": f32x4.pmax,
    "at_most": f32x4.pmin,
    "eq": f32x4.eq,
    "lt": f32x4.lt,
    "le": f32x4.le,
    "is_nan": lambda a: f32x4.ne(a, a),
    "is_inf": lambda a: f32x4.eq(f32x4.abs_(a), f32x4.const(float("inf"))),
}
_INTEGER: Final[dict[str, Callable[..., V128]]] = {
    "neg": i32x4.neg,
    "abs": i32x4.abs_,
    "add": i32x4.add,
    "sub": i32x4.sub,
    "mul": i32x4.mul,
    "eq": i32x4.eq,
    "bit_and": v128.and_,
    "bit_or": v128.or_,
    "bit_xor": v128.xor,
    "bit_not": v128.not_,
}
_SIGNED: Final[dict[str, Callable[..., V128]]] = {
    "min": i32x4.min_s,
    "max": i32x4.max_s,
    "at_least": i32x4.max_s,
    "at_most": i32x4.min_s,
    "lt": i32x4.lt_s,
    "le": i32x4.le_s,
}
_UNSIGNED: Final[dict[str, Callable[..., V128]]] = {
    "min": i32x4.min_u,
    "max": i32x4.max_u,
    "at_least": i32x4.max_u,
    "at_most": i32x4.min_u,
    "lt": i32x4.lt_u,
    "le": i32x4.le_u,
}
_TRUTH: Final[dict[str, Callable[..., V128]]] = {
    "and": v128.and_,
    "or": v128.or_,
    "xor": v128.xor,
    "not": v128.not_,
    "eq": i32x4.eq,
}


def is_vectorizable(formula: Formula) -> bool:
    """Whether the formula can be computed four elements at a time."""
    for instruction in formula.instructions:
        if instruction.dtype in _WIDE:
            return False
        types = [formula.instructions[n].dtype for n in instruction.operands]
        if instruction.operation in _NO_INTEGERS and (
            not types[0].is_float or instruction.operation in {"mod", "fmod"}
        ):
            return False
    return True


def write_vectors(f: Function, target: Target, formula: Formula, args: Sequence[V128]) -> V128:
    """Write the formula into `f` and return its answer; each of `args` may be read more than once."""
    return _VectorWriter(f, target, formula, args).write()


class _VectorWriter:
    def __init__(self, f: Function, target: Target, formula: Formula, args: Sequence[V128]) -> None:
        self._f, self._target, self._formula, self._args = f, target, formula, args
        self._uses = formula.uses()
        self._values: list[V128] = []

    def write(self) -> V128:
        for number, instruction in enumerate(self._formula.instructions):
            value = self._compute(instruction)
            is_plain = instruction.operation == "const" or isinstance(value, V128Local)
            if self._uses[number] > 1 and not is_plain:
                kept = self._f.v128()
                kept.set(value)
                value = kept
            self._values.append(value)
        return self._values[self._formula.result]

    def _compute(self, instruction: Instruction) -> V128:
        operation, dtype = instruction.operation, instruction.dtype
        operands = [self._values[n] for n in instruction.operands]
        match operation:
            case "arg":
                return self._args[int(instruction.value)]
            case "const":
                return _constant(instruction)
            case "cast":
                return self._cast(self._type(instruction, 0), dtype, operands[0])
            case "select":
                return v128.bitselect(operands[1], operands[2], operands[0])
            case "sign":
                return self._sign(dtype, operands[0])
        kind = self._type(instruction, 0)
        if kind is DType.F32:
            return self._float(instruction, operands)
        if kind is DType.BOOL:
            return _TRUTH[operation](*operands)
        table = _SIGNED if kind.is_signed else _UNSIGNED
        value = (_INTEGER.get(operation) or table[operation])(*operands)
        return value if dtype is DType.BOOL else _wrap(dtype, value)

    def _float(self, instruction: Instruction, operands: list[V128]) -> V128:
        operation = instruction.operation
        if operation in FUNCTIONS:
            return FUNCTIONS[operation](self._f, self._target, operands[0])
        if operation == "pow":
            return logarithm.power(self._f, self._target, operands[0], operands[1])
        fused = self._fused(instruction)
        return fused if fused is not None else _FLOAT[operation](*operands)

    def _fused(self, instruction: Instruction) -> V128 | None:
        """Return a sum of a product and another number in one instruction, if it is one."""
        if instruction.operation not in {"add", "sub"}:
            return None
        left, right = instruction.operands
        for product, other in ((right, left), (left, right)):
            inner = self._formula.instructions[product]
            if inner.operation != "mul" or self._uses[product] > 1 or (instruction.operation, product) == ("sub", left):
                continue
            a, b = (self._values[n] for n in inner.operands)
            combine = self._target.madd if instruction.operation == "add" else self._target.nmadd
            return combine(a, b, self._values[other])
        return None

    def _type(self, instruction: Instruction, position: int) -> DType:
        return self._formula.instructions[instruction.operands[position]].dtype

    def _sign(self, dtype: DType, value: V128) -> V128:
        kept = self._f.v128()
        kept.set(value)
        if dtype is DType.F32:
            one = v128.or_(v128.and_(kept, f32x4.const(-0.0)), f32x4.const(1.0))
            return v128.bitselect(kept, one, v128.not_(v128.or_(f32x4.lt(kept, _ZERO), f32x4.gt(kept, _ZERO))))
        if not dtype.is_signed:
            return v128.and_(i32x4.ne(kept, i32x4.const(0)), i32x4.const(1))
        return v128.or_(i32x4.shr_s(kept, i32.const(31)), v128.and_(i32x4.gt_s(kept, i32x4.const(0)), i32x4.const(1)))

    def _cast(self, old: DType, new: DType, value: V128) -> V128:
        if new is DType.BOOL:
            return f32x4.ne(value, _ZERO) if old is DType.F32 else i32x4.ne(value, i32x4.const(0))
        if old is DType.BOOL:
            return v128.and_(value, f32x4.const(1.0) if new is DType.F32 else i32x4.const(1))
        if new is DType.F32:
            return f32x4.convert_i32x4_u(value) if old is DType.U32 else f32x4.convert_i32x4_s(value)
        if old is not DType.F32:
            return _wrap(new, value)
        if new is DType.U32:
            return i32x4.trunc_sat_f32x4_u(value)
        return _saturate(new, i32x4.trunc_sat_f32x4_s(value))


_ZERO: Final = f32x4.const(0.0)


def _constant(instruction: Instruction) -> V128:
    match instruction.dtype:
        case DType.F32:
            return f32x4.const(instruction.value)
        case DType.BOOL:
            return i32x4.const(-1 if instruction.value else 0)
        case dtype if dtype in _WIDE:
            raise InternalError(f"formula: a {dtype.value} in vector code")
    return i32x4.const(int(instruction.value))


def _wrap(dtype: DType, value: V128) -> V128:
    """Return a lane of 32 bits with the low bits of a narrower type, widened."""
    unused = 32 - dtype.bits
    if unused == 0:
        return value
    if not dtype.is_signed:
        return v128.and_(value, i32x4.const((1 << dtype.bits) - 1))
    return i32x4.shr_s(i32x4.shl(value, i32.const(unused)), i32.const(unused))


def _saturate(dtype: DType, value: V128) -> V128:
    """Return a signed lane of 32 bits brought into the range of a narrower type."""
    if dtype.bits == 32:
        return value
    low, high = (-(1 << dtype.bits - 1), (1 << dtype.bits - 1) - 1) if dtype.is_signed else (0, (1 << dtype.bits) - 1)
    return i32x4.min_s(i32x4.max_s(value, i32x4.const(low)), i32x4.const(high))
