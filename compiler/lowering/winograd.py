"""Convolutions of 3 x 3 through 16 or 36 matrix products, where that takes less time; band by band of the image."""

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from compiler.dtypes import DType
from compiler.formula import identity
from compiler.ir import operations as ops
from compiler.kernels.tiles import TileKernel, Window, pack_panels, write_tiles
from compiler.kernels.walk import FLOAT_BYTES, LANES, Floats, Walk
from compiler.kernels.winograd import (
    STEPS,
    WindowsKernel,
    side,
    transformed_filters,
    write_from_windows,
    write_into_windows,
)
from compiler.lowering.epilogue import EpilogueKernel, finish_with, walk
from compiler.lowering.lowering import Lowering
from compiler.lowering.placement import Placement
from compiler.lowering.step import Emitter, each_image
from compiler.lowering.storing import Stored, stored_filters
from compiler.lowering.tiling import choose_tiling
from compiler.wasm import I32Local

_BAND_BYTES: Final = 768 * 1024
"""What one band takes between the transformations, unless the filters are larger."""
_TRANSFORMING: Final = 4
"""What it takes to transform a number of a window, as so many multiply-adds."""
_READING_NEAR: Final = 2
"""What it takes to read a number of the filters, likewise; of all filters that are no larger than `_NEAR_BYTES`."""
_READING_FAR: Final = 8
_NEAR_BYTES: Final = 1 << 20
_WORTH: Final = 0.9
"""A scheme whose filters take more memory has to be so much faster than others."""
_LEAST_SIDE: Final = 4
_GREATEST_WEIGHT: Final = 1e38
"""Filters become up to 2.25 times greater, and are to stay finite."""
_CHANNEL, _ROW, _PIXEL = 1, 2, 3


class Convolution(msgspec.Struct, frozen=True):
    """A convolution whose operands have their places."""

    operation: ops.Conv
    image: Placement
    """With zeros around it as wide as the padding, channels together."""
    output: Placement
    extras: tuple[Placement, ...]


