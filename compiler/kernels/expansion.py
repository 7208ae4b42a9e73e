"""Numbers that are stored in fewer bytes than they take in memory: what makes floats of them when a module starts.

Stored numbers lie in a passive data segment, in groups of rows of `width` numbers, one record for each group:

    [scales: floats][zeros: bytes][heads: rows of floats][rows of codes]

Heads are rows that are stored as they are, such as a bias. Where codes are bytes, a number is `(code - zero) * scale`,
rounded once, with a scale and a zero for each column; where codes are floats, of 16 or of 32 bits, there are neither.
Rows come through a scratch, a few at a time, so that the memory never has both forms of a constant.

Filters of a convolution by Winograd's algorithm are stored as the model has them, nine rows for each input channel, and
transformed on their way into memory.
"""

import enum
from typing import Final

import msgspec

from compiler.kernels.walk import FLOAT_BYTES, LANES, VECTOR_BYTES
from compiler.kernels.winograd import FILTERS, TAPS
from compiler.wasm import I32, V128, Function, I32Local, V128Local, f32x4, f64x2, i8x16, i16x8, i32, i32x4, memory, v128
from compiler.wasm import select as either

MAX_WIDTH: Final = 128
_CHUNK_BYTES: Final = 16 * 1024
SCRATCH_BYTES: Final = MAX_WIDTH * (FLOAT_BYTES + 1) + _CHUNK_BYTES
"""What an expansion needs for itself: scales and zeros of a group, and the codes of some rows."""
_HALF_TO_FLOAT: Final = 2.0**112
"""The bits of a 16-bit float, moved to where those of a 32-bit float are, say a number that is so much too small."""


class Codes(enum.Enum):
    """What a number is stored as; the value is its name in reports."""

    BYTES = "bytes"
    HALVES = "halves"
    FLOATS = "floats"

    @property
    def item_bytes(self) -> int:
        """The size of one code."""
        return {Codes.BYTES: 1, Codes.HALVES: 2, Codes.FLOATS: FLOAT_BYTES}[self]

    @property
    def column_bytes(self) -> int:
        """What a column of a group takes beside its numbers: a scale and a zero, or nothing."""
        return FLOAT_BYTES + 1 if self is Codes.BYTES else 0


class ExpansionKernel(msgspec.Struct, frozen=True):
    """Everything that fixes the code of an expansion."""

    codes: Codes
    winograd_step: int | None = None
    """For filters that are transformed on their way: how far apart the windows are."""

    @property
    def rows_at_once(self) -> int:
        """How many rows become floats together."""
        return 1 if self.winograd_step is None else TAPS


def write_expansion(f: Function, kernel: ExpansionKernel, scratch: int, segment: int) -> None:
    """Write the kernel into `f`, which gets its parameters.

    They are: where the floats go; where the first record is in the data segment; how many groups there are; the bytes
    of the heads of a group; how often rows become floats in a group; numbers in a row, a multiple of four; and the
    bytes from one number of a window to the next, which is for filters alone.
    """
    _ExpansionWriter(f, kernel, scratch, segment).write()


