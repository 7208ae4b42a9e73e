"""Matrix products: `C = A @ B`, where A may be the pixels of an image under a convolution window.

One kernel serves matrix multiplication, pointwise and dense convolution. A tile is some rows of A (pixels of one image
row) by some vectors of columns of B (output channels). The depth is walked four steps at a time: two rows of A are
spread over eight registers, value by value, then all columns of B pass by, and each vector of B is loaded once for
both rows. The sums lie in a scratch between one group of steps and the next. They would lie in memory anyway, since an
engine that can interrupt a loop keeps no vector in a register around it; and because engines move arithmetic to where
a store needs it, storing them by hand also fixes the order of instructions. B is packed in panels, so that it is read
in order:

    [panel][1 + depth][columns], the first row of a panel is the bias

Rows and columns that do not fill a tile are covered by a last tile that overlaps the one before, and computes some
values twice; columns that do not even fill one panel are computed beside columns of zeros that are not stored.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec
import numpy as np

from compiler.dtypes import DType
from compiler.kernels.nest import Pointer, nest
from compiler.kernels.target import Target
from compiler.kernels.walk import FLOAT_BYTES, LANES, VECTOR_BYTES, Finish, Floats, Walk, overlapping
from compiler.loops.elements import store_vector
from compiler.wasm import V128, Function, I32Local, i8x16, v128

T = TypeVar("T")

DEPTH_STEP: Final = LANES
_ROWS_AT_ONCE: Final = 2
_UNROLLED_PRODUCTS: Final = 600
"""A depth of so few products of vectors is written out without a loop."""


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

    @property
    def is_plain(self) -> bool:
        """Whether everything lies in one run."""
        return all(count == 1 for count, _ in self.steps)


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
    """Whether the loop over panels is the outermost, for a B that does not stay in the cache."""
    is_finished_apart: bool = False
    """Whether what is done with the sums has a loop of its own: its code is long, and is written once then."""

    @property
    def scratch_bytes(self) -> int:
        """How much memory the sums of a tile take."""
        return self.tile_pixels * self.panel_vectors * VECTOR_BYTES

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
    """Write the kernel into `f`, whose parameters become A, B, C, the scratch and one address for each of `extras`.

    Extras are read by `finish` at the same pixel and channel as C is written.
    """
    _TileWriter(f, kernel, target, extras, finish).write()


class _Group(msgspec.Struct, frozen=True):
    """Up to four steps of depth, in bytes from where the pointers to A and B are."""

    steps: int
    a_offset: int
    b_offset: int
    is_first: bool = False
    """Whether the sums start here, from the bias, rather than from the scratch."""
    is_last: bool = False
    """Whether the sums are done here."""


class _TileWriter:
    def __init__(self, f: Function, kernel: TileKernel, target: Target, extras: Sequence[Walk], finish: Finish) -> None:
        self._f, self._kernel, self._target, self._finish = f, kernel, target, finish
        self._a, self._b, self._c, self._scratch = f.param_i32(), f.param_i32(), f.param_i32(), f.param_i32()
        self._extras = [(f.param_i32(), walk) for walk in extras]
        self._b_at = f.i32()
        self._spread = [f.v128s(DEPTH_STEP) for _ in range(_ROWS_AT_ONCE)]
        self._b_values, self._sums, self._a_value = f.v128s(DEPTH_STEP), f.v128s(_ROWS_AT_ONCE), f.v128()
        self._row_bytes = kernel.panel_channels * FLOAT_BYTES
        products = kernel.window.depth * kernel.tile_pixels * kernel.panel_vectors
        self._is_unrolled = products <= _UNROLLED_PRODUCTS or kernel.window.depth <= 2 * DEPTH_STEP

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
        if self._is_unrolled:
            return 0
        if window.is_plain:
            return _moved(self._middle_blocks(), VECTOR_BYTES)
        moved = _moved(window.run // DEPTH_STEP, VECTOR_BYTES)
        for count, step_bytes in reversed(window.steps):
            moved = count * step_bytes if count > 1 else moved
        return moved

    def _middle_blocks(self) -> int:
        """Return how many groups of a plain window lie between the first and the last."""
        return -(-self._kernel.window.run // DEPTH_STEP) - 2

    def _moving(self) -> list[Pointer]:
        return [Pointer(self._a, (VECTOR_BYTES,)), Pointer(self._b_at, (DEPTH_STEP * self._row_bytes,))]

    def _write_tile(self) -> None:
        self._b_at.set(self._b)
        if self._is_unrolled:
            self._write_unrolled()
        elif self._kernel.window.is_plain:
            self._write_plain()
        else:
            self._write_windows()
        if self._kernel.is_finished_apart:
            self._write_finish_loop()

    def _write_unrolled(self) -> None:
        """Write all groups one behind the other."""
        window = self._kernel.window
        offsets = [0]
        for count, step_bytes in window.steps:
            offsets = [offset + n * step_bytes for offset in offsets for n in range(count)]
        places = [(offset, step) for offset in offsets for step in range(0, window.run, DEPTH_STEP)]
        b_offset = self._row_bytes
        for number, (offset, step) in enumerate(places):
            steps = min(DEPTH_STEP, window.run - step)
            is_last = number == len(places) - 1
            self._write_group(_Group(steps, offset + step * FLOAT_BYTES, b_offset, number == 0, is_last))
            b_offset += steps * self._row_bytes

    def _write_plain(self) -> None:
        """Write a first group, a loop and a last group."""
        middle = self._middle_blocks()
        block_bytes = DEPTH_STEP * self._row_bytes
        self._write_group(_Group(DEPTH_STEP, 0, self._row_bytes, is_first=True))
        second = _Group(DEPTH_STEP, VECTOR_BYTES, self._row_bytes + block_bytes)
        a_moved, b_moved = nest(self._f, [middle], self._moving(), lambda: self._write_group(second))
        rest = self._kernel.window.run % DEPTH_STEP or DEPTH_STEP
        a_offset, b_offset = (1 + middle) * VECTOR_BYTES, self._row_bytes + (1 + middle) * block_bytes
        self._write_group(_Group(rest, a_offset - a_moved, b_offset - b_moved, is_last=True))

    def _write_windows(self) -> None:
        """Write loops over the runs of a window."""
        k = self._kernel
        for j in range(k.panel_vectors):
            self._sums[0].set(v128.load(self._b_at, VECTOR_BYTES * j))
            for i in range(k.tile_pixels):
                self._f.do(v128.store(self._scratch, self._sums[0], self._scratch_offset(i, j)))
        b_steps: list[int] = []
        b_moved = k.window.run * self._row_bytes
        for count, _ in reversed(k.window.steps):
            b_steps.insert(0, b_moved)
            b_moved *= count
        blocks = k.window.run // DEPTH_STEP
        pointers = [
            Pointer(self._a, tuple(step for _, step in k.window.steps), _moved(blocks, VECTOR_BYTES)),
            Pointer(self._b_at, tuple(b_steps), _moved(blocks, DEPTH_STEP * self._row_bytes)),
        ]
        nest(self._f, [count for count, _ in k.window.steps], pointers, self._write_run)
        if not k.is_finished_apart:
            for i in range(k.tile_pixels):
                for j in range(k.panel_vectors):
                    self._store(i, j, v128.load(self._scratch, self._scratch_offset(i, j)), is_last=True)

    def _write_run(self) -> None:
        blocks, rest = divmod(self._kernel.window.run, DEPTH_STEP)
        a_moved = b_moved = 0
        if blocks:
            group = _Group(DEPTH_STEP, 0, self._row_bytes)
            a_moved, b_moved = nest(self._f, [blocks], self._moving(), lambda: self._write_group(group))
        if rest:
            b_offset = self._row_bytes * (1 + blocks * DEPTH_STEP)
            self._write_group(_Group(rest, blocks * VECTOR_BYTES - a_moved, b_offset - b_moved))

    def _write_group(self, group: _Group) -> None:
        """Write up to four steps of depth for the whole tile; A is read four at a time, also beyond its end."""
        for first in range(0, self._kernel.tile_pixels, _ROWS_AT_ONCE):
            rows = range(first, min(first + _ROWS_AT_ONCE, self._kernel.tile_pixels))
            for i, spread in zip(rows, self._spread, strict=False):
                self._a_value.set(v128.load(self._a, i * self._kernel.a.pixel_bytes + group.a_offset))
                for step in range(group.steps):
                    spread[step].set(i8x16.shuffle_words(self._a_value, self._a_value, [step] * LANES))
            for j in range(self._kernel.panel_vectors):
                self._write_products(group, rows, j)

    def _write_products(self, group: _Group, rows: range, j: int) -> None:
        """Write the products of one vector of columns for up to two rows."""
        b_values = self._b_values[: group.steps]
        for step, value in enumerate(b_values):
            value.set(v128.load(self._b_at, group.b_offset + step * self._row_bytes + VECTOR_BYTES * j))
        for i, total in zip(rows, self._sums, strict=False):
            bias = v128.load(self._b_at, VECTOR_BYTES * j)
            total.set(bias if group.is_first else v128.load(self._scratch, self._scratch_offset(i, j)))
        for spread, total in zip(self._spread[: len(rows)], self._sums, strict=False):
            for value, b in zip(spread, b_values, strict=False):
                total.set(self._target.madd(b, value, total))
        for i, total in zip(rows, self._sums, strict=False):
            self._store(i, j, total, is_last=group.is_last and not self._kernel.is_finished_apart)

    def _store(self, i: int, j: int, total: V128, *, is_last: bool) -> None:
        """Write code that stores a sum into the scratch, or what is made of it into C."""
        k, f = self._kernel, self._f
        if not is_last:
            f.do(v128.store(self._scratch, total, self._scratch_offset(i, j)))
            return
        done = self._finish(total, lambda n: self._load_extra(n, i, j))
        place = self._c, i * k.c.pixel_bytes + VECTOR_BYTES * j
        store_vector(f, DType.F32, place, done, min(LANES, k.channels - LANES * j))

    def _scratch_offset(self, i: int, j: int) -> int:
        return (i * self._kernel.panel_vectors + j) * VECTOR_BYTES

    def _load_extra(self, number: int, i: int, j: int) -> V128:
        local, walk = self._extras[number]
        return walk.load(local, i * walk.pixel_bytes, VECTOR_BYTES * j)

    def _write_finish_loop(self) -> None:
        """Write loops over the sums of a tile that finish one vector at a time."""
        k, f = self._kernel, self._f
        full, rest = divmod(min(k.channels, k.panel_channels), LANES)
        walks = [Walk(k.panel_vectors * VECTOR_BYTES, 0), k.c, *(walk for _, walk in self._extras)]
        addresses = [f.variable(p) for p in (self._scratch, self._c, *(local for local, _ in self._extras))]
        steps = [VECTOR_BYTES if walk.channel_bytes else 0 for walk in walks]
        inside = [Pointer(p, (step,)) for p, step in zip(addresses, steps, strict=True)]
        around = [
            Pointer(p, (walk.pixel_bytes,), _moved(full, step))
            for p, walk, step in zip(addresses, walks, steps, strict=True)
        ]

        def write_vector(offset: int, count: int) -> None:
            value = v128.load(addresses[0], offset)
            done = self._finish(value, lambda n: walks[2 + n].load(addresses[2 + n], 0, offset))
            store_vector(f, DType.F32, (addresses[1], offset), done, count)

        def write_row() -> None:
            if full:
                nest(f, [full], inside, lambda: write_vector(0, LANES))
            if rest:
                write_vector(VECTOR_BYTES if full == 1 else 0, rest)

        nest(f, [k.tile_pixels], around, write_row)


def _moved(times: int, step_bytes: int) -> int:
    """Return how far a pointer is behind a loop of one dimension; one that runs once moves nothing."""
    return times * step_bytes if times > 1 else 0


def pack_panels(kernel: TileKernel, b: Floats, bias: Floats) -> Floats:
    """Return B (depth, channels) and its bias (channels,) in the order in which the kernel reads them.

    It is (panels, 1 + depth, columns of a panel).
    """
    width = kernel.panel_channels
    missing = max(width - kernel.channels, 0)
    b, bias = np.pad(b, ((0, 0), (0, missing))), np.pad(bias, (0, missing))
    parts = [
        part for start in kernel.panel_starts for part in (bias[start : start + width], b[:, start : start + width])
    ]
    panels = np.concatenate([part.ravel() for part in parts], dtype=np.float32)
    return panels.reshape(kernel.panels, -1, width)
