"""Quantised operators: whole numbers that stand for floats, (number - zero point) * scale.

Products of 8-bit numbers are whole numbers that 32-bit floats hold exactly as long as a sum stays below 2**24: they are
computed by the kernels of floats, in parts of the depth that keep that bound, and added up as 32-bit integers.
"""

from collections.abc import Iterable
from functools import reduce
from typing import Final

import numpy as np

from compiler.dtypes import DType
from compiler.formula import Term, formula_of
from compiler.importer.context import NodeContext
from compiler.importer.operators.linear import convolve, multiply
from compiler.importer.registry import operator
from compiler.importer.types import ONNX_TYPES

_EXACT: Final = 1 << 24
"""Up to here every whole number is a 32-bit float."""
_NARROW: Final = frozenset({DType.U8, DType.I8, DType.U16, DType.I16})


def _spread(n: NodeContext, value: str, shape: tuple[int, ...], axis: int) -> str:
    """Return scales or zero points so that they broadcast: one, or one for each entry or block of an axis."""
    own = n.graph.shape(value)
    if len(own) == len(shape) and len(own) > 1:
        length, blocks = shape[axis], own[axis]
        size = n.integer("block_size", 0) or -(-length // blocks)
        return value if blocks == length else n.graph.take(value, n.graph.constant(np.arange(length) // size), axis)
    if own in {(), (1,)}:
        return n.graph.reshape(value, ())
    return n.graph.reshape(value, [own[0] if a == axis else 1 for a in range(len(shape))])


def quantise(n: NodeContext, value: str, scale: str, zero: str | None, dtype: DType) -> str:
    """Return round(value / scale) + zero point, in the range of a type; operands broadcast."""
    if dtype not in _NARROW:
        raise n.refuse(f"quantised numbers of type {dtype.value} are not implemented")
    if zero is None:
        return n.map(lambda x, s: (x / s).apply("round").cast(dtype), value, scale)
    return n.map(lambda x, s, z: ((x / s).apply("round") + z.cast(DType.F32)).cast(dtype), value, scale, zero)


def dequantise(n: NodeContext, value: str, scale: str, zero: str | None) -> str:
    """Return (value - zero point) * scale; operands broadcast."""
    if zero is None:
        return n.map(lambda x, s: x.cast(DType.F32) * s, value, scale)
    return n.map(lambda x, s, z: (x.cast(DType.I32) - z.cast(DType.I32)).cast(DType.F32) * s, value, scale, zero)


@operator("QuantizeLinear")
def quantize_linear(n: NodeContext) -> None:
    """To whole numbers."""
    if n.dtype() is DType.I32:
        value = n.graph.cast(DType.F32, n[0])
    else:
        n.require_float(0)
        value = n[0]
    shape = n.shape()
    axis = n.axis(n.integer("axis", 1), len(shape)) if shape and n.type(1).elements > 1 else 0
    kind = n.integer("output_dtype", 0)
    if kind and kind not in ONNX_TYPES:
        raise n.refuse(f"quantised numbers of type {kind} are not implemented")
    dtype = n.dtype(2) if n.has(2) else ONNX_TYPES[kind] if kind else DType.U8
    zero = _spread(n, n[2], shape, axis) if n.has(2) else None
    n.set(quantise(n, value, _spread(n, n[1], shape, axis), zero, dtype))


@operator("DequantizeLinear")
def dequantize_linear(n: NodeContext) -> None:
    """Back to floats."""
    n.require_float(1)
    shape = n.shape()
    axis = n.axis(n.integer("axis", 1), len(shape)) if shape and n.type(1).elements > 1 else 0
    zero = _spread(n, n[2], shape, axis) if n.has(2) else None
    n.set(dequantise(n, n[0], _spread(n, n[1], shape, axis), zero))


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(n: NodeContext) -> None:
    """To bytes, by the range that the values have."""
    n.require_float(0)
    axes = list(range(n.type().rank))
    low, high = (
        n.graph.reduce(combine, n[0], axes, formula_of(lambda x, to_zero=to_zero: x.apply(to_zero, 0), DType.F32))
        for combine, to_zero in (("min", "at_most"), ("max", "at_least"))
    )
    scale = n.map(lambda a, b: (b <= a).choose(1, (b - a) / 255), low, high)
    zero = n.map(lambda a, s: (-a / s).apply("round").cast(DType.U8), low, scale)
    n.set(quantise(n, n[0], scale, zero, DType.U8), scale, zero)


class Integers:
    """An operand of a product: its numbers less the zero point, as floats, and how large they can be."""

    def __init__(self, n: NodeContext, position: int, zero: int, axis: int) -> None:
        dtype = n.dtype(position)
        if dtype not in {DType.U8, DType.I8}:
            raise n.refuse(f"products of {dtype.value} are not implemented")
        low, high = (0, 255) if dtype is DType.U8 else (-128, 127)
        if n.has(zero):
            spread = along(n, zero, position, axis)
            self.value = n.map(lambda x, z: x.cast(DType.F32) - z.cast(DType.F32), n[position], spread)
            offsets = n.constant(zero).astype(np.int64) if n.is_constant(zero) else np.array([low, high])
        else:
            self.value = n.graph.cast(DType.F32, n[position])
            offsets = np.zeros(1, np.int64)
        numbers = n.graph.value_of(self.value)
        reach = max(high - int(offsets.min()), int(offsets.max()) - low)
        self.largest = reach if numbers is None else max(int(np.abs(numbers).max(initial=0)), 1)


def along(n: NodeContext, position: int, operand: int, axis: int) -> str:
    """Return zero points or scales of an operand so that they broadcast: one, or one for each entry of an axis."""
    own, rank = n.shape(position), n.type(operand).rank
    if len(own) <= 1:
        return _spread(n, n[position], n.shape(operand), axis % rank)
    return n[position]


def _depth_parts(depth: int, largest: int) -> list[tuple[int, int]]:
    """Return cuts of the depth of a product, from and to, whose sums are exact."""
    length = max(_EXACT // largest, 1)
    return [(start, min(start + length, depth)) for start in range(0, depth, length)]


def _total(n: NodeContext, parts: Iterable[str]) -> str:
    """Return the sum of exact floats as 32-bit integers."""
    return reduce(lambda a, b: n.graph.apply("add", a, b), (n.graph.cast(DType.I32, part) for part in parts))


def _cut(n: NodeContext, value: str, axis: int, part: tuple[int, int]) -> str:
    shape = n.graph.shape(value)
    at = axis % len(shape)
    starts = [part[0] if a == at else 0 for a in range(len(shape))]
    return n.graph.slice(value, starts, [part[1] - part[0] if a == at else d for a, d in enumerate(shape)])


def product_of(n: NodeContext, a: Integers, b: Integers) -> str:
    """Return the exact product of matrices of bytes, as 32-bit integers."""
    depth = n.graph.shape(a.value)[-1]
    along = 0 if len(n.graph.shape(b.value)) == 1 else -2
    parts = _depth_parts(depth, a.largest * b.largest)
    return _total(n, (multiply(n, _cut(n, a.value, -1, part), _cut(n, b.value, along, part)) for part in parts))


@operator("MatMulInteger")
def matmul_integer(n: NodeContext) -> None:
    """A product of bytes, as 32-bit integers."""
    n.set(product_of(n, Integers(n, 0, 2, -2), Integers(n, 1, 3, -1)))


@operator("QLinearMatMul")
def quantised_matmul(n: NodeContext) -> None:
    """A product of quantised matrices, quantised."""
    total = product_of(n, Integers(n, 0, 2, -2), Integers(n, 3, 5, -1))
    left, right = along(n, 1, 0, -2), along(n, 4, 3, -1)
    factor = n.map(lambda a, b, y: a * b / y, left, right, n.graph.reshape(n[6], ()))
    n.set(_requantise(n, total, factor, 7))


def _requantise(n: NodeContext, total: str, factor: str, zero: int) -> str:
    """Return sums of products in the scale of the result."""
    dtype = n.dtype(zero)

    def formula(x: Term, f: Term, z: Term) -> Term:
        return ((x.cast(DType.F32) * f).apply("round") + z.cast(DType.F32)).cast(dtype)

    return n.map(formula, total, factor, n.graph.reshape(n[zero], ()))


def _convolve(n: NodeContext, x: Integers, w: Integers, bias: str | None = None) -> str:
    out, depth, *kernel = n.graph.shape(w.value)
    largest = x.largest * w.largest * int(np.prod(kernel))
    none = n.graph.constant(np.zeros(out, np.float32))
    parts = _depth_parts(depth, largest)
    if n.integer("group", 1) == 1:
        pairs = [(_cut(n, x.value, 1, part), _cut(n, w.value, 1, part)) for part in parts]
    elif len(parts) == 1:
        pairs = [(x.value, w.value)]
    else:
        raise n.refuse("a grouped convolution of bytes that is so deep is not implemented")
    total = _total(n, [convolve(n, image, weights, none, is_exact=True) for image, weights in pairs])
    if bias is None:
        return total
    return n.graph.apply("add", total, n.graph.reshape(bias, (out, *[1] * len(kernel))))


@operator("ConvInteger")
def conv_integer(n: NodeContext) -> None:
    """A convolution of bytes, as 32-bit integers."""
    n.set(_convolve(n, Integers(n, 0, 2, 1), Integers(n, 1, 3, 0)))


@operator("QLinearConv")
def quantised_conv(n: NodeContext) -> None:
    """A convolution of quantised numbers, quantised."""
    total = _convolve(n, Integers(n, 0, 2, 1), Integers(n, 3, 5, 0), n[8] if n.has(8) else None)
    scales = n[4] if n.shape(4) in {(), (1,)} else n.graph.reshape(n[4], (n.shape(4)[0], *[1] * (n.type().rank - 2)))
    one, result = n.graph.reshape(n[1], ()), n.graph.reshape(n[6], ())
    factor = n.map(lambda a, b, y: a * b / y, one, scales, result)
    n.set(_requantise(n, total, factor, 7))
