"""Arithmetic, comparisons, logic and conversions, element by element."""

import math
from functools import reduce
from typing import Final

import numpy as np

from compiler.dtypes import DType
from compiler.formula import Term
from compiler.importer.context import NodeContext
from compiler.importer.registry import CONVERTERS, operator
from compiler.importer.types import ONNX_TYPES, type_name

_UNARY: Final = {
    "Abs": "abs",
    "Acos": "acos",
    "Asin": "asin",
    "Atan": "atan",
    "BitwiseNot": "bit_not",
    "Ceil": "ceil",
    "Cos": "cos",
    "Erf": "erf",
    "Exp": "exp",
    "Floor": "floor",
    "IsNaN": "is_nan",
    "Log": "log",
    "Neg": "neg",
    "Not": "not",
    "Round": "round",
    "Sigmoid": "sigmoid",
    "Sign": "sign",
    "Sin": "sin",
    "Sqrt": "sqrt",
    "Tan": "tan",
    "Tanh": "tanh",
}
_BINARY: Final = {
    "Add": "add",
    "And": "and",
    "BitwiseAnd": "bit_and",
    "BitwiseOr": "bit_or",
    "BitwiseXor": "bit_xor",
    "Div": "div",
    "Equal": "eq",
    "Less": "lt",
    "LessOrEqual": "le",
    "Mul": "mul",
    "Or": "or",
    "Sub": "sub",
    "Xor": "xor",
}
_MANY: Final = {"Max": "max", "Min": "min", "Sum": "add"}


def _unary(n: NodeContext) -> None:
    n.set(n.graph.apply(_UNARY[n.node.op_type], n[0]))


def _binary(n: NodeContext) -> None:
    n.set(n.graph.apply(_BINARY[n.node.op_type], n[0], n[1]))


def _many(n: NodeContext) -> None:
    n.set(reduce(lambda a, b: n.graph.apply(_MANY[n.node.op_type], a, b), n.all()))


for _names, _converter in ((_UNARY, _unary), (_BINARY, _binary), (_MANY, _many)):
    CONVERTERS.update({("", name): _converter for name in _names})


@operator("Greater", "GreaterOrEqual")
def greater(n: NodeContext) -> None:
    """The other way round."""
    n.set(n.graph.apply("lt" if n.node.op_type == "Greater" else "le", n[1], n[0]))


@operator("Mean")
def mean(n: NodeContext) -> None:
    """The sum, divided."""
    total = reduce(lambda a, b: n.graph.apply("add", a, b), n.all())
    n.set(n.map(lambda x: x / n.count, total))


@operator("Pow")
def power(n: NodeContext) -> None:
    """Small constant exponents are products and roots; the exponent may be of another type than the base."""
    base = n[0]
    if n.dtype(1).is_float and not n.dtype(0).is_float:
        return n.set(n.map(_whole_power, base, n.graph.cast(DType.F32, n[1])))
    if n.is_constant(1) and n.constant(1).size == 1 and n.dtype(0).is_float and n.constant(1).ndim <= n.type(0).rank:
        match float(n.scalar(1)):
            case 2.0:
                return n.set(n.map(lambda x: x * x, base))
            case 3.0:
                return n.set(n.map(lambda x: x * x * x, base))
            case 1.0:
                return n.set(base)
            case 0.5:
                return n.set(n.graph.apply("sqrt", base))
    return n.set(n.graph.apply("pow", base, n.graph.cast(n.dtype(0), n[1])))


def _whole_power(base: Term, exponent: Term) -> Term:
    """Return a power of a whole number, cut off to one: exact for whole exponents, else of the 32-bit float."""
    exact = base.apply("pow", exponent.cast(base.dtype))
    between = base.cast(DType.F32).apply("pow", exponent).cast(base.dtype)
    return exponent.apply("floor").apply("eq", exponent).choose(exact, between)


def _floor_mod(x: Term, y: Term) -> Term:
    rest = x.apply("fmod", y)
    moved = (rest * y < 0).choose(rest + y, rest)
    return rest.apply("eq", 0).choose((y < 0).choose(y.term(-0.0), 0.0), moved)


@operator("Mod")
def modulo(n: NodeContext) -> None:
    """With the sign of the divisor, or as C's fmod."""
    if not n.integer("fmod", 0) and n.dtype().is_float:
        return n.set(n.map(_floor_mod, n[0], n[1]))
    return n.set(n.graph.apply("fmod" if n.integer("fmod", 0) else "mod", n[0], n[1]))


