"""Convolutions of 3 x 3 through 16 matrix products, where that takes less time; band by band of the image."""

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from compiler.dtypes import DType
from compiler.formula import identity
from compiler.ir import operations as ops
from compiler.kernels.tiles import FLOAT_BYTES, Floats, TileKernel, Walk, Window, pack_panels, write_tiles
from compiler.kernels.winograd import (
    BIASED,
    SIDE,
    STEP,
    WindowsKernel,
    transformed_filters,
    write_from_windows,
    write_into_windows,
)
from compiler.lowering.epilogue import EpilogueKernel, finish_with, walk
from compiler.lowering.lowering import Lowering
from compiler.lowering.placement import Placement
from compiler.lowering.step import Emitter
from compiler.lowering.tiling import choose_tiling

_PRODUCTS: Final = SIDE * SIDE
_BAND_BYTES: Final = 768 * 1024
"""What one band takes between the transformations, unless the filters are larger."""
_TRANSFORMING: Final = 7
"""What it takes to transform a channel of a window, as so many multiply-adds of another channel."""
_CHANNEL, _ROW, _PIXEL = 1, 2, 3


class Convolution(msgspec.Struct, frozen=True):
    """A convolution whose operands have their places."""

    operation: ops.Conv
    image: Placement
    """With zeros around it as wide as the padding, channels together."""
    output: Placement
    extras: tuple[Placement, ...]


def pays(operation: ops.Conv, weights: Floats, output: Placement) -> bool:
    """Whether a convolution is one of 3 x 3 in steps of 1, with so many channels that the transformations pay."""
    out, channels, *taps = weights.shape
    is_plain = (operation.strides, operation.dilations, operation.groups) == ((1, 1), (1, 1), 1)
    if not is_plain or taps != [3, 3] or out % 4 or channels % 4 or min(output.shape[_ROW:]) < SIDE:
        return False
    return bool(channels * out > _TRANSFORMING * (channels + out))


def add_winograd(low: Lowering, conv: Convolution, weights: Floats, bias: Floats) -> None:
    """Add the step of a convolution for which it pays."""
    _Bands(low, conv, weights, bias).add()


def cut(rows: int, most_window_rows: int) -> tuple[int, list[int]]:
    """Return how many rows of pixels each band has, and where they start: the fewest of so many rows of windows."""
    window_rows = -(-rows // STEP)
    bands = -(-window_rows // max(1, min(most_window_rows, window_rows)))
    band_rows = min(rows, STEP * -(-window_rows // bands))
    return band_rows, [min(start, rows - band_rows) for start in range(0, rows, band_rows)]


class _Bands:
    """A convolution, cut into bands of as many rows each; the last one may overlap the one before."""

    def __init__(self, low: Lowering, conv: Convolution, weights: Floats, bias: Floats) -> None:
        self._low, self._conv = low, conv
        out, channels = weights.shape[:2]
        self._rows, columns = conv.output.shape[_ROW:]
        row_bytes = _PRODUCTS * -(-columns // STEP) * (channels + out) * FLOAT_BYTES
        most = max(_BAND_BYTES, _PRODUCTS * channels * out * FLOAT_BYTES) // row_bytes
        rows, self._starts = cut(self._rows, most)
        self._walks = tuple(walk(p, _ROW, _PIXEL, _CHANNEL) for p in (conv.image, conv.output, *conv.extras))
        self._into = WindowsKernel(rows, columns, channels, self._walks[0])
        self._back = WindowsKernel(rows, columns, out, self._walks[1])
        self._product = self._product_kernel()
        self._filters = low.constant(self._packed(weights, bias))

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

    def _packed(self, weights: Floats, bias: Floats) -> Floats:
        """Return all filters in panels; the bias is added to one product only."""
        none = np.zeros_like(bias)
        matrices = enumerate(transformed_filters(weights))
        panels = [pack_panels(self._product, matrix, bias if n == BIASED else none) for n, matrix in matrices]
        return np.concatenate(panels)

    def add(self) -> None:
        conv, low = self._conv, self._low
        planes = [low.scratch(_PRODUCTS * kernel.plane_bytes) for kernel in (self._into, self._back)]
        scratch = low.scratch(self._product.scratch_bytes)

        def emit(e: Emitter) -> None:
            for number in range(conv.output.shape[0]):
                for start in self._starts:
                    self._emit_band(e, [*planes, scratch], number, start)

        low.step(
            [conv.image, *conv.extras, self._filters],
            [conv.output, *planes, scratch],
            emit,
            multiply_adds=math.prod(conv.output.shape) * 9 * self._into.channels,
        )

    def _emit_band(self, e: Emitter, buffers: Sequence[int], number: int, start: int) -> None:
        """Write the calls for one band of one image of the batch."""
        conv, product, target = self._conv, self._product, self._low.target
        epilogue, none = conv.operation.epilogue, identity(DType.F32)
        into, back, scratch = (e.buffer_address(buffer) for buffer in buffers)
        places = [
            e.address(p) + number * p.byte_stride(0) + start * p.byte_stride(_ROW)
            for p in (conv.image, conv.output, *conv.extras)
        ]
        top, left, _, _ = conv.operation.pads
        image = places[0] - top * conv.image.byte_stride(_ROW) - left * conv.image.byte_stride(_PIXEL)
        transform = e.kernel(self._into, lambda f: write_into_windows(f, self._into))
        e.do(transform(into, image))
        multiply = e.kernel(
            EpilogueKernel(product, none, ()),
            lambda f: write_tiles(f, product, target, (), finish_with(f, target, none)),
        )
        filters = e.buffer_address(self._filters)
        for n in range(_PRODUCTS):
            a, c = into + n * self._into.plane_bytes, back + n * self._back.plane_bytes
            e.do(multiply(a, filters + n * product.panels * product.panel_bytes, c, scratch))
        walks = self._walks[2:]
        finish = e.kernel(
            EpilogueKernel(self._back, epilogue, walks),
            lambda f: write_from_windows(f, self._back, walks, finish_with(f, target, epilogue)),
        )
        e.do(finish(places[1], back, *places[2:]))
