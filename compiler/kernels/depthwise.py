"""Depthwise convolution: each channel of an image has a filter of its own.

The image has its channels last, so four channels are computed at a time, for several neighbouring pixels: each row of
the filter is kept in registers while the pixels under it are read once. Filters are packed as

    [vector of channels][1 + taps][4], the first entry is the bias
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from compiler.dtypes import DType
from compiler.kernels.nest import Pointer, nest
from compiler.kernels.target import Target
from compiler.kernels.tiles import LANES, VECTOR_BYTES, Finish, Floats, Walk, overlapping
from compiler.loops.elements import store_vector
from compiler.wasm import V128, Function, I32Local, v128


class DepthwiseKernel(msgspec.Struct, frozen=True):
    """Everything that fixes the code of one kernel; distances are in bytes."""

    rows: int
    pixels: int
    channels: int
    taps: tuple[int, int]
    """Rows and columns of the filter."""
    tap_bytes: tuple[int, int]
    """From one row or column of the filter to the next."""
    tap_stride: int
    """How many columns of taps one pixel is from the next, or 0 when their columns do not meet."""
    a: Walk
    c: Walk
    tile_pixels: int

    @property
    def vector_starts(self) -> list[int]:
        """The first channel of each vector; the last may overlap the one before."""
        last = max(self.channels - LANES, 0)
        return [min(start, last) for start in range(0, self.channels, LANES)]


def pack_filters(kernel: DepthwiseKernel, weights: Floats, bias: Floats) -> Floats:
    """Return filters (channels, rows, columns) and their bias in the order in which the kernel reads them."""
    missing = max(LANES - kernel.channels, 0)
    entries = np.concatenate([bias[:, None], weights.reshape(len(weights), -1)], axis=1)
    entries = np.pad(entries, ((0, missing), (0, 0)))
    return np.concatenate(
        [entries[start : start + LANES].T.ravel() for start in kernel.vector_starts], dtype=np.float32
    )


def write_depthwise(
    f: Function, kernel: DepthwiseKernel, target: Target, extras: Sequence[Walk], finish: Finish
) -> None:
    """Write the kernel into `f`, whose parameters become image, filters, result and one address for each extra."""
    _DepthwiseWriter(f, kernel, target, extras, finish).write()


class _DepthwiseWriter:
    def __init__(
        self, f: Function, kernel: DepthwiseKernel, target: Target, extras: Sequence[Walk], finish: Finish
    ) -> None:
        self._f, self._kernel, self._target, self._finish = f, kernel, target, finish
        self._a, self._b, self._c = f.param_i32(), f.param_i32(), f.param_i32()
        self._extras = [(f.param_i32(), walk) for walk in extras]
        self._sums = f.v128s(kernel.tile_pixels)
        self._weights = f.v128s(kernel.taps[1])
        self._value = f.v128()

    def write(self) -> None:
        k = self._kernel
        vectors = len(k.vector_starts)
        filter_bytes = (1 + k.taps[0] * k.taps[1]) * VECTOR_BYTES
        pointers = [
            self._pointer(self._a, k.a),
            Pointer(self._b, (0, 0, filter_bytes)),
            self._pointer(self._c, k.c),
            *(self._pointer(local, walk) for local, walk in self._extras),
        ]
        nest(self._f, (k.rows, -(-k.pixels // k.tile_pixels), vectors), pointers, self._write_tile)

    def _pointer(self, local: I32Local, walk: Walk) -> Pointer:
        k = self._kernel
        pixel_step = overlapping(walk.pixel_bytes, k.pixels, k.tile_pixels)
        return Pointer(local, (walk.row_bytes, pixel_step, overlapping(walk.channel_bytes, k.channels, LANES)))

    def _write_tile(self) -> None:
        k, f = self._kernel, self._f
        for n, total in enumerate(self._sums):
            total.set(v128.load(self._b) if n == 0 else self._sums[0])
        for row in range(k.taps[0]):
            for column, weight in enumerate(self._weights):
                weight.set(v128.load(self._b, VECTOR_BYTES * (1 + row * k.taps[1] + column)))
            self._write_row(row * k.tap_bytes[0])
        for pixel, total in enumerate(self._sums):
            done = self._finish(total, lambda n, pixel=pixel: self._load_extra(n, pixel))  # type: ignore[misc]
            store_vector(f, DType.F32, (self._c, pixel * k.c.pixel_bytes), done, min(LANES, k.channels))

    def _write_row(self, row_offset: int) -> None:
        """Write one row of the filters over all pixels of the tile."""
        k = self._kernel
        if not k.tap_stride:
            for pixel, total in enumerate(self._sums):
                for column, weight in enumerate(self._weights):
                    value = v128.load(self._a, row_offset + pixel * k.a.pixel_bytes + column * k.tap_bytes[1])
                    total.set(self._target.madd(value, weight, total))
            return
        for place in range((k.tile_pixels - 1) * k.tap_stride + k.taps[1]):
            self._value.set(v128.load(self._a, row_offset + place * k.tap_bytes[1]))
            for pixel, total in enumerate(self._sums):
                column = place - pixel * k.tap_stride
                if 0 <= column < k.taps[1]:
                    total.set(self._target.madd(self._value, self._weights[column], total))

    def _load_extra(self, number: int, pixel: int) -> V128:
        local, walk = self._extras[number]
        load = v128.load if walk.channel_bytes else v128.load32_splat
        return load(local, pixel * walk.pixel_bytes)
