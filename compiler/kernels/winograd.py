"""Convolutions of 3 x 3 by Winograd's minimal filtering: 16 products in the place of 36, or 36 in the place of 144.

An image is cut into windows of 4 x 4 pixels, two apart: F(2 x 2, 3 x 3); or of 6 x 6, four apart: F(4 x 4, 3 x 3).
Each becomes as many numbers for each channel, so does each filter; number by number they are multiplied as matrices,
and what the products of a window are becomes 2 x 2 or 4 x 4 pixels of the result. Where the image does not consist of
whole windows, the last ones overlap those before.

A product of polynomials is computed at points: 0, 1, -1 and infinity for the small windows, and 0, +-sqrt(1/2),
+-sqrt(2) and infinity for the large ones. With +-1 and +-2, as usual, rounding would take up to four times more from
the result; so it takes at most twice what it takes from a plain sum. On the way numbers get greater: pixels up to 26
times, results up to 620 times their channels, greatest pixel and greatest weight, where a plain sum has 9 at the most.
What overflows, or is not finite to begin with, can spoil all of its window. Sources: Lavin and Gray, Fast Algorithms
for Convolutional Neural Networks, 2015; Barabasz, Anderson, Soodhalter and Gregg, Error Analysis and Improving the
Accuracy of Winograd Convolution for Deep Neural Networks, 2018.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.kernels.nest import Pointer, Step, nest
from compiler.kernels.target import Target
from compiler.kernels.walk import FLOAT_BYTES, LANES, VECTOR_BYTES, Finish, Floats, Walk, overlapping
from compiler.loops.elements import store_vector
from compiler.wasm import V128, Function, V128Local, f32x4, v128

TAPS: Final = 9
STEPS: Final = (2, 4)
"""From one window to the next, and pixels of the result from one, along either side."""
_WAY_BYTES: Final = 4096
"""Addresses that lie so far apart share a place in a first cache, which has room for eight of them."""
_GAP_BYTES: Final = 320
_NEAR, _FAR = math.sqrt(0.5), math.sqrt(2)
FILTERS: Final = {
    2: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    4: np.array(
        [
            [1, 0, 0],
            *([-2 / 3, sign * _NEAR * -2 / 3, -1 / 3] for sign in (1, -1)),
            *([1 / 6, sign * _FAR / 6, 1 / 3] for sign in (1, -1)),
            [0, 0, 1],
        ]
    ),
}
"""What a filter of three numbers is at each point, as a matrix (points, 3)."""


def side(step: int) -> int:
    """Return the pixels of a window along either side."""
    return step + 2


class WindowsKernel(msgspec.Struct, frozen=True):
    """Everything that fixes the code of one transformation; distances are in bytes."""

    step: int
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
        return -(-self.rows // self.step) * self.windows_in_row

    @property
    def windows_in_row(self) -> int:
        """How many windows lie beside each other."""
        return -(-self.columns // self.step)

    @property
    def plane_bytes(self) -> int:
        """From one number of the windows to the next: a matrix (windows, channels), then a gap to spread them."""
        size = self.windows * self.channels * FLOAT_BYTES
        return size + (_GAP_BYTES - size) % _WAY_BYTES

    def times(self) -> tuple[int, int, int]:
        """Return the loops: rows of windows, windows, vectors of channels."""
        return -(-self.rows // self.step), self.windows_in_row, self.channels // LANES

    def along_image(self, walk: Walk) -> tuple[Step, Step, Step]:
        """Return the steps of a pointer to pixels along the loops."""
        channel = VECTOR_BYTES if walk.channel_bytes else 0
        down, right = (walk.row_bytes, self.rows), (walk.pixel_bytes, self.columns)
        return overlapping(*down, self.step), overlapping(*right, self.step), channel

    def along_planes(self) -> tuple[int, int, int]:
        """Return the steps of a pointer to the numbers of the windows along the loops."""
        window = self.channels * FLOAT_BYTES
        return self.windows_in_row * window, window, VECTOR_BYTES


def transformed_filters(weights: Floats, step: int) -> Floats:
    """Return filters (out, in, 3, 3) as matrices (in, out), one for each number of a window."""
    out, channels = weights.shape[:2]
    taps = weights.astype(np.float64).reshape(out, channels, 3, 3).transpose(2, 3, 1, 0)
    squares = [
        _dot(at_column, columns)
        for columns in (_dot(at_row, taps) for at_row in FILTERS[step])
        for at_column in FILTERS[step]
    ]
    return np.stack(squares).astype(np.float32)


def _dot(point: NDArray[np.float64], numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of three products, in order: a module that transforms filters when it starts adds likewise."""
    total: NDArray[np.float64] = point[0] * numbers[0] + point[1] * numbers[1] + point[2] * numbers[2]
    return total


