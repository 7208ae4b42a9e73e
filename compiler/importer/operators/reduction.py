"""Reductions, normalisations and the search for extremes."""

import math
from collections.abc import Callable
from typing import Final

from compiler.dtypes import DType
from compiler.formula import Formula, Term, formula_of, identity
from compiler.importer.context import NodeContext
from compiler.importer.registry import operator
from compiler.ir import operations as ops

_PLAIN: Final[dict[str, tuple[str, Callable[[Term], Term], Callable[[Term], Term]]]] = {
    "ReduceL1": ("add", lambda x: x.apply("abs"), lambda t: t),
    "ReduceL2": ("add", lambda x: x * x, lambda t: t.apply("sqrt")),
    "ReduceLogSum": ("add", lambda x: x, lambda t: t.apply("log")),
    "ReduceMax": ("max", lambda x: x, lambda t: t),
    "ReduceMin": ("min", lambda x: x, lambda t: t),
    "ReduceProd": ("mul", lambda x: x, lambda t: t),
    "ReduceSum": ("add", lambda x: x, lambda t: t),
    "ReduceSumSquare": ("add", lambda x: x * x, lambda t: t),
}
"""How to combine what becomes of each element, and what becomes of the result."""


def reduced_axes(n: NodeContext) -> list[int] | None:
    """Return the axes to reduce, or None when there is nothing to do."""
    rank = n.type().rank
    given = n.integers_or_input("axes", 1)
    if not given:
        return None if n.integer("noop_with_empty_axes", 0) else list(range(rank))
    return sorted({n.axis(axis, rank) for axis in given})


def keep_dimensions(n: NodeContext, value: str, axes: list[int]) -> str:
    """Return a reduced value with dimensions of 1 in place of those that vanished, if the node wants them."""
    if not n.integer("keepdims", 1):
        return value
    return n.graph.reshape(value, [1 if axis in axes else length for axis, length in enumerate(n.shape())])


@operator(*_PLAIN, "ReduceMean")
def reduce(n: NodeContext) -> None:
    """Combine over axes."""
    axes = reduced_axes(n)
    dtype = n.dtype()
    combine, element, finish = _PLAIN.get(n.node.op_type, ("add", lambda x: x, lambda t: t))
    if axes is None:
        return n.set(n.map(lambda x: finish(element(x)), n[0]))
    if n.node.op_type == "ReduceMean":
        count = math.prod(n.shape()[axis] for axis in axes)
        finish = (lambda t: t * (1 / count)) if dtype.is_float else (lambda t: t / count)
    if n.node.op_type in {"ReduceL2", "ReduceLogSum"} and dtype.is_integer:
        of_floats = finish
        finish = lambda t: of_floats(t.cast(DType.F32)).cast(dtype)  # noqa: E731 - one of several
    if dtype is DType.BOOL:
        combine = {"max": "or", "min": "and"}.get(combine, combine)
    operation = ops.Reduce(tuple(axes), formula_of(element, dtype), combine, formula_of(finish, dtype))
    return n.set(keep_dimensions(n, n.graph.add(operation, n[0]), axes))


@operator("ReduceLogSumExp")
def reduce_log_sum_exp(n: NodeContext) -> None:
    """The logarithm of the sum of powers; the greatest exponent is taken off first."""
    n.require_float(0)
    axes = reduced_axes(n)
    if axes is None:
        return n.set(n[0])
    top = n.graph.reduce("max", n[0], axes)
    spread = n.graph.reshape(top, [1 if axis in axes else length for axis, length in enumerate(n.shape())])
    # Where everything is infinite, nothing is taken off: infinity less infinity is no number.
    shift = n.map(lambda t: t.apply("is_inf").choose(0, t), spread)
    total = n.graph.add(
        ops.Reduce(
            tuple(axes),
            formula_of(lambda x, s: (x - s).apply("exp"), DType.F32, DType.F32),
            "add",
            formula_of(lambda t, s: t.apply("log") + s, DType.F32, DType.F32),
        ),
        n[0],
        shift,
        n.graph.reshape(shift, n.graph.shape(top)),
    )
    return n.set(keep_dimensions(n, total, axes))


