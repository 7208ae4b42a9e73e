"""How a matrix product is cut into tiles: which shape is fastest for a number of rows and columns."""

from typing import Final

from compiler.kernels.tiles import LANES

# Estimated relative speed of tiles by rows and vectors of columns; only their order decides, and no figure rests on it.
_SPEED: Final[dict[int, dict[int, float]]] = {
    1: {4: 0.55, 6: 0.62, 8: 0.66, 10: 0.68, 2: 0.32, 3: 0.44, 1: 0.17, 5: 0.6, 7: 0.65, 9: 0.67},
    2: {1: 0.28, 2: 0.48, 3: 0.64, 4: 0.78, 5: 0.86, 6: 0.92, 7: 0.97, 8: 1.0, 9: 0.97, 10: 1.0},
    3: {1: 0.38, 2: 0.62, 3: 0.74, 4: 0.8, 5: 0.85, 6: 0.87},
    4: {1: 0.46, 2: 0.68, 3: 0.74},
    6: {1: 0.58},
    8: {1: 0.64},
}


def choose_tile(pixels: int, channels: int) -> tuple[int, int]:
    """Return rows and vectors of columns of the tile that takes the least time."""
    return min(
        ((rows, vectors) for vectors, speeds in _SPEED.items() for rows in speeds if rows <= pixels),
        key=lambda tile: (_time(pixels, channels, *tile), -tile[1], -tile[0]),
    )


def _time(pixels: int, channels: int, rows: int, vectors: int) -> float:
    """Return a time for all tiles; a tile wider than all columns must be needed for its last vector."""
    width = vectors * LANES
    if channels <= width - LANES:
        return float("inf")
    tiles = -(-pixels // rows) * -(-channels // width)
    return tiles * rows * width / _SPEED[vectors][rows]
