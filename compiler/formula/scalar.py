"""Formulas as scalar code, one element at a time: for 64-bit types, and for what vectors lack.

Whole numbers of up to 32 bits and truth are i32, kept in the range of their type. Elementary functions of 32-bit floats
are those of vectors, in one lane; there are none of 64-bit floats.
"""

from collections.abc import Sequence
from typing import Final, cast

from compiler.dtypes import DType
from compiler.formula.formula import Formula, Instruction
from compiler.formula.vector import FUNCTIONS
from compiler.kernels import logarithm
from compiler.kernels.target import Target
from compiler.wasm import F32, F64, I32, Expr, Function, f32, f32x4, f64, i32, i64, select
from compiler.wasm.instruction import by_name

_OF_FLOATS: Final = frozenset({*FUNCTIONS, "sqrt", "floor", "ceil", "trunc", "round", "is_nan", "is_inf"})
_NOT_WIDE: Final = frozenset({*FUNCTIONS, "pow"})
_INTEGER_NAMES: Final = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "eq": "eq",
    "bit_and": "and",
    "bit_or": "or",
    "bit_xor": "xor",
    "shift_left": "shl",
}
_SIGNED_NAMES: Final = {"div": "div", "lt": "lt", "le": "le", "fmod": "rem", "shift_right": "shr"}
_FLOAT_NAMES: Final = {"round": "nearest"}
_TRUTH_NAMES: Final = {"and": "and", "or": "or", "xor": "xor", "eq": "eq"}


def unsupported(formula: Formula) -> list[str]:
    """Return what cannot be computed: elementary functions of 64-bit floats, and of whole numbers."""
    missing: set[str] = set()
    for instruction in formula.instructions:
        kinds = {formula.instructions[operand].dtype for operand in instruction.operands}
        is_wide = instruction.operation in _NOT_WIDE and DType.F64 in kinds
        if is_wide or (instruction.operation in _OF_FLOATS and not all(kind.is_float for kind in kinds)):
            missing.update(f"{instruction.operation} of {kind.value}" for kind in kinds)
    return sorted(missing)


def write_scalars(f: Function, target: Target, formula: Formula, args: Sequence[Expr]) -> Expr:
    """Write the formula into `f` and return its answer; each of `args` may be read more than once."""
    return _ScalarWriter(f, target, formula, args).write()


def _prefix(dtype: DType) -> str:
    if dtype.is_float:
        return "f32" if dtype is DType.F32 else "f64"
    return "i64" if dtype.bits == 64 else "i32"


def _sign_suffix(dtype: DType) -> str:
    return "_s" if dtype.is_signed else "_u"


