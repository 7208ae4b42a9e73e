"""Convolutions of 3 x 3 by Winograd's minimal filtering F(2 x 2, 3 x 3): 16 products in the place of 36.

An image is cut into windows of 4 x 4 pixels, two apart. Each becomes 16 numbers for each channel, so does each filter;
number by number they are multiplied as matrices, and each 16 products become 2 x 2 pixels of the result. Where the
image has an odd side, the last windows overlap those before. Source: Lavin and Gray, Fast Algorithms for Convolutional
Neural Networks, 2015.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from compiler.dtypes import DType
from compiler.kernels.nest import Pointer, Step, nest
from compiler.kernels.tiles import FLOAT_BYTES, LANES, VECTOR_BYTES, Finish, Floats, Walk, overlapping
from compiler.loops.elements import store_vector
from compiler.wasm import V128, Function, V128Local, f32x4, v128

SIDE: Final = 4
"""Pixels of a window, along either side."""
STEP: Final = 2
"""From one window to the next, and pixels of the result from one."""
BIASED: Final = SIDE + 1
"""The product that is part of all four pixels once, so that a bias can be added to it."""
_WAY_BYTES: Final = 4096
"""Addresses that lie so far apart share a place in a first cache, which has room for eight of them."""
_GAP_BYTES: Final = 320
_FILTER: Final = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


class WindowsKernel(msgspec.Struct, frozen=True):
    """Everything that fixes the code of one transformation; distances are in bytes."""

    rows: int
    """Of pixels of the result."""
    columns: int
    channels: int
    """A multiple of four."""
    image: Walk
    """Of the pixels that are read, or of those that are written."""

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return -(-self.rows // STEP) * self.windows_in_row

    @property
    def windows_in_row(self) -> int:
        """How many windows lie beside each other."""
        return -(-self.columns // STEP)

    @property
    def plane_bytes(self) -> int:
        """From one of the 16 numbers to the next: a matrix (windows, channels), and a gap to spread them in caches."""
        size = self.windows * self.channels * FLOAT_BYTES
        return size + (_GAP_BYTES - size) % _WAY_BYTES

    def times(self) -> tuple[int, int, int]:
        """Return the loops: rows of windows, windows, vectors of channels."""
        return -(-self.rows // STEP), self.windows_in_row, self.channels // LANES

    def along_image(self, walk: Walk) -> tuple[Step, Step, Step]:
        """Return the steps of a pointer to pixels along the loops."""
        channel = VECTOR_BYTES if walk.channel_bytes else 0
        down, right = (walk.row_bytes, self.rows), (walk.pixel_bytes, self.columns)
        return overlapping(*down, STEP), overlapping(*right, STEP), channel

    def along_planes(self) -> tuple[int, int, int]:
        """Return the steps of a pointer to the 16 numbers along the loops."""
        window = self.channels * FLOAT_BYTES
        return self.windows_in_row * window, window, VECTOR_BYTES


def transformed_filters(weights: Floats) -> Floats:
    """Return filters (out, in, 3, 3) as 16 matrices (in, out)."""
    squares = np.einsum("ir,ocrs,js->ijco", _FILTER, weights.astype(np.float64), _FILTER)
    return np.asarray(squares.reshape(SIDE * SIDE, weights.shape[1], weights.shape[0]), np.float32)


def write_into_windows(f: Function, kernel: WindowsKernel) -> None:
    """Write the transformation of an image into `f`, whose parameters become the planes and the image."""
    planes, image = f.param_i32(), f.param_i32()
    values, halves = f.v128s(SIDE * SIDE), f.v128s(SIDE * SIDE)

    def write_window() -> None:
        for n, value in enumerate(values):
            row, column = divmod(n, SIDE)
            value.set(v128.load(image, row * kernel.image.row_bytes + column * kernel.image.pixel_bytes))
        for column in range(SIDE):
            for row, half in enumerate(_differences(values[column::SIDE])):
                halves[row * SIDE + column].set(half)
        for row in range(SIDE):
            for column, whole in enumerate(_differences(halves[row * SIDE : (row + 1) * SIDE])):
                f.do(v128.store(planes, whole, (row * SIDE + column) * kernel.plane_bytes))

    pointers = [Pointer(planes, kernel.along_planes()), Pointer(image, kernel.along_image(kernel.image))]
    nest(f, kernel.times(), pointers, write_window)


def write_from_windows(f: Function, kernel: WindowsKernel, extras: Sequence[Walk], finish: Finish) -> None:
    """Write the way back into `f`: parameters are the result, the planes and one address for each of `extras`."""
    result, planes = f.param_i32(), f.param_i32()
    others = [(f.param_i32(), walk) for walk in extras]
    values, halves = f.v128s(SIDE * SIDE), f.v128s(STEP * SIDE)

    def load_extra(row: int, column: int) -> Callable[[int], V128]:
        def load(number: int) -> V128:
            address, walk = others[number]
            offset = row * walk.row_bytes + column * walk.pixel_bytes
            return (v128.load if walk.channel_bytes else v128.load32_splat)(address, offset)

        return load

    def write_window() -> None:
        for n, value in enumerate(values):
            value.set(v128.load(planes, n * kernel.plane_bytes))
        for column in range(SIDE):
            for row, half in enumerate(_sums(values[column::SIDE])):
                halves[row * SIDE + column].set(half)
        for row in range(STEP):
            for column, whole in enumerate(_sums(halves[row * SIDE : (row + 1) * SIDE])):
                done = finish(whole, load_extra(row, column))
                place = row * kernel.image.row_bytes + column * kernel.image.pixel_bytes
                store_vector(f, DType.F32, (result, place), done)

    pointers = [
        Pointer(result, kernel.along_image(kernel.image)),
        Pointer(planes, kernel.along_planes()),
        *(Pointer(address, kernel.along_image(walk)) for address, walk in others),
    ]
    nest(f, kernel.times(), pointers, write_window)


def _differences(d: Sequence[V128Local]) -> list[V128]:
    """Return four pixels in a row as the four numbers that filters are multiplied with."""
    return [f32x4.sub(d[0], d[2]), f32x4.add(d[1], d[2]), f32x4.sub(d[2], d[1]), f32x4.sub(d[1], d[3])]


def _sums(m: Sequence[V128Local]) -> list[V128]:
    """Return two pixels in a row from four products."""
    return [f32x4.add(f32x4.add(m[0], m[1]), m[2]), f32x4.sub(f32x4.sub(m[1], m[2]), m[3])]
