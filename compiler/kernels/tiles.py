"""Matrix products: `C = A @ B`, where A may be the pixels of an image under a convolution window.

One kernel serves matrix multiplication, pointwise and dense convolution. A tile of up to ten rows of A (pixels of one
image row) and 4, 8 or 12 columns of B (output channels) is kept in registers while the depth is walked four steps at
a time: four values of A are loaded together and each is spread over a vector by a shuffle, which costs less than a
load for each value. B is packed in panels, so that it is read in order:

    [panel][1 + depth][columns], the first row of a panel is the bias

Rows and columns that do not fill a tile are covered by a last tile that overlaps the one before, and computes some
values twice; columns that do not even fill one panel are computed beside columns of zeros that are not stored. Loops
over the smaller operand are inside, so that it stays in the cache.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.kernels.nest import Pointer, Step, nest
from compiler.kernels.target import Target
from compiler.loops.elements import store_vector
from compiler.wasm import V128, Function, I32Local, i8x16, v128

T = TypeVar("T")
Floats = NDArray[np.float32]

LANES: Final = 4
FLOAT_BYTES: Final = 4
VECTOR_BYTES: Final = LANES * FLOAT_BYTES
DEPTH_STEP: Final = LANES

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


class Window(msgspec.Struct, frozen=True):
    """What one pixel of A is: runs of floats that lie together, at regular distances; one run for a matrix."""

    run: int
    """Floats in one run."""
    steps: tuple[tuple[int, int], ...] = ()
    """Outer loops over runs: how many, and bytes from one to the next; the outermost first."""

    @property
    def depth(self) -> int:
        """How many floats there are in all."""
        total = self.run
        for count, _ in self.steps:
            total *= count
        return total


class TileKernel(msgspec.Struct, frozen=True):
    """Everything that fixes the code of one kernel."""

    rows: int
    pixels: int
    """In one row."""
    channels: int
    """Columns of B."""
    window: Window
    a: Walk
    c: Walk
    tile_pixels: int
    panel_vectors: int
    is_panel_outside: bool = False
    """Whether the loop over panels is the outermost, for a B that is larger than A."""

    @property
    def panel_channels(self) -> int:
        """Columns of one panel."""
        return self.panel_vectors * LANES

    @property
    def panels(self) -> int:
        """How many panels there are; the last may overlap the one before."""
        return -(-self.channels // self.panel_channels)

    @property
    def panel_bytes(self) -> int:
        """The size of one panel of B, bias included."""
        return (1 + self.window.depth) * self.panel_channels * FLOAT_BYTES

    @property
    def panel_starts(self) -> list[int]:
        """The first column of each panel."""
        last = max(self.channels - self.panel_channels, 0)
        return [min(n * self.panel_channels, last) for n in range(self.panels)]


def write_tiles(f: Function, kernel: TileKernel, target: Target, extras: Sequence[Walk], finish: Finish) -> None:
    """Write the kernel into `f`, whose parameters become A, B, C and one address for each of `extras`.

    Extras are read by `finish` at the same pixel and channel as C is written.
    """
    _TileWriter(f, kernel, target, extras, finish).write()


class _TileWriter:
    def __init__(self, f: Function, kernel: TileKernel, target: Target, extras: Sequence[Walk], finish: Finish) -> None:
        self._f, self._kernel, self._target, self._finish = f, kernel, target, finish
        self._a, self._b, self._c = f.param_i32(), f.param_i32(), f.param_i32()
        self._extras = [(f.param_i32(), walk) for walk in extras]
        self._b_at = f.i32()
        pixels, vectors = kernel.tile_pixels, kernel.panel_vectors
        self._sums = [f.v128s(vectors) for _ in range(pixels)]
        self._b_values = [f.v128s(vectors) for _ in range(DEPTH_STEP)]
        self._a_values = f.v128s(pixels)
        self._spread = f.v128()

    def write(self) -> None:
        k = self._kernel
        tiles = -(-k.pixels // k.tile_pixels)
        times = (k.rows, tiles, k.panels)
        pointers = [
            self._pointer(self._a, k.a, channel_bytes=0, moved=self._depth_bytes()),
            Pointer(self._b, self._ordered(0, 0, k.panel_bytes)),
            self._pointer(self._c, k.c, channel_bytes=k.c.channel_bytes),
            *(self._pointer(local, walk, channel_bytes=walk.channel_bytes) for local, walk in self._extras),
        ]
        nest(self._f, self._ordered(*times), pointers, self._write_tile)

    def _pointer(self, local: I32Local, walk: Walk, *, channel_bytes: int, moved: int = 0) -> Pointer:
        k = self._kernel
        pixel_step = overlapping(walk.pixel_bytes, k.pixels, k.tile_pixels)
        panel_step = overlapping(channel_bytes, k.channels, k.panel_channels)
        return Pointer(local, self._ordered(walk.row_bytes, pixel_step, panel_step), moved)

    def _ordered(self, rows: T, tiles: T, panels: T) -> tuple[T, T, T]:
        """Return what belongs to the three loops in their order."""
        return (panels, rows, tiles) if self._kernel.is_panel_outside else (rows, tiles, panels)

    def _depth_bytes(self) -> int:
        """Return how far A is from its start when a tile is done."""
        window = self._kernel.window
        blocks = window.run // DEPTH_STEP
        moved = blocks * VECTOR_BYTES if blocks > 1 else 0
        for count, step_bytes in reversed(window.steps):
            moved = count * step_bytes if count > 1 else moved
        return moved

    def _write_tile(self) -> None:
        k, f = self._kernel, self._f
        self._b_at.set(self._b)
        for j, value in enumerate(self._b_values[0]):
            value.set(v128.load(self._b_at, VECTOR_BYTES * j))
        for sums in self._sums:
            for value, bias in zip(sums, self._b_values[0], strict=True):
                value.set(bias)
        row_bytes = k.panel_channels * FLOAT_BYTES
        b_steps: list[int] = []
        b_moved = k.window.run * row_bytes
        for count, _ in reversed(k.window.steps):
            b_steps.insert(0, b_moved)
            b_moved *= count
        nest(
            f,
            [count for count, _ in k.window.steps],
            [
                Pointer(self._a, tuple(step for _, step in k.window.steps), self._run_moved(VECTOR_BYTES)),
                Pointer(self._b_at, tuple(b_steps), self._run_moved(DEPTH_STEP * row_bytes)),
            ],
            self._write_run,
        )
        for i, sums in enumerate(self._sums):
            for j, value in enumerate(sums):
                done = self._finish(value, lambda n, i=i, j=j: self._load_extra(n, i, j))  # type: ignore[misc]
                place = self._c, i * k.c.pixel_bytes + VECTOR_BYTES * j
                store_vector(f, DType.F32, place, done, min(LANES, k.channels - LANES * j))

    def _run_moved(self, step_bytes: int) -> int:
        blocks = self._kernel.window.run // DEPTH_STEP
        return blocks * step_bytes if blocks > 1 else 0

    def _write_run(self) -> None:
        blocks, rest = divmod(self._kernel.window.run, DEPTH_STEP)
        row_bytes = self._kernel.panel_channels * FLOAT_BYTES
        moved = 0
        if blocks:
            pointers = [Pointer(self._a, (VECTOR_BYTES,)), Pointer(self._b_at, (DEPTH_STEP * row_bytes,))]
            nest(self._f, [blocks], pointers, lambda: self._write_steps(DEPTH_STEP, 0))
            moved = 1 if blocks == 1 else 0
        if rest:
            self._write_steps(rest, moved)

    def _write_steps(self, steps: int, skipped_blocks: int) -> None:
        """Write up to four steps of depth, for the whole tile; A is read four at a time, also beyond its end."""
        k = self._kernel
        row_bytes = k.panel_channels * FLOAT_BYTES
        a_offset = skipped_blocks * VECTOR_BYTES
        b_offset = row_bytes + skipped_blocks * DEPTH_STEP * row_bytes
        for i, value in enumerate(self._a_values):
            value.set(v128.load(self._a, i * k.a.pixel_bytes + a_offset))
        for step in range(steps):
            for j, value in enumerate(self._b_values[step]):
                value.set(v128.load(self._b_at, b_offset + step * row_bytes + VECTOR_BYTES * j))
        for step in range(steps):
            for value, sums in zip(self._a_values, self._sums, strict=True):
                self._spread.set(i8x16.shuffle_words(value, value, [step] * LANES))
                for total, b in zip(sums, self._b_values[step], strict=True):
                    total.set(self._target.madd(self._spread, b, total))

    def _load_extra(self, number: int, i: int, j: int) -> V128:
        local, walk = self._extras[number]
        if walk.channel_bytes:
            return v128.load(local, i * walk.pixel_bytes + VECTOR_BYTES * j)
        return v128.load32_splat(local, i * walk.pixel_bytes)


def overlapping(unit_bytes: int, total: int, tile: int) -> Step:
    """Return the steps of a pointer along tiles of which the last ends where the whole ends."""
    rest = total % tile
    return unit_bytes * tile if rest == 0 else (unit_bytes * tile, unit_bytes * rest)


def pack_panels(kernel: TileKernel, b: Floats, bias: Floats) -> Floats:
    """Return B (depth, channels) and its bias (channels,) in the order in which the kernel reads them."""
    width = kernel.panel_channels
    missing = max(width - kernel.channels, 0)
    b, bias = np.pad(b, ((0, 0), (0, missing))), np.pad(bias, (0, missing))
    parts = [
        part for start in kernel.panel_starts for part in (bias[start : start + width], b[:, start : start + width])
    ]
    return np.concatenate([part.ravel() for part in parts], dtype=np.float32)