@operator("BitShift")
def bit_shift(n: NodeContext) -> None:
    """To the left or to the right; by as many bits as there are or more, or by a negative number, all bits go."""
    dtype = n.dtype()
    bits = 8 * dtype.item_bytes
    is_left = n.choice("direction", "LEFT", "RIGHT") == "LEFT"

    def shifted(x: Term, count: Term) -> Term:
        is_beyond = (count >= bits).apply("or", count < 0) if dtype.is_signed else count >= bits
        if dtype.is_signed and not is_left:  # only the sign is left
            return x.apply("shift_right", is_beyond.choose(bits - 1, count))
        result = x.apply("shift_left" if is_left else "shift_right", is_beyond.choose(0, count))
        return is_beyond.choose(0, result)

    n.set(n.map(shifted, n[0], n[1]))


@operator("Where")
def where(n: NodeContext) -> None:
    """One of two values."""
    n.set(n.graph.apply("select", n[0], n[1], n[2]))


@operator("Cast")
def cast(n: NodeContext) -> None:
    """To the type that the attribute names."""
    to = n.integer("to", 0)
    if to not in ONNX_TYPES:
        raise n.refuse(f"elements of type {type_name(to)} do not occur in modules")
    n.set(n.graph.cast(ONNX_TYPES[to], n[0]))


@operator("CastLike")
def cast_like(n: NodeContext) -> None:
    """To the type of another value."""
    n.set(n.graph.cast(n.dtype(1), n[0]))


@operator("Identity", "Dropout")
def identity(n: NodeContext) -> None:
    """The input; a mask that lets everything through."""
    if n.node.op_type == "Dropout" and n.has(2) and n.scalar(2):
        raise n.refuse("a dropout in training mode is random")
    n.set(n[0])
    if len(n.node.output) > 1:
        # Before opset 10 the mask has the type of the input, and before opset 12 it is only meant for training.
        n.set(n[0], n.graph.constant(np.full(n.shape(), n.opset >= 12, n.dtype().numpy if n.opset < 10 else bool)))


@operator("IsInf")
def is_infinite(n: NodeContext) -> None:
    """Infinities of one sign or of both."""
    negative, positive = n.integer("detect_negative", 1), n.integer("detect_positive", 1)
    if not positive and not negative:
        return n.set(n.graph.constant(np.zeros(n.shape(), bool)))
    if positive and negative:
        return n.set(n.graph.apply("is_inf", n[0]))
    return n.set(n.map(lambda x: x.apply("eq", float("inf") if positive else float("-inf")), n[0]))


@operator("Reciprocal")
def reciprocal(n: NodeContext) -> None:
    """One divided by the value."""
    n.set(n.map(lambda x: 1 / x, n[0]))


def _sinh(x: Term) -> Term:
    return (x.apply("exp") - (-x).apply("exp")) * 0.5


def _cosh(x: Term) -> Term:
    return (x.apply("exp") + (-x).apply("exp")) * 0.5


_ROOT_IS_SELF: Final = 1e5
"""From here on, 1 more or less makes no difference to the square of a 32-bit float."""


def _asinh(x: Term) -> Term:
    size = x.apply("abs")
    root = (size > _ROOT_IS_SELF).choose(size, (size * size + 1).apply("sqrt"))
    return ((size * 0.5 + root * 0.5).apply("log") + math.log(2)) * x.apply("sign")


def _acosh(x: Term) -> Term:
    root = (x > _ROOT_IS_SELF).choose(x, (x * x - 1).apply("sqrt"))
    return (x * 0.5 + root * 0.5).apply("log") + math.log(2)


def _atanh(x: Term) -> Term:
    return ((1 + x) / (1 - x)).apply("log") * 0.5


@operator("Sinh", "Cosh", "Asinh", "Acosh", "Atanh")
def hyperbolic(n: NodeContext) -> None:
    """By exponentials and logarithms."""
    n.require_float()
    formulas = {"Sinh": _sinh, "Cosh": _cosh, "Asinh": _asinh, "Acosh": _acosh, "Atanh": _atanh}
    n.set(n.map(formulas[n.node.op_type], n[0]))


@operator("Clip")
def clip(n: NodeContext) -> None:
    """Between two bounds: attributes in old opsets, inputs in newer ones, each of which may be left out."""
    value, dtype = n[0], n.dtype()
    for position, name, operation in ((1, "min", "at_least"), (2, "max", "at_most")):
        if n.opset < 11:
            bound = n.attribute(name)
            if bound is not None:
                value = n.graph.apply(operation, value, n.graph.constant(np.asarray(bound, dtype.numpy)))
        elif n.has(position):
            bound_name = n[position]
            if n.shape(position):
                bound_name = n.graph.reshape(bound_name, ())
            value = n.graph.apply(operation, value, bound_name)
    n.set(value)
