"""Reducing kernels: sums, products, extremes over some dimensions of a box; sums of products among them.

The box has kept dimensions and reduced ones. For each index of the kept ones, `element` is computed from the inputs at
every index of the reduced ones, the results are combined, and `finish` makes the output of that and of further
operands. Four outputs are computed at a time where they lie next to each other, or else each output from four elements
at a time; several sums run beside each other, so that none waits for the other. Reading may go up to twelve bytes
beyond the end of an input.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from compiler.dtypes import DType
from compiler.formula import Formula, Writer
from compiler.formula.formula import Number
from compiler.formula.scalar import constant, write_scalars
from compiler.formula.vector import is_vectorizable, write_vectors
from compiler.kernels.nest import Pointer, nest
from compiler.kernels.target import Target
from compiler.loops.box import Operand, ordered, simplify
from compiler.loops.elements import LANES, load, load_splat, load_strided, load_vector, store, store_vector
from compiler.wasm import V128, Expr, Function, I32Local, V128Local, f32x4, i8x16, i32x4, v128

_SUMS: Final = 4
"""How many vectors are combined beside each other."""


class ReduceKernel(msgspec.Struct, frozen=True):
    """Everything that fixes the code of one kernel. Inputs lie over the kept and then the reduced dimensions."""

    kept: tuple[int, ...]
    reduced: tuple[int, ...]
    output: Operand
    inputs: tuple[Operand, ...]
    extras: tuple[Operand, ...]
    """Further operands of `finish`, over the kept dimensions."""
    element: Formula
    combine: str
    finish: Formula
    """Its first operand is what was combined."""

    def simplified(self) -> "ReduceKernel":
        """Return the same kernel in its simplest form: kernels that do the same are equal."""
        rank = len(self.kept)
        order = sorted(range(rank), key=lambda n: -abs(self.output.strides[n]))
        over_kept = [Operand(o.dtype, o.strides[:rank]) for o in self.inputs]
        kept, (output, *rest) = simplify(*ordered(self.kept, (self.output, *over_kept, *self.extras), order))
        inside = [Operand(o.dtype, o.strides[rank:]) for o in self.inputs]
        order = sorted(range(len(self.reduced)), key=lambda n: -max(abs(o.strides[n]) for o in inside))
        reduced, inside_ = simplify(*ordered(self.reduced, inside, order))
        inputs = tuple(
            Operand(o.dtype, o.strides + i.strides) for o, i in zip(rest[: len(inside)], inside_, strict=True)
        )
        extras = tuple(rest[len(inside) :])
        return ReduceKernel(kept, reduced, output, inputs, extras, self.element, self.combine, self.finish)


def neutral(combine: str, dtype: DType) -> Number:
    """Return the number that changes nothing."""
    match combine:
        case "add" | "or":
            return 0
        case "mul" | "and":
            return 1
    if dtype.is_float:
        return float("inf") if combine in {"min", "at_most"} else float("-inf")
    if dtype is DType.BOOL:
        return combine in {"min", "at_most"}
    limits = np.iinfo(dtype.value)
    return int(limits.max if combine in {"min", "at_most"} else limits.min)


def write_reduce(f: Function, kernel: ReduceKernel, target: Target) -> None:
    """Write the kernel into `f`: parameters are the addresses of the output, of each input and of each extra."""
    writer = _ReduceWriter(f, kernel, target)
    match _direction(kernel):
        case "kept":
            writer.write_over_kept()
        case "reduced":
            writer.write_over_reduced()
        case _:
            writer.write_scalars()


def _direction(kernel: ReduceKernel) -> str:
    """Return which dimensions are walked four at a time: `kept`, `reduced` or none."""
    formulas = (kernel.element, kernel.finish, _combining(kernel))
    if not all(is_vectorizable(formula) for formula in formulas):
        return "none"
    rank = len(kernel.kept)
    outer = [o.strides[rank - 1] for o in kernel.inputs] if rank else []
    inner = [o.strides[-1] for o in kernel.inputs] if kernel.reduced else []
    can_keep = rank > 0 and kernel.output.strides[-1] == 1 and min(outer, default=0) >= 0
    can_keep &= min((o.strides[-1] for o in kernel.extras), default=0) >= 0 if rank else False
    can_reduce = bool(inner) and all(stride in {0, 1} for stride in inner)
    is_long_row = can_reduce and kernel.reduced[-1] >= 2 * LANES
    if can_keep and all(stride in {0, 1} for stride in outer) and not (is_long_row and kernel.kept[-1] < LANES):
        return "kept"
    if can_reduce:
        return "reduced"
    return "kept" if can_keep else "none"


def _combining(kernel: ReduceKernel) -> Formula:
    dtype = kernel.element.dtype
    writer = Writer([dtype, dtype])
    return writer.formula(writer.apply(kernel.combine, writer.arg(0), writer.arg(1)))


class _ReduceWriter:
    def __init__(self, f: Function, kernel: ReduceKernel, target: Target) -> None:
        self._f, self._kernel, self._target = f, kernel, target
        self._output = f.param_i32()
        self._inputs = [f.param_i32() for _ in kernel.inputs]
        self._extras = [f.param_i32() for _ in kernel.extras]
        self._combine = _combining(kernel)
        self._neutral = neutral(kernel.combine, kernel.element.dtype)
        self._rank = len(kernel.kept)

    def write_over_kept(self) -> None:
        """Write code that computes four outputs at a time."""
        row = self._kernel.kept[-1]
        groups, rest = divmod(row, _SUMS * LANES)
        counts = [LANES] * (rest // LANES) + ([rest % LANES] if rest % LANES else [])
        step = _SUMS * LANES
        moved = [s * step * groups if groups > 1 else 0 for s in self._kept_steps()]

        def write_row() -> None:
            locals_ = (self._output, *self._inputs, *self._extras)
            pointers = [Pointer(p, (s * step,)) for p, s in zip(locals_, self._kept_steps(), strict=True)]
            if groups:
                nest(self._f, [groups], pointers, lambda: self._write_outputs([LANES] * _SUMS, 0))
            if counts:
                self._write_outputs(counts, step if groups == 1 else 0)

        nest(self._f, self._kernel.kept[:-1], self._kept_pointers(self._rank - 1, moved), write_row)

    def _write_outputs(self, counts: list[int], start: int) -> None:
        """Write code for as many vectors of outputs as there are counts, `start` elements behind the pointers."""
        f, kernel = self._f, self._kernel
        sums = [f.variable(_vector(kernel.element.dtype, self._neutral)) for _ in counts]
        at = [f.variable(pointer) for pointer in self._inputs]
        strides = [o.byte_strides[self._rank :] for o in kernel.inputs]

        def combine_one() -> None:
            for n, (total, count) in enumerate(zip(sums, counts, strict=True)):
                args = [
                    self._load(at[i], o, o.strides[self._rank - 1], start + n * LANES, count)
                    for i, o in enumerate(kernel.inputs)
                ]
                self._combine_into(total, args)

        nest(f, kernel.reduced, [Pointer(a, s) for a, s in zip(at, strides, strict=True)], combine_one)
        for n, (total, count) in enumerate(zip(sums, counts, strict=True)):
            index = start + n * LANES
            extras = [
                f.keep(self._load(p, o, o.strides[-1], index, count))
                for p, o in zip(self._extras, kernel.extras, strict=True)
            ]
            value = write_vectors(f, self._target, kernel.finish, [total, *extras])
            dtype = kernel.output.dtype
            store_vector(f, dtype, (self._output, index * dtype.item_bytes), value, count)

    def write_over_reduced(self) -> None:
        """Write code that computes each output from four elements at a time."""
        nest(self._f, self._kernel.kept, self._kept_pointers(self._rank), self._write_one_output)

    def _write_one_output(self) -> None:
        f, kernel = self._f, self._kernel
        dtype = kernel.element.dtype
        groups, rest = divmod(kernel.reduced[-1], _SUMS * LANES)
        vectors, tail = divmod(rest, LANES)
        sums = [f.variable(_vector(dtype, self._neutral)) for _ in range(_SUMS if groups else max(1, vectors))]
        at = [f.variable(pointer) for pointer in self._inputs]
        steps = [o.byte_strides[-1] * _SUMS * LANES for o in kernel.inputs]
        outer = [o.byte_strides[self._rank : -1] for o in kernel.inputs]
        moved = [step * groups if groups > 1 else 0 for step in steps]

        def combine_row() -> None:
            pointers = [Pointer(a, (step,)) for a, step in zip(at, steps, strict=True)]
            if groups:
                nest(f, [groups], pointers, lambda: self._combine_vectors(sums, at, range(_SUMS)))
            first = _SUMS if groups == 1 else 0
            self._combine_vectors(sums, at, range(first, first + vectors))
            if tail:
                self._combine_tail(sums[0], at, (first + vectors) * LANES, tail)

        nest(f, kernel.reduced[:-1], [Pointer(a, o, m) for a, o, m in zip(at, outer, moved, strict=True)], combine_row)
        total = self._across(sums)
        extras = [f.keep(load_splat(o.dtype, p)) for p, o in zip(self._extras, kernel.extras, strict=True)]
        value = write_vectors(f, self._target, kernel.finish, [total, *extras])
        store_vector(f, kernel.output.dtype, (self._output, 0), value, 1)

    def _combine_vectors(self, sums: list[V128Local], at: list[I32Local], vectors: Sequence[int]) -> None:
        for n in vectors:
            args = [
                self._load(a, o, o.strides[-1], n * LANES, LANES) for a, o in zip(at, self._kernel.inputs, strict=True)
            ]
            self._combine_into(sums[n % len(sums)], args)

    def _combine_tail(self, total: V128Local, at: list[I32Local], index: int, count: int) -> None:
        """Combine the first `count` lanes of one more vector; the others are made neutral."""
        f, kernel = self._f, self._kernel
        args = [self._load(a, o, o.strides[-1], index, count) for a, o in zip(at, kernel.inputs, strict=True)]
        value = write_vectors(f, self._target, kernel.element, args)
        mask = i32x4.const(*(-1 if lane < count else 0 for lane in range(LANES)))
        kept = v128.bitselect(value, _vector(kernel.element.dtype, self._neutral), mask)
        total.set(write_vectors(f, self._target, self._combine, [total, f.keep(kept)]))

    def _across(self, sums: list[V128Local]) -> V128Local:
        """Return everything that was combined, in all lanes."""
        total = sums[0]
        for other in sums[1:]:
            total.set(write_vectors(self._f, self._target, self._combine, [total, other]))
        for lanes in ((2, 3, 0, 1), (1, 0, 3, 2)):
            turned = self._f.keep(i8x16.shuffle_words(total, total, lanes))
            total.set(write_vectors(self._f, self._target, self._combine, [total, turned]))
        return total

    def write_scalars(self) -> None:
        """Write code that takes one element after the other."""
        nest(self._f, self._kernel.kept, self._kept_pointers(self._rank), self._write_one_scalar)

    def _write_one_scalar(self) -> None:
        f, kernel = self._f, self._kernel
        dtype = kernel.element.dtype
        total = f.variable(constant(dtype, self._neutral))
        at = [f.variable(pointer) for pointer in self._inputs]

        def combine_one() -> None:
            args: list[Expr] = [f.keep(load(o.dtype, a)) for a, o in zip(at, kernel.inputs, strict=True)]
            value = f.keep(write_scalars(f, self._target, kernel.element, args))
            total.set(write_scalars(f, self._target, self._combine, [total, value]))

        strides = [o.byte_strides[self._rank :] for o in kernel.inputs]
        nest(f, kernel.reduced, [Pointer(a, s) for a, s in zip(at, strides, strict=True)], combine_one)
        extras: list[Expr] = [f.keep(load(o.dtype, p)) for p, o in zip(self._extras, kernel.extras, strict=True)]
        value = write_scalars(f, self._target, kernel.finish, [total, *extras])
        f.do(store(kernel.output.dtype, self._output, value))

    def _combine_into(self, total: V128Local, args: list[V128]) -> None:
        f, kernel = self._f, self._kernel
        if kernel.combine == "add" and _is_product(kernel.element):
            total.set(self._target.madd(args[0], args[1], total))
            return
        value = write_vectors(f, self._target, kernel.element, args)
        total.set(write_vectors(f, self._target, self._combine, [total, f.keep(value)]))

    def _load(self, address: I32Local, operand: Operand, stride: int, index: int, count: int) -> V128:
        if stride == 0:
            return self._f.keep(load_splat(operand.dtype, address))
        offset = index * stride * operand.dtype.item_bytes
        if stride == 1:
            return self._f.keep(load_vector(operand.dtype, address, offset))
        return self._f.keep(load_strided(operand.dtype, address, stride * operand.dtype.item_bytes, count, offset))

    def _kept_steps(self) -> list[int]:
        """Return the strides in bytes along the last kept dimension."""
        k = self._kernel
        return [
            k.output.byte_strides[-1],
            *(o.byte_strides[self._rank - 1] for o in k.inputs),
            *(o.byte_strides[-1] for o in k.extras),
        ]

    def _kept_pointers(self, rank: int, moved: Sequence[int] | None = None) -> list[Pointer]:
        """Return the pointers with their steps along the first `rank` kept dimensions."""
        k = self._kernel
        locals_ = (self._output, *self._inputs, *self._extras)
        operands = (k.output, *k.inputs, *k.extras)
        distances = moved or [0] * len(locals_)
        return [Pointer(p, o.byte_strides[:rank], m) for p, o, m in zip(locals_, operands, distances, strict=True)]


def _is_product(formula: Formula) -> bool:
    """Whether a formula is the product of its two operands, as floats."""
    [*args, last] = formula.instructions
    return (
        last.operation == "mul"
        and last.dtype is DType.F32
        and [(i.operation, i.value) for i in args] == [("arg", 0), ("arg", 1)]
        and last.operands == (0, 1)
    )


def _vector(dtype: DType, value: Number) -> V128:
    if dtype is DType.F32:
        return f32x4.const(value)
    return i32x4.const(-int(value) if dtype is DType.BOOL else int(value))
