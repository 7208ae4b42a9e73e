"""What every operation of a formula means, in numpy: the definition that emitted code is held against."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.formula.formula import Formula, Instruction

Array = NDArray[Any]


def evaluate(formula: Formula, args: Sequence[Array]) -> Array:
    """Return the answer for arrays of operands that broadcast against each other."""
    values: list[Array] = []
    with np.errstate(all="ignore"):
        for instruction in formula.instructions:
            values.append(_evaluate(instruction, [values[n] for n in instruction.operands], args))
    return values[formula.result]


def _evaluate(instruction: Instruction, operands: list[Array], args: Sequence[Array]) -> Array:
    dtype = instruction.dtype.numpy
    match instruction.operation:
        case "arg":
            return args[int(instruction.value)]
        case "const":
            return np.asarray(instruction.value, dtype)
        case "cast":
            return cast(operands[0], instruction.dtype)
    result = _OPERATIONS[instruction.operation](*operands)
    return np.asarray(result).astype(dtype, copy=False)


def cast(array: Array, dtype: DType) -> Array:
    """Return numbers as another type; fractions are cut off, what is too large for an integer becomes its limit."""
    if array.dtype.kind != "f" or not dtype.is_integer:
        return array.astype(dtype.numpy)
    limits = np.iinfo(dtype.value)
    whole = np.trunc(np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf))
    inside = (whole >= float(limits.min)) & (whole < float(limits.max) + 1)
    small = np.where(inside, whole, 0).astype(dtype.numpy)
    return np.where(inside, small, np.where(whole < 0, limits.min, limits.max).astype(dtype.numpy))


def _divide(a: Array, b: Array) -> Array:
    """Divide; integers towards zero."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) ^ (b < 0), -quotient, quotient)


def _power(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(np.power(a.astype(np.float64), b.astype(np.float64)))
    return np.where((b < 0) & (a != 1) & (a != -1), 0, np.power(a, np.where(b < 0, b & 1, b)))


def _sigmoid(a: Array) -> Array:
    power = np.exp(-np.abs(a.astype(np.float64)))
    return np.asarray(np.where(a < 0, power, 1.0) / (1 + power))


def _erf(a: Array) -> Array:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(a))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "sqrt": np.sqrt,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": np.rint,
    "exp": np.exp,
    "log": np.log,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "erf": _erf,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "not": np.logical_not,
    "is_nan": np.isnan,
    "is_inf": np.isinf,
    "bit_not": np.invert,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _divide,
    "min": np.minimum,
    "max": np.maximum,
    "at_least": lambda a, b: np.where(a < b, b, a),
    "at_most": lambda a, b: np.where(b < a, b, a),
    "pow": _power,
    "mod": np.mod,
    "fmod": np.fmod,
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "bit_and": np.bitwise_and,
    "bit_or": np.bitwise_or,
    "bit_xor": np.bitwise_xor,
    "shift_left": np.left_shift,
    "shift_right": np.right_shift,
    "select": np.where,
}
