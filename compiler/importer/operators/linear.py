"""Matrix products and convolutions."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from compiler.dtypes import DType
from compiler.formula import formula_of, identity
from compiler.importer.context import NodeContext
from compiler.importer.registry import operator
from compiler.ir import operations as ops

AUTO_PADS: Final = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
"""How padding may be computed from the shapes."""


def multiply(n: NodeContext, a: str, b: str) -> str:
    """Return the product of two matrices, or of stacks of them."""
    g = n.graph
    rank_a, rank_b = len(g.shape(a)), len(g.shape(b))
    left = g.reshape(a, (1, *g.shape(a))) if rank_a == 1 else a
    right = g.reshape(b, (*g.shape(b), 1)) if rank_b == 1 else b
    dtype = g.type(a).dtype
    if dtype is DType.F32:
        bias = g.constant(np.zeros(g.shape(right)[-1], np.float32))
        result = g.add(ops.MatMul(identity(DType.F32)), left, right, bias)
    else:
        # (…, M, 1, K) times (…, 1, N, K), summed over the last axis
        rows = g.reshape(left, (*g.shape(left)[:-1], 1, g.shape(left)[-1]))
        order = [*range(len(g.shape(right)) - 2), len(g.shape(right)) - 1, len(g.shape(right)) - 2]
        turned = g.transpose(right, order)
        columns = g.reshape(turned, (*g.shape(turned)[:-2], 1, *g.shape(turned)[-2:]))
        axis = max(len(g.shape(rows)), len(g.shape(columns))) - 1
        product = formula_of(lambda x, y: x * y, dtype, dtype)
        result = g.add(ops.Reduce((axis,), product, "add", identity(dtype)), rows, columns)
    shape = list(g.shape(result))
    if rank_a == 1:
        del shape[-2]
    if rank_b == 1:
        del shape[-1]
    return g.reshape(result, shape)


@operator("MatMul")
def matmul(n: NodeContext) -> None:
    """As numpy's."""
    n.require_finite()
    n.set(multiply(n, n[0], n[1]))


@operator("Gemm")
def gemm(n: NodeContext) -> None:
    """A product of two matrices, each of which may be transposed, and a sum."""
    n.require_finite()
    g = n.graph
    if n.type(0).rank != 2 or n.type(1).rank != 2:
        raise n.refuse(f"expected two matrices, got {list(n.shape(0))} and {list(n.shape(1))}")
    a = g.transpose(n[0], (1, 0)) if n.integer("transA", 0) else n[0]
    b = g.transpose(n[1], (1, 0)) if n.integer("transB", 0) else n[1]
    alpha, beta = n.number("alpha", 1.0), n.number("beta", 1.0)
    result = multiply(n, a, b)
    if alpha != 1:
        result = g.apply("mul", result, g.number(result, alpha))
    if n.has(2) and np.broadcast_shapes(n.shape(2), g.shape(result)) != g.shape(result):
        raise n.refuse(f"expected C to fit {list(g.shape(result))}, got {list(n.shape(2))}")
    if n.has(2) and beta:
        c = n[2] if beta == 1 else g.apply("mul", n[2], g.number(n[2], beta))
        result = g.apply("add", result, c)
    n.set(result)


