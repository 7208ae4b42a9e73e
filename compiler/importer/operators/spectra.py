"""Spectra: transforms of Fourier as products with constant matrices, and the filters of ears behind them.

Refuses lengths whose matrix would be too large; there is no fast transform.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.importer.context import NodeContext
from compiler.importer.operators.linear import multiply
from compiler.importer.registry import operator
from compiler.importer.types import ONNX_TYPES
from compiler.ir import operations as ops
from compiler.ir.builder import check_foldable

Array = NDArray[Any]


def _waves(rows: int, length: int, bins: int, parts: int, *, is_inverse: bool = False) -> Array:
    """Return the matrix from `rows` numbers of 1 or 2 parts (real, imaginary) to `bins` of two parts."""
    check_foldable(rows * parts * bins * 2, 4)
    turns = np.outer(np.arange(rows), np.arange(bins)) % length / length
    angles = (1 if is_inverse else -1) * 2 * math.pi * turns
    cos, sin = np.cos(angles), np.sin(angles)
    of_real, of_imaginary = np.stack([cos, sin], axis=-1), np.stack([-sin, cos], axis=-1)
    matrix = np.stack([of_real, of_imaginary][:parts], axis=1).reshape(rows * parts, bins * 2)
    return matrix / length if is_inverse else matrix


@operator("DFT")
def discrete_fourier(n: NodeContext) -> None:
    """Along one axis of real or complex numbers, which lie along the last."""
    n.require_float(0)
    shape, g = n.shape(), n.graph
    given = n.integer("axis", 1) if n.opset < 20 else int(n.scalar(2)) if n.has(2) else -2
    axis = n.axis(given, len(shape))
    is_inverse, is_onesided = bool(n.integer("inverse", 0)), bool(n.integer("onesided", 0))
    if axis == len(shape) - 1:
        raise n.refuse("it is along the last axis, where the parts of a number lie")
    is_half = is_inverse and is_onesided
    length = int(n.scalar(1)) if n.has(1) else 2 * (shape[axis] - 1) if is_half else shape[axis]
    rows, parts = min(length // 2 + 1 if is_half else length, shape[axis]), shape[-1]
    bins = length // 2 + 1 if is_onesided and not is_inverse else length
    cut = g.slice(n[0], [0] * len(shape), [rows if a == axis else d for a, d in enumerate(shape)])
    others = [a for a in range(len(shape) - 1) if a != axis]
    around = [shape[a] for a in others]
    wide = g.reshape(g.transpose(cut, [*others, axis, len(shape) - 1]), (math.prod(around), rows * parts))
    matrix = _waves(rows, length, bins, parts, is_inverse=is_inverse)
    if is_half:  # what the other half would add is the same; the result is real
        counts = np.where(np.arange(rows) * 2 % length == 0, 1, 2)
        matrix = matrix[:, ::2] * np.repeat(counts, parts)[:, None]
    product = multiply(n, wide, g.constant(matrix.astype(np.float32)))
    result = g.reshape(product, (*around, bins, 1 if is_half else 2))
    order = [*others, axis, len(shape) - 1]
    n.set(g.transpose(result, [order.index(a) for a in range(len(shape))]))


@operator("STFT")
def short_time_fourier(n: NodeContext) -> None:
    """Of windows of a signal, (batch, length, 1 or 2)."""
    n.require_float(0)
    batch, length, parts = n.shape()
    step = int(n.scalar(1))
    size = int(n.scalar(3)) if n.has(3) else n.shape(2)[0]
    frames = (length - size) // step + 1
    bins = size // 2 + 1 if n.integer("onesided", 1) else size
    windows = n.graph.add(ops.Unfold(1, frames, step, size, 1), n[0])
    matrix = _waves(size, size, bins, parts)
    if n.is_constant(2):
        matrix = matrix * np.repeat(n.constant(2).astype(np.float64), parts)[:, None]
    elif n.has(2):
        windows = n.graph.apply("mul", windows, n.graph.reshape(n[2], (size, 1)))
    wide = n.graph.reshape(windows, (batch, frames, size * parts))
    result = multiply(n, wide, n.graph.constant(matrix.astype(np.float32)))
    n.set(n.graph.reshape(result, (batch, frames, bins, 2)))


@operator("MelWeightMatrix")
def mel_weights(n: NodeContext) -> None:
    """How much of each bin of a spectrum each of the ear's filters, which are triangles, takes."""
    filters, length, rate_hz = (int(n.scalar(position)) for position in range(3))
    bins = length // 2 + 1
    check_foldable(bins * filters)
    low, high = (2595 * math.log10(1 + n.scalar(position) / 700) for position in (3, 4))
    mels = np.arange(filters + 2) * ((high - low) / (filters + 2)) + low
    edges = ((length + 1) * (700 * (10 ** (mels / 2595) - 1)) // rate_hz).astype(np.int64)
    place, (left, middle, right) = np.arange(bins)[:, None], (edges[start : start + filters] for start in range(3))
    rising = np.where(middle > left, (place - left) / np.maximum(middle - left, 1), place == middle)
    falling = (right - place) / np.maximum(right - middle, 1)
    is_rising = (place >= left) & (place <= middle) & ((place < middle) | (right <= middle))
    is_falling = (place >= middle) & (place < right)
    matrix = np.where(is_falling, falling, np.where(is_rising, rising, 0))
    n.set(n.graph.constant(matrix.astype(ONNX_TYPES[n.integer("output_datatype", 1)].numpy)))
