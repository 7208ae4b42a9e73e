"""What kernels share that compute four channels at a time: how their operands lie, and how they go through them."""

from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.kernels.nest import Step
from compiler.wasm import V128, I32Local, v128

Floats = NDArray[np.float32]

LANES: Final = 4
FLOAT_BYTES: Final = 4
VECTOR_BYTES: Final = LANES * FLOAT_BYTES

Finish = Callable[[V128, Callable[[int], V128]], V128]
"""Turns a sum into the stored value; the other argument reads extra operand number n at the same place."""


class Walk(msgspec.Struct, frozen=True):
    """How one operand lies in memory, in bytes."""

    pixel_bytes: int
    """From one pixel to the next."""
    row_bytes: int
    """From one row of pixels to the next."""
    channel_bytes: int = FLOAT_BYTES
    """From one channel to the next: 4, or 0 when all channels have the same value."""

    def load(self, address: I32Local, to_pixel: int, to_channel: int = 0) -> V128:
        """Return four neighbouring channels, which begin that far from the address, or one value for all of them."""
        if self.channel_bytes:
            return v128.load(address, to_pixel + to_channel)
        return v128.load32_splat(address, to_pixel)


def overlapping(unit_bytes: int, total: int, tile: int) -> Step:
    """Return the steps of a pointer along tiles of which the last ends where the whole ends."""
    rest = total % tile
    return unit_bytes * tile if rest == 0 else (unit_bytes * tile, unit_bytes * rest)
