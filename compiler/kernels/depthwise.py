"""Depthwise convolution: each channel of an image has a filter of its own.

The image has its channels last, so four channels are computed at a time, for several neighbouring pixels: the filter
is read once for them, and each pixel under it once, or once for each tap of a large filter. Filters are packed as

    [vector of channels][1 + taps][4], the first entry is the bias
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from compiler.dtypes import DType
from compiler.kernels.nest import Pointer, nest
from compiler.kernels.target import Target
from compiler.kernels.walk import LANES, VECTOR_BYTES, Finish, Floats, Walk, overlapping
from compiler.loops.elements import store_vector
from compiler.wasm import V128, Function, I32Local, v128

_MOST_UNROLLED_TAPS: Final = 9
"""A filter with more of them is walked in loops: code for each tap of it would be slower, and takes long to compile."""
_TAPS_AT_ONCE: Final = 8
"""In one round of such a loop, along a row."""


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
        self._is_looped = kernel.taps[0] * kernel.taps[1] > _MOST_UNROLLED_TAPS
        self._totals = f.v128s(kernel.tile_pixels if self._is_looped else 1)
        self._weights = [] if self._is_looped else [f.v128s(kernel.taps[1]) for _ in range(kernel.taps[0])]

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
        write_tile = self._write_looped_tile if self._is_looped else self._write_tile
        nest(self._f, (k.rows, -(-k.pixels // k.tile_pixels), vectors), pointers, write_tile)

    def _pointer(self, local: I32Local, walk: Walk) -> Pointer:
        k = self._kernel
        pixel_step = overlapping(walk.pixel_bytes, k.pixels, k.tile_pixels)
        return Pointer(local, (walk.row_bytes, pixel_step, overlapping(walk.channel_bytes, k.channels, LANES)))

    def _write_tile(self) -> None:
        """Write one pixel after the other; each is stored before the next is read, which keeps few values at once."""
        k, f = self._kernel, self._f
        for row, weights in enumerate(self._weights):
            for column, weight in enumerate(weights):
                weight.set(v128.load(self._b, VECTOR_BYTES * (1 + row * k.taps[1] + column)))
        columns: dict[int | tuple[int, int], list[V128]] = {}
        for pixel in range(k.tile_pixels):
            places = [pixel * k.tap_stride + n if k.tap_stride else (pixel, n) for n in range(k.taps[1])]
            for n, place in enumerate(places):
                if place not in columns:
                    start = pixel * k.a.pixel_bytes + n * k.tap_bytes[1]
                    columns[place] = [
                        f.keep(v128.load(self._a, start + row * k.tap_bytes[0])) for row in range(k.taps[0])
                    ]
            [total] = self._totals
            total.set(v128.load(self._b))
            for row, weights in enumerate(self._weights):
                for place, weight in zip(places, weights, strict=True):
                    total.set(self._target.madd(columns[place][row], weight, total))
            self._store(pixel, total)

    def _write_looped_tile(self) -> None:
        """Write all pixels side by side, and loops over the taps."""
        k, f = self._kernel, self._f
        (rows, columns), (row_bytes, tap_bytes) = k.taps, k.tap_bytes
        if columns == 1:  # a column is walked like a row
            rows, columns, row_bytes, tap_bytes = columns, rows, tap_bytes, row_bytes
        for total in self._totals:
            total.set(v128.load(self._b))
        a, b, weight = f.variable(self._a), f.variable(self._b + VECTOR_BYTES), f.v128()
        blocks, rest = divmod(columns, _TAPS_AT_ONCE)
        steps = [_TAPS_AT_ONCE * tap_bytes, _TAPS_AT_ONCE * VECTOR_BYTES]
        moved = [blocks * step if blocks > 1 else 0 for step in steps]  # a loop that runs once moves nothing

        def write_taps(first: int, count: int) -> None:
            for tap in range(first, first + count):
                weight.set(v128.load(b, tap * VECTOR_BYTES - (moved[1] if first else 0)))
                for pixel, total in enumerate(self._totals):
                    place = pixel * k.a.pixel_bytes + tap * tap_bytes - (moved[0] if first else 0)
                    total.set(self._target.madd(v128.load(a, place), weight, total))

        def write_row() -> None:
            if blocks:
                along = [Pointer(p, (step,)) for p, step in zip((a, b), steps, strict=True)]
                nest(f, [blocks], along, lambda: write_taps(0, _TAPS_AT_ONCE))
            write_taps(blocks * _TAPS_AT_ONCE, rest)

        steps_down = [row_bytes, columns * VECTOR_BYTES]
        down = [Pointer(p, (step,), by) for p, step, by in zip((a, b), steps_down, moved, strict=True)]
        nest(f, [rows], down, write_row)
        for pixel, total in enumerate(self._totals):
            self._store(pixel, total)

    def _store(self, pixel: int, total: V128) -> None:
        """Write code that stores what is made of a sum."""
        done = self._finish(total, lambda n: self._load_extra(n, pixel))
        place = self._c, pixel * self._kernel.c.pixel_bytes
        store_vector(self._f, DType.F32, place, done, min(LANES, self._kernel.channels))

    def _load_extra(self, number: int, pixel: int) -> V128:
        local, walk = self._extras[number]
        return walk.load(local, pixel * walk.pixel_bytes)