def mean_of(n: NodeContext, value: str, axes: list[int], element: Callable[..., Term], *others: str) -> str:
    """Return the mean of what `element` makes of values; the axes stay, with length 1."""
    shape = n.graph.shape(value)
    count = math.prod(shape[axis] for axis in axes)
    dtype = n.graph.type(value).dtype
    formula = formula_of(element, dtype, *(n.graph.type(o).dtype for o in others))
    finish: Formula = formula_of(lambda t: t * (1 / count), dtype) if count > 1 else identity(dtype)
    total = n.graph.add(ops.Reduce(tuple(axes), formula, "add", finish), value, *others)
    return n.graph.reshape(total, [1 if axis in axes else length for axis, length in enumerate(shape)])


@operator("LayerNormalization")
def layer_normalization(n: NodeContext) -> None:
    """Mean 0 and variance 1 over the last axes, then scale and bias."""
    n.require_finite()
    n.require_float(0)
    rank = n.type().rank
    axes = list(range(n.axis(n.integer("axis", -1), rank), rank))
    epsilon = n.number("epsilon", 1e-5)
    mean = mean_of(n, n[0], axes, lambda x: x)
    centred = n.map(lambda x, m: x - m, n[0], mean)
    variance = mean_of(n, n.map(lambda c: c * c, centred), axes, lambda s: s)
    deviation = n.graph.apply("sqrt", n.map(lambda v: v + epsilon, variance))
    result = n.graph.apply("mul", n.graph.apply("div", centred, deviation), n[1])
    inverse = n.map(lambda d: 1 / d, deviation)
    n.set(n.graph.apply("add", result, n[2]) if n.has(2) else result, mean, inverse)


@operator("InstanceNormalization")
def instance_normalization(n: NodeContext) -> None:
    """Mean 0 and variance 1 over each channel of each image, then scale and bias for each channel."""
    n.require_float(0)
    shape = n.shape()
    axes = list(range(2, len(shape)))
    epsilon = n.number("epsilon", 1e-5)
    mean = mean_of(n, n[0], axes, lambda x: x)
    variance = mean_of(n, n[0], axes, lambda x, m: (x - m) * (x - m), mean)
    scale, bias = (n.graph.reshape(n[p], (shape[1], *([1] * (len(shape) - 2)))) for p in (1, 2))
    n.set(n.map(lambda x, m, v, s, b: (x - m) / (v + epsilon).apply("sqrt") * s + b, n[0], mean, variance, scale, bias))


@operator("LpNormalization")
def lp_normalization(n: NodeContext) -> None:
    """Divided by a norm along one axis."""
    n.require_float(0)
    shape = n.shape()
    axis = n.axis(n.integer("axis", -1), len(shape))
    combine, element, finish = _PLAIN["ReduceL1" if n.integer("p", 2) == 1 else "ReduceL2"]
    operation = ops.Reduce((axis,), formula_of(element, DType.F32), combine, formula_of(finish, DType.F32))
    norm = n.graph.reshape(n.graph.add(operation, n[0]), [1 if a == axis else d for a, d in enumerate(shape)])
    n.set(n.map(lambda x, t: (t <= 0).choose(0, x / t), n[0], norm))


@operator("LRN")
def local_response_normalization(n: NodeContext) -> None:
    """Divided by a power of the sum of squares over neighbouring channels."""
    n.require_float(0)
    size, rank = n.integer("size", 1), n.type().rank
    alpha, beta, bias = n.number("alpha", 1e-4), n.number("beta", 0.75), n.number("bias", 1.0)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    around = [(before, after) if axis == 1 else (0, 0) for axis in range(rank)]
    padded = n.graph.add(ops.Pad(tuple(b for b, _ in around), tuple(a for _, a in around), 0.0), n[0])
    windows = n.graph.add(ops.Unfold(1, n.shape()[1], 1, size, 1), padded)
    finish = formula_of(lambda t, x: x / (t * (alpha / size) + bias).apply("pow", beta), DType.F32, DType.F32)
    operation = ops.Reduce((2,), formula_of(lambda x: x * x, DType.F32), "add", finish)
    n.set(n.graph.add(operation, windows, n[0]))
