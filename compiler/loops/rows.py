"""Kernels that need each row of a value more than once: the softmax of a row."""

from collections.abc import Callable

import msgspec

from compiler.dtypes import DType
from compiler.kernels import logarithm
from compiler.kernels.elementary import exp_nonpositive
from compiler.kernels.nest import Pointer, nest
from compiler.kernels.target import Target
from compiler.loops.elements import LANES, store_vector
from compiler.wasm import V128, Function, V128Local, f32x4, i8x16, i32x4, v128

_VECTOR_BYTES = 16


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
        self._from, self._to, self._total, self._highest = f.i32(), f.i32(), f.v128(), f.v128()

    def write(self) -> None:
        k = self._kernel
        pointers = [Pointer(self._output, k.output_bytes), Pointer(self._input, k.input_bytes)]
        nest(self._f, k.rows, pointers, self._write_row)

    def _write_row(self) -> None:
        f = self._f
        lowest = f32x4.const(float("-inf"))
        self._highest.set(lowest)
        self._over_row(lambda offset, count: self._highest.set(f32x4.pmax(self._highest, self._masked(offset, count))))
        for lanes in ((2, 3, 0, 1), (1, 0, 3, 2)):
            self._highest.set(f32x4.pmax(self._highest, i8x16.shuffle_words(self._highest, self._highest, lanes)))
        self._total.set(f32x4.const(0.0))
        self._over_row(self._sum_powers)
        for lanes in ((2, 3, 0, 1), (1, 0, 3, 2)):
            self._total.set(f32x4.add(self._total, i8x16.shuffle_words(self._total, self._total, lanes)))
        if self._kernel.is_log:
            self._total.set(f32x4.add(logarithm.log(f, self._target, self._total), self._highest))
            self._over_row(self._subtract_logarithm)
        else:
            self._total.set(f32x4.div(f32x4.const(1.0), self._total))
            self._over_row(self._scale)

    def _over_row(self, write: Callable[[int, int], None]) -> None:
        """Write code for each vector of the row; it gets an offset and how many elements there are."""
        f = self._f
        vectors, rest = divmod(self._kernel.length, LANES)
        self._from.set(self._input)
        self._to.set(self._output)
        pointers = [Pointer(self._from, (_VECTOR_BYTES,)), Pointer(self._to, (_VECTOR_BYTES,))]
        moved = nest(f, [vectors], pointers, lambda: write(0, LANES))[0] if vectors else 0
        if rest:
            write(vectors * _VECTOR_BYTES - moved, rest)

    def _masked(self, offset: int, count: int) -> V128:
        """Return elements of the input; those beyond the row are the lowest of all."""
        value = v128.load(self._from, offset)
        if count == LANES:
            return value
        mask = i32x4.const(*(-1 if lane < count else 0 for lane in range(LANES)))
        return v128.bitselect(value, f32x4.const(float("-inf")), mask)

    def _sum_powers(self, offset: int, count: int) -> None:
        shifted = f32x4.sub(self._masked(offset, count), self._highest)
        power: V128Local = self._f.keep(exp_nonpositive(self._f, self._target, shifted))  # type: ignore[assignment]
        if count < LANES:  # the power of the lowest number is next to nothing, but not nothing
            mask = i32x4.const(*(-1 if lane < count else 0 for lane in range(LANES)))
            power.set(v128.and_(power, mask))
        self._total.set(f32x4.add(self._total, power))
        if not self._kernel.is_log:
            store_vector(self._f, DType.F32, (self._to, offset), power, count)

    def _scale(self, offset: int, count: int) -> None:
        value = f32x4.mul(v128.load(self._to, offset), self._total)
        store_vector(self._f, DType.F32, (self._to, offset), value, count)

    def _subtract_logarithm(self, offset: int, count: int) -> None:
        value = f32x4.sub(v128.load(self._from, offset), self._total)
        store_vector(self._f, DType.F32, (self._to, offset), value, count)