def best_step(operation: ops.Conv, weights: Floats, output: Placement) -> int | None:
    """Return how far apart the windows of the fastest scheme are; None where a plain product is faster.

    It is for convolutions of 3 x 3 in steps of 1, and pays for many channels. It rounds where a plain product is exact.
    """
    out, channels, *taps = weights.shape
    is_plain = (operation.strides, operation.dilations, operation.groups) == ((1, 1), (1, 1), 1)
    is_safe = not operation.is_exact and np.abs(weights).max(initial=0) < _GREATEST_WEIGHT
    rows, columns = output.shape[_ROW:]
    if (
        not (is_plain and is_safe)
        or taps != [3, 3]
        or out % LANES
        or channels % LANES
        or min(rows, columns) < _LEAST_SIDE
    ):
        return None
    best, least = None, _time(9 * channels * out, rows * columns)
    for step in STEPS:
        windows, products = -(-rows // step) * -(-columns // step), side(step) ** 2
        time = _time(products * channels * out, windows) + _TRANSFORMING * products * windows * (channels + out)
        if time < (least if best is None else _WORTH * least):
            best, least = step, time
    return best


def _time(filter_numbers: int, times: int) -> float:
    """Return what it takes to read all filters and to use each number of them so many times, in multiply-adds."""
    reading = _READING_NEAR if filter_numbers * FLOAT_BYTES <= _NEAR_BYTES else _READING_FAR
    return filter_numbers * (times + reading)


def add_winograd(low: Lowering, conv: Convolution, step: int, weights: Floats, bias: Floats) -> None:
    """Add the step of a convolution for which it pays."""
    _Bands(low, conv, step).add(weights, bias)


def cut(rows: int, step: int, most_window_rows: int) -> tuple[int, list[int]]:
    """Return how many rows of pixels each band has, and where they start: the fewest of so many rows of windows."""
    window_rows = -(-rows // step)
    bands = -(-window_rows // max(1, min(most_window_rows, window_rows)))
    band_rows = min(rows, step * -(-window_rows // bands))
    return band_rows, [min(start, rows - band_rows) for start in range(0, rows, band_rows)]


class _Bands:
    """A convolution, cut into bands of as many rows each; the last one may overlap the one before."""

    def __init__(self, low: Lowering, conv: Convolution, step: int) -> None:
        self._low, self._conv, self._step, self._products = low, conv, step, side(step) ** 2
        channels, out = conv.image.shape[_CHANNEL], conv.output.shape[_CHANNEL]
        height, columns = conv.output.shape[_ROW:]
        row_bytes = self._products * -(-columns // step) * (channels + out) * FLOAT_BYTES
        most = max(_BAND_BYTES, self._products * channels * out * FLOAT_BYTES) // row_bytes
        rows, self._starts = cut(height, step, most)
        self._walks = tuple(walk(p, _ROW, _PIXEL, _CHANNEL) for p in (conv.image, conv.output, *conv.extras))
        self._into = WindowsKernel(step, rows, columns, channels, self._walks[0])
        self._back = WindowsKernel(step, rows, columns, out, self._walks[1])
        self._product = self._product_kernel()

    def _product_kernel(self) -> TileKernel:
        windows, channels, out = self._into.windows, self._into.channels, self._back.channels
        tiling = choose_tiling(windows, channels, out)
        return TileKernel(
            rows=1,
            pixels=windows,
            channels=out,
            window=Window(channels),
            a=Walk(channels * FLOAT_BYTES, 0),
            c=Walk(out * FLOAT_BYTES, 0),
            tile_pixels=tiling.tile_pixels,
            panel_vectors=tiling.panel_vectors,
            is_panel_outside=tiling.is_panel_outside,
        )

    def _stored(self, weights: Floats) -> Stored:
        """Return how to store the filters, which the module transforms when it starts."""
        taps = weights.transpose(1, 2, 3, 0).reshape(-1, len(weights))
        plain = pack_panels(self._product, taps, np.zeros(len(weights), np.float32))
        return stored_filters(plain, self._step, self._product.panels * self._product.panel_bytes)

    def _packed(self, weights: Floats) -> Floats:
        """Return all filters in panels, without a bias."""
        none = np.zeros(len(weights), np.float32)
        return np.concatenate(
            [pack_panels(self._product, matrix, none) for matrix in transformed_filters(weights, self._step)]
        )

    def add(self, weights: Floats, bias: Floats) -> None:
        conv, low = self._conv, self._low
        filters = low.constant(self._packed(weights), store=lambda: self._stored(weights))
        added = low.constant(bias)
        values = (conv.image, conv.output, *conv.extras)
        planes = [low.scratch(self._products * kernel.plane_bytes) for kernel in (self._into, self._back)]
        buffers = [*planes, low.scratch(self._product.scratch_bytes), filters, added]

        def emit(e: Emitter) -> None:

            def write(images: Sequence[I32Local]) -> None:
                for start in self._starts:
                    self._emit_band(e, buffers, images, start)

            each_image(e, values, write)

        low.step(
            [conv.image, *conv.extras, filters, added],
            [conv.output, *buffers[:3]],
            emit,
            multiply_adds=math.prod(conv.output.shape) * 9 * self._into.channels,
        )

    def _emit_band(self, e: Emitter, buffers: Sequence[int], images: Sequence[I32Local], start: int) -> None:
        """Write the calls for one band of an image, its result and its extras."""
        conv, product, target = self._conv, self._product, self._low.target
        epilogue, none = conv.operation.epilogue, identity(DType.F32)
        into, back, scratch, filters, bias = (e.buffer_address(buffer) for buffer in buffers)
        top, left, _, _ = conv.operation.pads
        image = images[0] + ((start - top) * conv.image.byte_stride(_ROW) - left * conv.image.byte_stride(_PIXEL))
        places = [p + start * v.byte_stride(_ROW) for p, v in zip(images[1:], (conv.output, *conv.extras), strict=True)]
        transform = e.kernel(self._into, lambda f: write_into_windows(f, self._into, target))
        e.do(transform(into, image))
        multiply = e.kernel(
            EpilogueKernel(product, none, ()),
            lambda f: write_tiles(f, product, target, (), finish_with(f, target, none)),
        )
        for n in range(self._products):
            a, c = into + n * self._into.plane_bytes, back + n * self._back.plane_bytes
            e.do(multiply(a, filters + n * product.panels * product.panel_bytes, c, scratch))
        walks = self._walks[2:]
        finish = e.kernel(
            EpilogueKernel(self._back, epilogue, walks),
            lambda f: write_from_windows(f, self._back, target, walks, finish_with(f, target, epilogue)),
        )
        e.do(finish(places[0], back, bias, *places[1:]))
