"""Pooling: windows of an image, reduced."""

import math

import numpy as np
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.formula import Formula, Term, formula_of, identity
from compiler.formula.formula import Number
from compiler.importer.context import NodeContext
from compiler.importer.operators.linear import padding
from compiler.importer.registry import operator
from compiler.ir import operations as ops
from compiler.ir.builder import check_foldable


class _Windows:
    """The windows of a pooling node: how many along each spatial axis, and the padding that they need."""

    def __init__(self, n: NodeContext) -> None:
        self.lengths = n.shape()[2:]
        spatial = len(self.lengths)
        self.kernel = n.sizes("kernel_shape", [1] * spatial)
        self.strides = n.sizes("strides", [1] * spatial)
        self.dilations = n.sizes("dilations", [1] * spatial)
        pads = padding(n, self.lengths, self.kernel, self.strides, self.dilations)
        self.fronts, self.backs = pads[:spatial], pads[spatial:]
        self.counts: list[int] = []
        for axis, length in enumerate(self.lengths):
            reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            free = length + self.fronts[axis] + self.backs[axis] - reach
            count = (math.ceil if n.integer("ceil_mode", 0) else math.floor)(free / self.strides[axis]) + 1
            if n.integer("ceil_mode", 0) and (count - 1) * self.strides[axis] >= length + self.fronts[axis]:
                count -= 1  # a window that would start in the padding behind the image
            if count < 1:
                raise n.refuse(f"its window reaches over {reach} elements, the image and its padding have fewer")
            self.counts.append(count)
            # What the last window needs beyond the image and its padding.
            self.backs[axis] = max((count - 1) * self.strides[axis] + reach - length - self.fronts[axis], 0)

    def elements(self, axis: int, low: int, high: int) -> NDArray[np.int64]:
        """Return how many taps of each window along an axis lie between two places, counted with the padding."""
        starts = np.arange(self.counts[axis])[:, None] * self.strides[axis]
        places = starts + np.arange(self.kernel[axis]) * self.dilations[axis]
        return np.asarray(((places >= low) & (places < high)).sum(axis=1), np.int64)

    def require_elements(self, n: NodeContext) -> None:
        """Refuse windows that lie in the padding alone: they have neither a greatest element nor a mean."""
        for axis, length in enumerate(self.lengths):
            if not self.elements(axis, self.fronts[axis], self.fronts[axis] + length).all():
                raise n.refuse(f"a window along axis {2 + axis} has no element of the image, only padding")

    def unfold(self, n: NodeContext, value: str, fill: Number) -> tuple[str, list[int]]:
        """Return the windows of an image with their elements as further axes, and those axes."""
        if any((*self.fronts, *self.backs)):
            value = n.graph.add(ops.Pad((0, 0, *self.fronts), (0, 0, *self.backs), fill), value)
        axes = []
        for axis in range(len(self.lengths)):
            at = 2 + 2 * axis
            cut = ops.Unfold(at, self.counts[axis], self.strides[axis], self.kernel[axis], self.dilations[axis])
            value = n.graph.add(cut, value)
            axes.append(at + 1)
        return value, axes


@operator("MaxPool")
def max_pool(n: NodeContext) -> None:
    """The greatest element of each window."""
    dtype = n.dtype()
    lowest: Number = float("-inf") if dtype.is_float else int(np.iinfo(dtype.value).min)
    shape = _Windows(n)
    shape.require_elements(n)
    windows, axes = shape.unfold(n, n[0], lowest)
    greatest = n.graph.reduce("at_least", windows, axes)
    if len(n.node.output) > 1 and n.node.output[1]:
        n.set(greatest, _places(n, shape, windows, axes))
    else:
        n.set(greatest)


def _places(n: NodeContext, shape: _Windows, windows: str, axes: list[int]) -> str:
    """Return where the first greatest element of each window is in the whole input, counted in its order of storage."""
    g, rank = n.graph, len(shape.lengths)
    around = [a for a in range(2 + 2 * rank) if a not in axes]
    rows = g.reshape(g.transpose(windows, [*around, *axes]), (*n.shape()[:2], *shape.counts, math.prod(shape.kernel)))
    tap = g.add(ops.Extreme(is_greatest=True, is_last=False), rows)
    taps = np.unravel_index(np.arange(math.prod(shape.kernel)), shape.kernel)
    is_turned = n.integer("storage_order", 0)
    images = np.arange(math.prod(n.shape()[:2])).reshape(*n.shape()[:2], *[1] * rank) * math.prod(shape.lengths)
    result = g.constant(images.astype(np.int64))
    for axis, length in enumerate(shape.lengths):
        starts = np.arange(shape.counts[axis]) * shape.strides[axis] - shape.fronts[axis]
        first = g.constant(starts.reshape([-1 if a == axis else 1 for a in range(rank)]).astype(np.int64))
        step = g.take(g.constant(taps[axis].astype(np.int64) * shape.dilations[axis]), tap, 0)
        others = shape.lengths[:axis] if is_turned else shape.lengths[axis + 1 :]

        def moved(r: Term, s: Term, t: Term, last: int = length - 1, stride: int = math.prod(others)) -> Term:
            # Padding is the greatest only where all elements are the least, then the nearest one stands for it.
            return r + (s + t).apply("at_least", 0).apply("at_most", last) * stride

        result = n.map(moved, result, first, step)
    return result