class _ExpansionWriter:
    def __init__(self, f: Function, kernel: ExpansionKernel, scratch: int, segment: int) -> None:
        self._f, self._kernel, self._scratch, self._segment = f, kernel, scratch, segment
        self._target, self._source = f.param_i32(), f.param_i32()
        self._groups, self._head_bytes, self._rows, self._width = (f.param_i32() for _ in range(4))
        self._plane_bytes = f.param_i32()
        self._row_bytes, self._code, self._scale, self._zero = (f.i32() for _ in range(4))

    def write(self) -> None:
        f, codes = self._f, self._kernel.codes
        most, left, now = f.i32(), f.i32(), f.i32()
        self._row_bytes.set(self._width * codes.item_bytes)
        most.set(i32.div_u(i32.const(_CHUNK_BYTES), self._row_bytes * self._kernel.rows_at_once))
        first_code = f.keep(self._width * codes.column_bytes + self._scratch)
        with f.repeat(f.i32(), self._groups):
            if codes.column_bytes:
                self._take(i32.const(self._scratch), self._width * codes.column_bytes)
            self._take(self._target, self._head_bytes)
            self._target.set(self._target + self._head_bytes)
            left.set(self._rows)
            with f.loop() as again:
                now.set(either(i32.lt_u(left, most), left, most))
                self._take(first_code, now * self._row_bytes * self._kernel.rows_at_once)
                self._code.set(first_code)
                left.set(left - now)
                with f.repeat(now, now):
                    self._write_rows()
                f.branch(again, left)

    def _take(self, target: I32, size_bytes: I32) -> None:
        """Write a copy of what comes next in the data segment."""
        self._f.do(memory.init(self._segment, target, self._source, size_bytes))
        self._source.set(self._source + size_bytes)

    def _write_rows(self) -> None:
        f = self._f
        if self._kernel.codes is Codes.BYTES:
            self._scale.set(i32.const(self._scratch))
            self._zero.set(self._width * FLOAT_BYTES + self._scratch)
        with f.repeat(f.i32(), i32.div_u(self._width, i32.const(LANES))):
            if self._kernel.winograd_step is None:
                f.do(v128.store(self._target, self._floats()))
            else:
                self._write_filters(self._kernel.winograd_step)
            self._target.advance(VECTOR_BYTES)
            self._code.advance(LANES * self._kernel.codes.item_bytes)
            if self._kernel.codes is Codes.BYTES:
                self._scale.advance(VECTOR_BYTES)
                self._zero.advance(LANES)
        if self._kernel.winograd_step is not None:
            self._code.set(self._code + self._row_bytes * (TAPS - 1))

    def _floats(self) -> V128:
        """Return the floats of four codes."""
        match self._kernel.codes:
            case Codes.BYTES:
                whole = i32x4.sub(_bytes(self._code), _bytes(self._zero))
                return f32x4.mul(f32x4.convert_i32x4_s(whole), v128.load(self._scale))
            case Codes.HALVES:
                return _from_halves(self._f.variable(v128.load16x4_u(self._code)))
        return v128.load(self._code)

    def _write_filters(self, step: int) -> None:
        """Write the transformation of four columns of filters, in 64-bit floats as `transformed_filters` does it."""
        f, points = self._f, FILTERS[step]
        taps = []
        for _ in range(TAPS):
            number = f.variable(self._floats())
            taps.append([f.variable(f64x2.promote_low_f32x4(half)) for half in (number, _high(number))])
            self._code.set(self._code + self._row_bytes)
        self._code.set(self._code - self._row_bytes * TAPS)
        place = f.variable(self._target)
        for at_row in points:
            columns = [[_dot(at_row, taps[column::3], half) for half in range(2)] for column in range(3)]
            kept = [[f.variable(half) for half in column] for column in columns]
            for at_column in points:
                low, high = (f32x4.demote_f64x2_zero(_dot(at_column, kept, half)) for half in range(2))
                f.do(v128.store(place, i8x16.shuffle_words(low, high, (0, 1, 4, 5))))
                place.set(place + self._plane_bytes)


def _bytes(address: I32Local) -> V128:
    return i32x4.extend_low_i16x8_u(i16x8.extend_low_i8x16_u(v128.load32_zero(address)))


def _from_halves(half: V128Local) -> V128:
    """Return four 16-bit floats, each in 32 bits, as 32-bit floats; infinite ones and NaN keep their bits."""
    moved = i32x4.shl(v128.and_(half, i32x4.const(0x7FFF)), i32.const(13))
    number = f32x4.mul(moved, f32x4.const(_HALF_TO_FLOAT))
    is_special = i32x4.gt_u(v128.and_(half, i32x4.const(0x7FFF)), i32x4.const(0x7BFF))
    number = v128.or_(number, v128.and_(is_special, i32x4.const(0x7F800000)))
    return v128.or_(number, i32x4.shl(v128.and_(half, i32x4.const(0x8000)), i32.const(16)))


def _high(number: V128Local) -> V128:
    return i8x16.shuffle_words(number, number, (2, 3, 2, 3))


def _dot(point: "list[float]", numbers: "list[list[V128Local]]", half: int) -> V128:
    """Return the sum of three products, in order."""
    products = [f64x2.mul(number[half], f64x2.const(factor)) for number, factor in zip(numbers, point, strict=True)]
    return f64x2.add(f64x2.add(products[0], products[1]), products[2])