def padding(
    n: NodeContext, lengths: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Return the padding in front of and behind each spatial axis, all fronts first."""
    mode = n.choice("auto_pad", *AUTO_PADS)
    if mode == "NOTSET":
        return n.sizes("pads", [0] * (2 * len(lengths)), least=0)
    if mode == "VALID":
        return [0] * (2 * len(lengths))
    fronts, backs = [], []
    for length, size, stride, dilation in zip(lengths, kernel, strides, dilations, strict=True):
        total = max((math.ceil(length / stride) - 1) * stride + (size - 1) * dilation + 1 - length, 0)
        small = total // 2
        fronts.append(small if mode == "SAME_UPPER" else total - small)
        backs.append(total - fronts[-1])
    return fronts + backs


def check_taps(n: NodeContext, weights: Sequence[int]) -> None:
    """Refuse filters of another size than the node says."""
    taps = n.sizes("kernel_shape", weights[2:])
    if taps != list(weights[2:]):
        raise n.refuse(f"expected filters of {taps} as kernel_shape says, got {list(weights[2:])}")


@operator("Conv")
def conv(n: NodeContext) -> None:
    """A convolution of floats."""
    n.require_finite()
    n.require_float()
    bias = n[2] if n.has(2) else n.graph.constant(np.zeros(n.shape(1)[0], np.float32))
    n.set(convolve(n, n[0], n[1], bias))


def convolve(n: NodeContext, x: str, w: str, bias: str, *, is_exact: bool = False) -> str:
    """Return a convolution of floats with the attributes of the node.

    In one or two dimensions with constant weights it has kernels of its own, otherwise it is a sum over windows.
    """
    lengths, weights = n.graph.shape(x)[2:], n.graph.shape(w)
    spatial = len(lengths)
    strides, dilations = n.sizes("strides", [1] * spatial), n.sizes("dilations", [1] * spatial)
    check_taps(n, weights)
    pads = padding(n, lengths, weights[2:], strides, dilations)
    is_constant = n.graph.value_of(w) is not None and n.graph.value_of(bias) is not None
    if spatial not in {1, 2} or not is_constant:
        padded = n.graph.add(ops.Pad((0, 0, *pads[:spatial]), (0, 0, *pads[spatial:]), 0.0), x) if any(pads) else x
        return _sum_over_windows(n, (padded, w, bias), strides, dilations)
    if spatial == 1:  # an image of one row
        x, w = (n.graph.reshape(v, (*n.graph.shape(v)[:2], 1, n.graph.shape(v)[2])) for v in (x, w))
        strides, dilations, pads = [1, *strides], [1, *dilations], [0, pads[0], 0, pads[1]]
    operation = ops.Conv(
        strides=(strides[0], strides[1]),
        dilations=(dilations[0], dilations[1]),
        pads=(pads[0], pads[1], pads[2], pads[3]),
        groups=n.integer("group", 1),
        epilogue=identity(DType.F32),
        is_exact=is_exact,
    )
    result = n.graph.add(operation, x, w, bias)
    if spatial == 1:
        shape = n.graph.shape(result)
        result = n.graph.reshape(result, (*shape[:2], shape[3]))
    return result


def _sum_over_windows(
    n: NodeContext, operands: tuple[str, str, str], strides: Sequence[int], dilations: Sequence[int]
) -> str:
    """Return a convolution in any number of dimensions of a padded image, with weights that may be computed."""
    g, groups = n.graph, n.integer("group", 1)
    x, w, bias = operands
    (batch, channels, *lengths), (out, depth, *kernel) = g.shape(x), g.shape(w)
    spatial = len(lengths)
    counts = []
    for axis in range(spatial):
        at = 2 + axis
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        counts.append((g.shape(x)[at + axis] - reach) // strides[axis] + 1)
        x = g.add(ops.Unfold(at + axis, counts[-1], strides[axis], kernel[axis], dilations[axis]), x)
    # (batch, group, 1, channel, then a window and a tap for each axis)
    split = [length for pair in zip(counts, kernel, strict=True) for length in pair]
    windows = g.reshape(x, (batch, groups, 1, channels // groups, *split))
    taps = [length for size in kernel for length in (1, size)]
    weights = g.reshape(w, (groups, out // groups, depth, *taps))
    axes = (3, *range(5, 5 + 2 * spatial, 2))
    product = formula_of(lambda a, b: a * b, DType.F32, DType.F32)
    added = formula_of(lambda t, b: t + b, DType.F32, DType.F32)
    shift = g.reshape(bias, (groups, out // groups, *([1] * spatial)))
    total = g.add(ops.Reduce(axes, product, "add", added), windows, weights, shift)
    return g.reshape(total, (batch, out, *counts))


@operator("BatchNormalization")
def batch_normalization(n: NodeContext) -> None:
    """A scale and a shift for each channel, from the statistics of training."""
    n.require_finite()
    if n.integer("training_mode", 0) or any(n.node.output[1:]):
        raise n.refuse("it is in training mode: export the model for inference")
    n.require_float()
    g, epsilon = n.graph, n.number("epsilon", 1e-5)
    shape = (n.shape()[1] if n.type().rank > 1 else 1, *([1] * (n.type().rank - 2)))
    scale, bias, mean, variance = (g.reshape(n[position], shape) for position in range(1, 5))
    factor = n.map(lambda s, v: s / (v + epsilon).apply("sqrt"), scale, variance)
    shift = n.map(lambda b, m, f: b - m * f, bias, mean, factor)
    n.set(n.map(lambda x, f, s: x * f + s, n[0], factor, shift))