@operator("MaxUnpool")
def max_unpool(n: NodeContext) -> None:
    """Elements back where they were the greatest of their windows, zeros elsewhere."""
    n.require_float(0)
    shape, g = n.shape(), n.graph
    spatial = len(shape) - 2
    kernel, strides = n.sizes("kernel_shape", [1] * spatial), n.sizes("strides", [1] * spatial)
    pads = n.sizes("pads", [0] * 2 * spatial, least=0)
    sides = zip(shape[2:], kernel, strides, pads[:spatial], pads[spatial:], strict=True)
    pooled = (*shape[:2], *((d - 1) * step + size - front - back for d, size, step, front, back in sides))
    check_foldable(math.prod(pooled), 4)
    zeros = g.constant(np.zeros(math.prod(pooled), np.float32))
    count = n.type().elements
    flat = g.add(ops.Scatter(None), zeros, g.reshape(n[0], (count,)), g.reshape(n[1], (count,)))
    whole = g.reshape(flat, pooled)
    wanted = n.constant_integers(2) if n.has(2) else pooled
    behind = tuple(w - d for w, d in zip(wanted, pooled, strict=True))  # the indices count without them
    n.set(g.add(ops.Pad((0,) * len(shape), behind, 0.0), whole) if any(behind) else whole)


@operator("AveragePool")
def average_pool(n: NodeContext) -> None:
    """The mean of each window, with or without the padding."""
    n.require_float()
    n.set(averaged(n, n[0]))


def averaged(n: NodeContext, image: str) -> str:
    """Return the mean of each window of an image of floats, which has the shape of the first input."""
    shape = _Windows(n)
    windows, axes = shape.unfold(n, image, 0.0)
    counts = _counts(n, shape)
    if (counts == counts.flat[0]).all():
        scale = 1 / float(counts.flat[0])
        return n.graph.reduce("add", windows, axes, formula_of(lambda t: t * scale, DType.F32))
    inverse = n.graph.constant((1 / counts).astype(np.float32))
    finish = formula_of(lambda t, i: t * i, DType.F32, DType.F32)
    return n.graph.add(ops.Reduce(tuple(axes), identity(DType.F32), "add", finish), windows, inverse)


def _counts(n: NodeContext, shape: _Windows) -> NDArray[np.float64]:
    """Return how many elements count in each window."""
    includes_padding = bool(n.integer("count_include_pad", 0))
    if not includes_padding:
        shape.require_elements(n)
    spatial = len(shape.lengths)
    declared = padding(n, shape.lengths, shape.kernel, shape.strides, shape.dilations)
    counts = np.ones((1,) * spatial)
    for axis, length in enumerate(shape.lengths):
        low = 0 if includes_padding else shape.fronts[axis]
        high = shape.fronts[axis] + length + (declared[spatial + axis] if includes_padding else 0)
        inside = shape.elements(axis, low, high)
        counts = counts * inside.reshape([-1 if a == axis else 1 for a in range(spatial)])
    return counts


@operator("LpPool")
def lp_pool(n: NodeContext) -> None:
    """The norm of each window."""
    n.require_float()
    windows, axes = _Windows(n).unfold(n, n[0], 0.0)
    n.set(n.graph.add(ops.Reduce(tuple(axes), _power(n), "add", _root(n)), windows))


def _power(n: NodeContext) -> Formula:
    """Return what the norm of the node adds up."""
    p = n.integer("p", 2)
    return formula_of(lambda x: x * x if p == 2 else x.apply("abs").apply("pow", float(p)), DType.F32)


def _root(n: NodeContext) -> Formula:
    """Return what the norm of the node makes of the sum."""
    p = n.integer("p", 2)
    return formula_of(lambda t: t.apply("sqrt") if p == 2 else t.apply("pow", 1 / p), DType.F32)


@operator("GlobalLpPool")
def global_lp_pool(n: NodeContext) -> None:
    """The norm of each channel."""
    shape, axes = n.shape(), tuple(range(2, n.type().rank))
    pooled = n.graph.add(ops.Reduce(axes, _power(n), "add", _root(n)), n[0])
    n.set(n.graph.reshape(pooled, (*shape[:2], *[1] * len(axes))))


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(n: NodeContext) -> None:
    """One number for each channel."""
    shape = n.shape()
    axes = range(2, len(shape))
    if n.node.op_type == "GlobalMaxPool":
        pooled = n.graph.reduce("max", n[0], axes)
    else:
        scale = 1 / math.prod(shape[2:])
        pooled = n.graph.reduce("add", n[0], axes, formula_of(lambda t: t * scale, n.dtype()))
    n.set(n.graph.reshape(pooled, (*shape[:2], *([1] * len(axes)))))
