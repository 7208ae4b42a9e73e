"""Kernels that need each row of a value more than once: softmax and layer normalisation.

Reading may go up to twelve bytes beyond the end of an input.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from compiler.dtypes import DType
from compiler.formula import Formula
from compiler.formula.vector import write_vectors
from compiler.kernels import logarithm
from compiler.kernels.elementary import exp_nonpositive
from compiler.kernels.nest import Pointer, nest
from compiler.kernels.target import Target
from compiler.loops.box import Operand
from compiler.loops.elements import LANES, load_splat, store_vector
from compiler.wasm import V128, Function, I32Local, V128Local, f32x4, i8x16, i32x4, v128

_VECTOR_BYTES = 16
_SUMS: Final = 4
"""Vectors for one round of a loop, which an engine that can interrupt it makes dear; each adds to a sum of its own."""


class SoftmaxKernel(msgspec.Struct, frozen=True):
    """Everything that fixes the code of one kernel; elements of a row lie next to each other."""

    rows: tuple[int, ...]
    length: int
    input_bytes: tuple[int, ...]
    """From one row to the next, along each dimension of the rows."""
    output_bytes: tuple[int, ...]
    is_log: bool


def write_softmax(f: Function, kernel: SoftmaxKernel, target: Target) -> None:
    """Write the kernel into `f`, whose parameters become the addresses of the output and of the input."""
    _SoftmaxWriter(f, kernel, target).write()


class _SoftmaxWriter:
    def __init__(self, f: Function, kernel: SoftmaxKernel, target: Target) -> None:
        self._f, self._kernel, self._target = f, kernel, target
        self._output, self._input = f.param_i32(), f.param_i32()
        self._from, self._to = f.i32(), f.i32()
        self._totals, self._highests = _sums(f, kernel.length), _sums(f, kernel.length)
        self._total, self._highest = self._totals[0], self._highests[0]

    def write(self) -> None:
        k = self._kernel
        pointers = [Pointer(self._output, k.output_bytes), Pointer(self._input, k.input_bytes)]
        nest(self._f, k.rows, pointers, self._write_row)

    def _write_row(self) -> None:
        f = self._f
        _set_all(self._highests, float("-inf"))
        self._over_row(self._compare)
        _across(self._highests, f32x4.pmax)
        _set_all(self._totals, 0.0)
        self._over_row(self._sum_powers)
        _across(self._totals, f32x4.add)
        if self._kernel.is_log:
            self._total.set(logarithm.log(f, self._target, self._total))
            self._over_row(self._subtract_logarithm)
        else:
            self._total.set(f32x4.div(f32x4.const(1.0), self._total))
            self._over_row(self._scale)

    def _over_row(self, write: Callable[[int, int], None]) -> None:
        _over_row(self._f, self._kernel.length, [(self._input, self._from), (self._output, self._to)], write)

    def _masked(self, offset: int, count: int) -> V128:
        """Return elements of the input; those beyond the row are the lowest of all."""
        value = v128.load(self._from, offset)
        if count == LANES:
            return value
        return v128.bitselect(value, f32x4.const(float("-inf")), _first(count))

    def _compare(self, offset: int, count: int) -> None:
        highest = _at(self._highests, offset)
        highest.set(f32x4.pmax(highest, self._masked(offset, count)))

    def _sum_powers(self, offset: int, count: int) -> None:
        total = _at(self._totals, offset)
        shifted = f32x4.sub(self._masked(offset, count), self._highest)
        power: V128Local = self._f.keep(exp_nonpositive(self._f, self._target, shifted))  # type: ignore[assignment]
        if count < LANES:  # the power of the lowest number is next to nothing, but not nothing
            power.set(v128.and_(power, _first(count)))
        total.set(f32x4.add(total, power))
        if not self._kernel.is_log:
            store_vector(self._f, DType.F32, (self._to, offset), power, count)

    def _scale(self, offset: int, count: int) -> None:
        value = f32x4.mul(v128.load(self._to, offset), self._total)
        store_vector(self._f, DType.F32, (self._to, offset), value, count)

    def _subtract_logarithm(self, offset: int, count: int) -> None:
        shifted = f32x4.sub(v128.load(self._from, offset), self._highest)
        store_vector(self._f, DType.F32, (self._to, offset), f32x4.sub(shifted, self._total), count)


class LayerNormKernel(msgspec.Struct, frozen=True):
    """Everything that fixes the code of one kernel; elements of a row lie next to each other, in extras as well or all
    in one place.
    """

    rows: tuple[int, ...]
    length: int
    input_bytes: tuple[int, ...]
    """From one row to the next, along each dimension of the rows."""
    output_bytes: tuple[int, ...]
    extras: tuple[Operand, ...]
    """Further operands of the epilogue, over rows and row."""
    epsilon: float
    epilogue: Formula


def write_layer_norm(f: Function, kernel: LayerNormKernel, target: Target) -> None:
    """Write the kernel into `f`; its parameters become the addresses of the output, the input and each extra."""
    _LayerNormWriter(f, kernel, target).write()


class _LayerNormWriter:
    def __init__(self, f: Function, kernel: LayerNormKernel, target: Target) -> None:
        self._f, self._kernel, self._target = f, kernel, target
        self._output, self._input = f.param_i32(), f.param_i32()
        self._extras = [f.param_i32() for _ in kernel.extras]
        self._to, self._from, *self._beside = (f.i32() for _ in range(2 + len(kernel.extras)))
        self._sums = _sums(f, kernel.length)
        self._mean, self._scale = f.v128(), f.v128()

    def write(self) -> None:
        k = self._kernel
        extras = [Pointer(p, o.byte_strides[:-1]) for p, o in zip(self._extras, k.extras, strict=True)]
        pointers = [Pointer(self._output, k.output_bytes), Pointer(self._input, k.input_bytes), *extras]
        nest(self._f, k.rows, pointers, self._write_row)

    def _write_row(self) -> None:
        f, k = self._f, self._kernel
        source = [(self._input, self._from)]
        share = f32x4.const(1 / k.length)
        _set_all(self._sums, 0.0)
        _over_row(f, k.length, source, self._add_element)
        self._mean.set(f32x4.mul(_across(self._sums, f32x4.add), share))
        _set_all(self._sums, 0.0)
        _over_row(f, k.length, source, self._add_square)
        variance = f32x4.add(f32x4.mul(_across(self._sums, f32x4.add), share), f32x4.const(k.epsilon))
        self._scale.set(f32x4.div(f32x4.const(1.0), f32x4.sqrt(variance)))
        spread = {n: f.keep(load_splat(o.dtype, self._extras[n])) for n, o in enumerate(k.extras) if o.strides[-1] == 0}
        moving = [(self._extras[n], self._beside[n]) for n in range(len(k.extras)) if n not in spread]
        _over_row(f, k.length, [*source, (self._output, self._to), *moving], lambda o, c: self._finish(spread, o, c))

    def _add_element(self, offset: int, count: int) -> None:
        value, total = v128.load(self._from, offset), _at(self._sums, offset)
        total.set(f32x4.add(total, value if count == LANES else v128.and_(value, _first(count))))

    def _add_square(self, offset: int, count: int) -> None:
        difference = f32x4.sub(v128.load(self._from, offset), self._mean)
        centred = self._f.keep(difference if count == LANES else v128.and_(difference, _first(count)))
        total = _at(self._sums, offset)
        total.set(self._target.madd(centred, centred, total))

    def _finish(self, spread: dict[int, V128], offset: int, count: int) -> None:
        f, k = self._f, self._kernel
        value = f.keep(f32x4.mul(f32x4.sub(v128.load(self._from, offset), self._mean), self._scale))
        extras = [spread[n] if n in spread else f.keep(v128.load(p, offset)) for n, p in enumerate(self._beside)]
        result = write_vectors(f, self._target, k.epilogue, [value, *extras])
        store_vector(f, DType.F32, (self._to, offset), result, count)


def _over_row(
    f: Function, length: int, walks: Sequence[tuple[I32Local, I32Local]], write: Callable[[int, int], None]
) -> None:
    """Write code for each vector of a row; it gets an offset from the pointers and how many elements there are.

    Each walk is where the row starts, and the pointer that is to walk through it.
    """
    groups, rest = divmod(length, _SUMS * LANES)
    for start, pointer in walks:
        pointer.set(start)
    pointers = [Pointer(pointer, (_SUMS * _VECTOR_BYTES,)) for _, pointer in walks]

    def write_group() -> None:
        for n in range(_SUMS):
            write(n * _VECTOR_BYTES, LANES)

    moved = nest(f, [groups], pointers, write_group)[0] if groups else 0
    for first in range(0, rest, LANES):
        offset = groups * _SUMS * _VECTOR_BYTES - moved + first // LANES * _VECTOR_BYTES
        write(offset, min(LANES, rest - first))


def _sums(f: Function, length: int) -> list[V128Local]:
    """Return as many sums as a row has use for."""
    return [f.v128() for _ in range(min(_SUMS, -(-length // LANES)))]


def _at(sums: list[V128Local], offset: int) -> V128Local:
    """Return the sum for the vector at an offset."""
    return sums[offset // _VECTOR_BYTES % len(sums)]


def _set_all(sums: list[V128Local], number: float) -> None:
    for each in sums:
        each.set(f32x4.const(number))


def _across(sums: list[V128Local], combine: Callable[[V128, V128], V128]) -> V128Local:
    """Write code that combines all lanes of all sums, into all lanes of the first; return that."""
    total = sums[0]
    for other in sums[1:]:
        total.set(combine(total, other))
    for lanes in ((2, 3, 0, 1), (1, 0, 3, 2)):
        total.set(combine(total, i8x16.shuffle_words(total, total, lanes)))
    return total


def _first(count: int) -> V128:
    """Return the mask of the first lanes."""
    return i32x4.const(*(-1 if lane < count else 0 for lane in range(LANES)))