class _ScalarWriter:
    def __init__(self, f: Function, target: Target, formula: Formula, args: Sequence[Expr]) -> None:
        self._f, self._target, self._formula, self._args = f, target, formula, args
        self._values: list[Expr] = []

    def write(self) -> Expr:
        for instruction in self._formula.instructions:
            value = self._compute(instruction)
            is_plain = instruction.operation in {"const", "arg"}
            self._values.append(value if is_plain else self._f.keep(value))
        return self._values[self._formula.result]

    def _compute(self, instruction: Instruction) -> Expr:
        operation, dtype = instruction.operation, instruction.dtype
        operands = [self._values[n] for n in instruction.operands]
        match operation:
            case "arg":
                return self._args[int(instruction.value)]
            case "const":
                return constant(dtype, instruction.value)
            case "select":
                return select(cast("I32", operands[0]), operands[1], operands[2])
        kind = self._formula.instructions[instruction.operands[0]].dtype
        if operation == "cast":
            return self._cast(kind, dtype, operands[0])
        if kind is DType.BOOL:
            return self._truth(operation, operands)
        if kind.is_float:
            return self._float(kind, operation, operands)
        value = self._integer(kind, operation, operands)
        return value if dtype is DType.BOOL else _wrap(dtype, value)

    def _truth(self, operation: str, operands: list[Expr]) -> Expr:
        if operation == "not":
            return by_name("i32.eqz", operands[0])
        return by_name(f"i32.{_TRUTH_NAMES[operation]}", *operands)

    def _float(self, kind: DType, operation: str, operands: list[Expr]) -> Expr:
        prefix = _prefix(kind)
        match operation:
            case "at_least":
                return select(cast("I32", by_name(f"{prefix}.lt", *operands)), operands[1], operands[0])
            case "at_most":
                return select(cast("I32", by_name(f"{prefix}.gt", *operands)), operands[1], operands[0])
            case "is_nan":
                return by_name(f"{prefix}.ne", operands[0], operands[0])
            case "is_inf":
                return by_name(f"{prefix}.eq", by_name(f"{prefix}.abs", operands[0]), constant(kind, float("inf")))
            case "sign":
                return self._float_sign(kind, operands[0])
            case "fmod":
                return self._float_remainder(kind, operands[0], operands[1])
            case "pow":
                x, y = (f32x4.splat(cast("F32", operand)) for operand in operands)
                return f32x4.extract_lane(logarithm.power(self._f, self._target, x, y), 0)
        if operation in FUNCTIONS:
            vector = f32x4.splat(cast("F32", operands[0]))
            return f32x4.extract_lane(FUNCTIONS[operation](self._f, self._target, vector), 0)
        return by_name(f"{prefix}.{_FLOAT_NAMES.get(operation, operation)}", *operands)

    def _float_sign(self, kind: DType, value: Expr) -> Expr:
        prefix, zero = _prefix(kind), constant(kind, 0.0)
        one = by_name(f"{prefix}.copysign", constant(kind, 1.0), value)
        is_zero_or_nan = i32.eqz(cast("I32", by_name(f"{prefix}.gt", by_name(f"{prefix}.abs", value), zero)))
        return select(is_zero_or_nan, value, one)

    def _float_remainder(self, kind: DType, a: Expr, b: Expr) -> Expr:
        """Return a - trunc(a / b) * b in 64 bits; exact for 32-bit floats whose quotient is below 2**28."""
        x, y = (self._f.keep(f64.promote_f32(cast("F32", v)) if kind is DType.F32 else cast("F64", v)) for v in (a, b))
        rest = f64.sub(x, f64.mul(f64.trunc(f64.div(x, y)), y))
        # A finite number is its own remainder by infinity; the remainder has the sign of the dividend.
        is_infinite = f64.eq(f64.abs_(y), f64.const(float("inf")))
        result = select(i32.and_(is_infinite, f64.lt(f64.abs_(x), f64.const(float("inf")))), x, f64.copysign(rest, x))
        return f32.demote_f64(result) if kind is DType.F32 else result

    def _integer(self, kind: DType, operation: str, operands: list[Expr]) -> Expr:
        prefix, sign = _prefix(kind), _sign_suffix(kind)
        if operation in _INTEGER_NAMES:
            return by_name(f"{prefix}.{_INTEGER_NAMES[operation]}", *operands)
        if operation in _SIGNED_NAMES:
            return by_name(f"{prefix}.{_SIGNED_NAMES[operation]}{sign}", *operands)
        zero = constant(kind, 0)
        match operation:
            case "neg":
                return by_name(f"{prefix}.sub", zero, operands[0])
            case "bit_not":
                return by_name(f"{prefix}.xor", operands[0], constant(kind, -1 if kind.is_signed else 2**kind.bits - 1))
            case "abs":
                is_negative = cast("I32", by_name(f"{prefix}.lt_s", operands[0], zero))
                return select(is_negative, by_name(f"{prefix}.sub", zero, operands[0]), operands[0])
            case "min" | "at_most":
                return select(cast("I32", by_name(f"{prefix}.lt{sign}", *operands)), operands[0], operands[1])
            case "max" | "at_least":
                return select(cast("I32", by_name(f"{prefix}.gt{sign}", *operands)), operands[0], operands[1])
            case "sign":
                above, below = (by_name(f"{prefix}.{name}{sign}", operands[0], zero) for name in ("gt", "lt"))
                result = i32.sub(cast("I32", above), cast("I32", below))
                return i64.extend_i32_s(result) if prefix == "i64" else result
            case "mod":
                return self._modulo(prefix, sign, operands[0], operands[1])
        return self._integer_power(kind, operands[0], operands[1])

    def _modulo(self, prefix: str, sign: str, a: Expr, b: Expr) -> Expr:
        """Return the remainder with the sign of the divisor."""
        rest = self._f.keep(by_name(f"{prefix}.rem{sign}", a, b))
        zero = i64.const(0) if prefix == "i64" else i32.const(0)
        if sign == "_u":
            return rest
        has_other_sign = cast("I32", by_name(f"{prefix}.lt_s", by_name(f"{prefix}.xor", rest, b), zero))
        is_not_zero = cast("I32", by_name(f"{prefix}.ne", rest, zero))
        return select(i32.and_(has_other_sign, is_not_zero), by_name(f"{prefix}.add", rest, b), rest)

    def _integer_power(self, kind: DType, base: Expr, exponent: Expr) -> Expr:
        """Return a power by squaring; a negative exponent leaves 1 and -1 what they are, and makes 0 of the rest."""
        f, prefix, one = self._f, _prefix(kind), constant(kind, 1)
        zero = constant(kind, 0)
        start: Expr = one
        if kind.is_signed:
            is_negative = f.keep(cast("I32", by_name(f"{prefix}.lt_s", exponent, zero)))
            # 1 and -1 are next to 0 and 2, and nothing else: the square of other numbers may wrap around to 1.
            beside = by_name(f"{prefix}.and", by_name(f"{prefix}.add", base, one), constant(kind, -3))
            is_unit = f.keep(cast("I32", by_name(f"{prefix}.eq", beside, zero)))
            start = select(i32.and_(is_negative, i32.eqz(is_unit)), zero, one)
            turned = by_name(f"{prefix}.sub", zero, exponent)
            exponent = select(i32.and_(is_negative, is_unit), turned, exponent)
        result, square, left = (f.variable(v) for v in (start, base, exponent))
        with f.block() as done, f.loop() as again:
            f.branch(done, i32.eqz(cast("I32", by_name(f"{prefix}.gt_s", left, zero))))
            is_odd = cast("I32", by_name(f"{prefix}.ne", by_name(f"{prefix}.and", left, one), zero))
            result.set(select(is_odd, by_name(f"{prefix}.mul", result, square), result))
            square.set(by_name(f"{prefix}.mul", square, square))
            left.set(by_name(f"{prefix}.shr_u", left, one))
            f.branch(again)
        return cast("Expr", result)

    def _cast(self, old: DType, new: DType, value: Expr) -> Expr:
        if new is DType.BOOL:
            return by_name(f"{_prefix(old)}.ne", value, constant(old, 0))
        before, after = _prefix(old), _prefix(new)
        sign = "_u" if old is DType.BOOL else _sign_suffix(old)
        if new.is_float:
            return _to_float(before, after, sign, value)
        if old.is_float:
            return self._float_to_integer(before, new, value)
        if before == after:
            return value if before == "i64" else _wrap(new, value)
        if after == "i64":
            return by_name(f"i64.extend_i32{sign}", value)
        return _wrap(new, by_name("i32.wrap_i64", value))

    def _float_to_integer(self, before: str, new: DType, value: Expr) -> Expr:
        if new.bits >= 32:
            return by_name(f"{_prefix(new)}.trunc_sat_{before}{_sign_suffix(new)}", value)
        whole = cast("I32", self._f.keep(by_name(f"i32.trunc_sat_{before}_s", value)))
        low, high = (-(1 << new.bits - 1), (1 << new.bits - 1) - 1) if new.is_signed else (0, (1 << new.bits) - 1)
        at_least = self._f.keep(select(i32.lt_s(whole, i32.const(low)), i32.const(low), whole))
        return select(i32.gt_s(at_least, i32.const(high)), i32.const(high), at_least)


def constant(dtype: DType, value: bool | float) -> Expr:
    """Return a number as an expression."""
    match _prefix(dtype):
        case "f32":
            return f32.const(value)
        case "f64":
            return f64.const(value)
        case "i64":
            return i64.const(int(value))
    return i32.const(int(value))


def _to_float(before: str, after: str, sign: str, value: Expr) -> Expr:
    if before == after:
        return value
    if before.startswith("f"):
        return by_name("f64.promote_f32" if after == "f64" else "f32.demote_f64", value)
    return by_name(f"{after}.convert_{before}{sign}", value)


def _wrap(dtype: DType, value: Expr) -> Expr:
    """Return an i32 with the low bits of a narrower type, widened; other types as they are."""
    if dtype.bits >= 32 or dtype is DType.BOOL:
        return value
    if dtype.is_signed:
        return by_name(f"i32.extend{dtype.bits}_s", value)
    return i32.and_(cast("I32", value), i32.const((1 << dtype.bits) - 1))