def write_into_windows(f: Function, kernel: WindowsKernel, target: Target) -> None:
    """Write the transformation of an image into `f`, whose parameters become the planes and the image."""
    planes, image = f.param_i32(), f.param_i32()
    length, transform = side(kernel.step), _TRANSFORMS[kernel.step][0]

    def write_window() -> None:
        columns = []
        for column in range(length):
            offsets = [row * kernel.image.row_bytes + column * kernel.image.pixel_bytes for row in range(length)]
            pixels = [f.variable(v128.load(image, offset)) for offset in offsets]
            columns.append([f.variable(value) for value in transform(f, target, pixels)])
        for row in range(length):
            for column, value in enumerate(transform(f, target, [values[row] for values in columns])):
                f.do(v128.store(planes, value, (row * length + column) * kernel.plane_bytes))

    pointers = [Pointer(planes, kernel.along_planes()), Pointer(image, kernel.along_image(kernel.image))]
    nest(f, kernel.times(), pointers, write_window)


def write_from_windows(
    f: Function, kernel: WindowsKernel, target: Target, extras: Sequence[Walk], finish: Finish
) -> None:
    """Write the way back into `f`: parameters are the result, the planes, the bias and an address for each extra."""
    result, planes, bias = f.param_i32(), f.param_i32(), f.param_i32()
    others = [(f.param_i32(), walk) for walk in extras]
    length, transform = side(kernel.step), _TRANSFORMS[kernel.step][1]

    def load_extra(row: int, column: int) -> Callable[[int], V128]:
        def load(number: int) -> V128:
            address, walk = others[number]
            return walk.load(address, row * walk.row_bytes + column * walk.pixel_bytes)

        return load

    def write_window() -> None:
        columns = []
        for column in range(length):
            offsets = [(row * length + column) * kernel.plane_bytes for row in range(length)]
            products = [f.variable(v128.load(planes, offset)) for offset in offsets]
            columns.append([f.variable(value) for value in transform(f, target, products)])
        added = f.variable(v128.load(bias))
        for row in range(kernel.step):
            for column, value in enumerate(transform(f, target, [values[row] for values in columns])):
                done = finish(f32x4.add(value, added), load_extra(row, column))
                place = row * kernel.image.row_bytes + column * kernel.image.pixel_bytes
                store_vector(f, DType.F32, (result, place), done)

    pointers = [
        Pointer(result, kernel.along_image(kernel.image)),
        Pointer(planes, kernel.along_planes()),
        Pointer(bias, (0, 0, VECTOR_BYTES)),
        *(Pointer(address, kernel.along_image(walk)) for address, walk in others),
    ]
    nest(f, kernel.times(), pointers, write_window)


_Transform = Callable[[Function, Target, Sequence[V128Local]], list[V128]]


def _into_small(_f: Function, _target: Target, d: Sequence[V128Local]) -> list[V128]:
    """Return four pixels in a row as the four numbers that filters are multiplied with."""
    return [f32x4.sub(d[0], d[2]), f32x4.add(d[1], d[2]), f32x4.sub(d[2], d[1]), f32x4.sub(d[1], d[3])]


def _from_small(_f: Function, _target: Target, m: Sequence[V128Local]) -> list[V128]:
    """Return two pixels in a row from four products."""
    return [f32x4.add(f32x4.add(m[0], m[1]), m[2]), f32x4.sub(f32x4.sub(m[1], m[2]), m[3])]


def _into_large(f: Function, target: Target, d: Sequence[V128Local]) -> list[V128]:
    """Return six pixels in a row as the six numbers that filters are multiplied with."""

    def at(point: float, other: float) -> list[V128]:
        even = f.variable(target.nmadd(_all(other * other), d[2], d[4]))
        odd = f.variable(target.nmadd(_all(other * other), d[1], d[3]))
        return [target.madd(_all(point), odd, even), target.nmadd(_all(point), odd, even)]

    return [
        target.nmadd(_all(2.5), d[2], f32x4.add(d[0], d[4])),
        *at(_NEAR, _FAR),
        *at(_FAR, _NEAR),
        target.nmadd(_all(2.5), d[3], f32x4.add(d[1], d[5])),
    ]


def _from_large(f: Function, target: Target, m: Sequence[V128Local]) -> list[V128]:
    """Return four pixels in a row from six products."""
    near, near_odd = f.variable(f32x4.add(m[1], m[2])), f.variable(f32x4.sub(m[1], m[2]))
    far, far_odd = f.variable(f32x4.add(m[3], m[4])), f.variable(f32x4.sub(m[3], m[4]))
    return [
        f32x4.add(f32x4.add(m[0], near), far),
        target.madd(_all(_NEAR), near_odd, f32x4.mul(_all(_FAR), far_odd)),
        target.madd(_all(_NEAR**2), near, f32x4.add(far, far)),
        target.madd(_all(_NEAR**3), near_odd, target.madd(_all(_FAR**3), far_odd, m[5])),
    ]


def _all(value: float) -> V128:
    return f32x4.const(value)


_TRANSFORMS: Final[dict[int, tuple[_Transform, _Transform]]] = {
    2: (_into_small, _from_small),
    4: (_into_large, _from_large),
}
