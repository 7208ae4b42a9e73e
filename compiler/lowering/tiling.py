"""How products and depthwise convolutions are cut into tiles: which shape takes the least time.

The time of a tile of a matrix product is a model fitted to measurements (`python -m benchmarks.kernels` repeats them):
what two rows take for each vector of columns, what they take however many columns there are, what a loop takes, and
what it takes to read a panel again that the cache does not keep; and a group of steps is never faster than its sums
come back from memory.
"""

from typing import Final

import msgspec

from compiler.kernels.walk import LANES, VECTOR_BYTES

_CACHE_BYTES: Final = 256 * 1024
"""What a cache of the second level keeps while other operands pass by."""

# Clock cycles for each group of four steps of depth.
_PAIR_VECTOR: Final = 4.6
_SINGLE_VECTOR: Final = 3.4
_PASS: Final = 1.7
_LOOP: Final = 3.0
_LEAST: Final = 27.0
_FAR_VECTOR: Final = 2.0
"""For a vector of columns that comes from behind the cache, once for each tile."""
_WIDE_ROW: Final = 0.02
"""For each vector of columns of a single row, times how many there are: a wide tile reads B in longer strides."""
_WIDE_ROW_FAR: Final = 0.045
"""Likewise, for a B that the cache does not keep."""
_MAX_SUMS: Final = 32
"""Vectors of sums in a tile; more is only more code."""

_FEW_TAPS: Final = 9
_SHORT_TILE: Final = 7
_LONG_TILE: Final = 14
_FILTER: Final = 1.5
"""What it takes to read a filter and the pixels around a tile, in pixels of the result."""


class Tiling(msgspec.Struct, frozen=True):
    """How a matrix product is cut; the fields of `TileKernel` with these names."""

    tile_pixels: int
    panel_vectors: int
    is_panel_outside: bool
    """A B that the cache does not keep is read once, panel by panel, and A again for each panel: a tile has far more
    columns than rows, so that moves less, whatever the size of A."""


def choose_tiling(pixels: int, depth: int, channels: int) -> Tiling:
    """Return the tiling that takes the least time."""
    needed = -(-channels // LANES)
    shapes = (
        (rows, vectors)
        for vectors in range(1, min(needed, _MAX_SUMS) + 1)
        for rows in range(1, min(pixels, _MAX_SUMS // vectors) + 1)
    )
    size = pixels, depth, channels
    rows, vectors = min(shapes, key=lambda tile: (_time(size, *tile), tile[0] * tile[1]))
    return Tiling(rows, vectors, is_panel_outside=_is_far(depth, channels))


def depthwise_pixels(pixels: int, step: int, taps: int) -> int:
    """Return how many pixels of a row to compute together; the code for many is too long where filters are large."""
    most = _LONG_TILE if step == 1 and taps <= _FEW_TAPS else _SHORT_TILE
    return min(range(1, min(most, pixels) + 1), key=lambda n: (-(-pixels // n) * (n + _FILTER), -n))


def _is_far(depth: int, channels: int) -> bool:
    """Whether B is larger than what the cache keeps."""
    return depth * -(-channels // LANES) * VECTOR_BYTES > _CACHE_BYTES


def _time(size: tuple[int, int, int], rows: int, vectors: int) -> float:
    """Return the cycles of all tiles for one group of steps."""
    pixels, depth, channels = size
    pairs, single = divmod(rows, 2)
    passes = pairs * (_PAIR_VECTOR * vectors + _PASS) + single * (_SINGLE_VECTOR * vectors + _PASS)
    if pixels == 1:
        passes += (_WIDE_ROW_FAR if _is_far(depth, channels) else _WIDE_ROW) * vectors**2
    tiles = -(-pixels // rows) * -(-channels // (vectors * LANES))
    far = max(0.0, 1 - _CACHE_BYTES / (depth * vectors * VECTOR_BYTES)) if pixels > rows else 0.0
    return tiles * max(passes + _LOOP + far * _FAR_VECTOR * vectors, _LEAST)
