"""How a matrix product is cut into tiles: which shape takes the least time for a number of rows and columns.

The time of a tile is a model fitted to measurements (`python -m benchmarks.kernels` repeats them): what two rows take
for each vector of columns, what they take however many columns there are, and what a loop takes; and a group of steps
is never faster than its sums come back from memory.
"""

from typing import Final

from compiler.kernels.tiles import LANES

CACHE_BYTES: Final = 256 * 1024
"""Of this size or less, B stays in the cache while it is read again for every tile of rows. A larger B is read once,
panel by panel, and A again for each panel: a tile has far more columns than rows, so this moves less whatever A is."""

# Clock cycles for each group of four steps of depth.
_PAIR_VECTOR: Final = 4.6
_SINGLE_VECTOR: Final = 3.4
_PASS: Final = 1.7
_LOOP: Final = 3.0
_LEAST: Final = 27.0
_MAX_SUMS: Final = 32
"""Vectors of sums in a tile; more is only more code."""


def choose_tile(pixels: int, channels: int) -> tuple[int, int]:
    """Return rows and vectors of columns of the tile that takes the least time."""
    needed = -(-channels // LANES)
    shapes = (
        (rows, vectors)
        for vectors in range(1, min(needed, _MAX_SUMS) + 1)
        for rows in range(1, min(pixels, _MAX_SUMS // vectors) + 1)
    )
    return min(shapes, key=lambda tile: (_time(pixels, channels, *tile), tile[0] * tile[1]))


def _time(pixels: int, channels: int, rows: int, vectors: int) -> float:
    """Return the cycles of all tiles for one group of steps."""
    pairs, single = divmod(rows, 2)
    passes = pairs * (_PAIR_VECTOR * vectors + _PASS) + single * (_SINGLE_VECTOR * vectors + _PASS)
    tiles = -(-pixels // rows) * -(-channels // (vectors * LANES))
    return tiles * max(passes + _LOOP, _LEAST)
