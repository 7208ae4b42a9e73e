"""Kernels that go along one dimension and remember: running sums, the place of an extreme, the greatest few."""

from typing import cast

import msgspec

from compiler.dtypes import DType
from compiler.formula import Formula
from compiler.formula.scalar import constant, write_scalars
from compiler.kernels.nest import Pointer, nest
from compiler.kernels.target import Target
from compiler.loops.box import Operand
from compiler.loops.elements import load, store
from compiler.loops.reduce import neutral
from compiler.wasm import I32, Expr, Function, i32, i64
from compiler.wasm.instruction import by_name


class RunningKernel(msgspec.Struct, frozen=True):
    """A running total along the last dimension, in a given direction."""

    extents: tuple[int, ...]
    input: Operand
    output: Operand
    combine: str
    formula: Formula
    is_exclusive: bool
    """Whether each total leaves out its own element."""


def write_running(f: Function, kernel: RunningKernel, target: Target) -> None:
    """Write the kernel into `f`, whose parameters become the addresses of the output and of the input."""
    output, source = f.param_i32(), f.param_i32()
    dtype = kernel.input.dtype
    total = f.variable(constant(dtype, neutral(kernel.combine, dtype)))
    to, at = f.i32(), f.i32()

    def write_one() -> None:
        value = f.keep(load(dtype, at))
        if kernel.is_exclusive:
            f.do(store(dtype, to, total))
        total.set(write_scalars(f, target, kernel.formula, [total, value]))
        if not kernel.is_exclusive:
            f.do(store(dtype, to, total))

    def write_row() -> None:
        total.set(constant(dtype, neutral(kernel.combine, dtype)))
        to.set(output)
        at.set(source)
        steps = kernel.output.byte_strides[-1:], kernel.input.byte_strides[-1:]
        nest(f, kernel.extents[-1:], [Pointer(to, steps[0]), Pointer(at, steps[1])], write_one)

    pointers = [
        Pointer(output, kernel.output.byte_strides[:-1]),
        Pointer(source, kernel.input.byte_strides[:-1]),
    ]
    nest(f, kernel.extents[:-1], pointers, write_row)


class ExtremeKernel(msgspec.Struct, frozen=True):
    """The place of the greatest or least element along the last dimension."""

    extents: tuple[int, ...]
    input: Operand
    output: Operand
    """Over all dimensions but the last; 64-bit integers."""
    is_greatest: bool
    is_last: bool
    """Whether the last of equal ones is meant."""


def write_extreme(f: Function, kernel: ExtremeKernel) -> None:
    """Write the kernel into `f`, whose parameters become the addresses of the output and of the input."""
    output, source = f.param_i32(), f.param_i32()
    dtype = kernel.input.dtype
    best, place, position, at = f.variable(constant(dtype, 0)), f.i32(), f.i32(), f.i32()

    def write_one() -> None:
        value = f.keep(load(dtype, at))
        is_better = compare(dtype, value, best, is_greater=kernel.is_greatest, or_equal=kernel.is_last)
        with f.if_(is_better):
            best.set(value)
            place.set(position)
        position.advance(1)

    def write_row() -> None:
        best.set(load(dtype, source))
        place.set(i32.const(0))
        position.set(i32.const(0))
        at.set(source)
        nest(f, kernel.extents[-1:], [Pointer(at, kernel.input.byte_strides[-1:])], write_one)
        f.do(i64.store(output, i64.extend_i32_u(place)))

    pointers = [Pointer(output, kernel.output.byte_strides), Pointer(source, kernel.input.byte_strides[:-1])]
    nest(f, kernel.extents[:-1], pointers, write_row)


def compare(dtype: DType, a: Expr, b: Expr, *, is_greater: bool, or_equal: bool = False) -> I32:
    """Return whether an element is greater (or less) than another one."""
    prefix = {"float32": "f32", "float64": "f64"}.get(dtype.value, "i64" if dtype.bits == 64 else "i32")
    name = ("ge" if or_equal else "gt") if is_greater else ("le" if or_equal else "lt")
    sign = "" if dtype.is_float else "_s" if dtype.is_signed else "_u"
    return cast("I32", by_name(f"{prefix}.{name}{sign}", a, b))


class TopKernel(msgspec.Struct, frozen=True):
    """The greatest or least few elements along the last dimension, in order, and their places."""

    extents: tuple[int, ...]
    count: int
    input: Operand
    values: Operand
    places: Operand
    """64-bit integers."""
    is_greatest: bool


def write_top(f: Function, kernel: TopKernel) -> None:
    """Write the kernel into `f`: parameters are the addresses of values, places and input.

    Each element that is better than the last of the best so far is put among them where it belongs; of equal ones the
    first stays first.
    """
    _TopWriter(f, kernel).write()


class _TopWriter:
    def __init__(self, f: Function, kernel: TopKernel) -> None:
        self._f, self._kernel = f, kernel
        self._values, self._places, self._input = f.param_i32(), f.param_i32(), f.param_i32()
        self._at, self._position, self._held = f.i32(), f.i32(), f.i32()
        self._to_value, self._to_place = f.i32(), f.i32()
        self._value = f.variable(constant(kernel.input.dtype, 0))

    def write(self) -> None:
        k = self._kernel
        operands = ((self._values, k.values), (self._places, k.places), (self._input, k.input))
        pointers = [Pointer(p, o.byte_strides[:-1]) for p, o in operands]
        nest(self._f, k.extents[:-1], pointers, self._write_row)

    def _write_row(self) -> None:
        k = self._kernel
        self._at.set(self._input)
        self._position.set(i32.const(0))
        self._held.set(i32.const(0))
        nest(self._f, k.extents[-1:], [Pointer(self._at, k.input.byte_strides[-1:])], self._write_one)

    def _write_one(self) -> None:
        f, k = self._f, self._kernel
        dtype = k.input.dtype
        value_step, place_step = k.values.byte_strides[-1], k.places.byte_strides[-1]
        self._value.set(load(dtype, self._at))
        with f.block() as done:
            with f.if_(i32.eq(self._held, i32.const(k.count))):
                last = load(dtype, self._values + (k.count - 1) * value_step)
                is_better = compare(dtype, self._value, last, is_greater=k.is_greatest)
                f.branch(done, i32.eqz(is_better))
                self._held.advance(-1)
            # From the end on, those that are worse move one place back.
            self._to_value.set(self._values + self._held * value_step)
            self._to_place.set(self._places + self._held * place_step)
            with f.block() as found, f.loop() as again:
                f.branch(found, i32.eq(self._to_value, self._values))
                before = load(dtype, self._to_value - value_step)
                f.branch(found, i32.eqz(compare(dtype, self._value, before, is_greater=k.is_greatest)))
                f.do(store(dtype, self._to_value, before))
                f.do(i64.store(self._to_place, i64.load(self._to_place - place_step)))
                self._to_value.advance(-value_step)
                self._to_place.advance(-place_step)
                f.branch(again)
            f.do(store(dtype, self._to_value, self._value))
            f.do(i64.store(self._to_place, i64.extend_i32_u(self._position)))
            self._held.advance(1)
        self._position.advance(1)
