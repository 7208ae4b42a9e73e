"""Elementwise kernels: one formula for every index of a box.

The dimensions are walked in the order of the output. Where the output's elements lie next to each other, and the
formula allows it, four are computed at a time; the last ones of a row, if they are fewer, as well, and only they are
stored. Inputs are then read as vectors, spread from one element, or gathered at a stride. Reading may go up to twelve
bytes beyond the end of an input.
"""

from typing import Final

import msgspec

from compiler.formula import Formula
from compiler.formula.scalar import write_scalars
from compiler.formula.vector import FUNCTIONS, is_vectorizable, write_vectors
from compiler.kernels.nest import Pointer, nest
from compiler.kernels.target import Target
from compiler.loops.box import Operand, ordered, simplify
from compiler.loops.elements import LANES, load, load_splat, load_strided, load_vector, store, store_vector
from compiler.wasm import V128, Function

_UNROLLED_INSTRUCTIONS: Final = 24
"""Code of about this size is worth a round of a loop."""
_MAX_UNROLL: Final = 4


class MapKernel(msgspec.Struct, frozen=True):
    """Everything that fixes the code of one kernel."""

    extents: tuple[int, ...]
    output: Operand
    inputs: tuple[Operand, ...]
    formula: Formula

    def simplified(self) -> "MapKernel":
        """Return the same kernel in its simplest form: kernels that do the same are equal."""
        order = sorted(range(len(self.extents)), key=lambda n: -abs(self.output.strides[n]))
        box = ordered(self.extents, (self.output, *self.inputs), order)
        extents, (output, *inputs) = simplify(*box)
        return MapKernel(extents, output, tuple(inputs), self.formula)


def write_map(f: Function, kernel: MapKernel, target: Target) -> None:
    """Write the kernel into `f`, whose parameters become the addresses of the output and of each input."""
    _MapWriter(f, kernel, target).write()


class _MapWriter:
    def __init__(self, f: Function, kernel: MapKernel, target: Target) -> None:
        self._f, self._kernel, self._target = f, kernel, target
        self._output = f.param_i32()
        self._inputs = [f.param_i32() for _ in kernel.inputs]
        self._spread: dict[int, V128] = {}
        is_row = bool(kernel.extents) and kernel.output.strides[-1] == 1
        backwards = any(operand.strides[-1] < 0 for operand in kernel.inputs) if is_row else True
        self._is_vector = is_row and not backwards and is_vectorizable(kernel.formula)

    def write(self) -> None:
        extents = self._kernel.extents
        if not self._is_vector:
            nest(self._f, extents, self._pointers(), self._write_element)
            return
        vectors, rest = divmod(extents[-1], LANES)
        unroll = self._unroll(vectors)
        rounds, more = divmod(vectors, unroll)
        moved = [step * rounds * unroll * LANES if rounds > 1 else 0 for step in self._row_steps()]
        nest(self._f, extents[:-1], self._pointers(moved), lambda: self._write_row(rounds, unroll, more, rest))

    def _pointers(self, moved: list[int] | None = None) -> list[Pointer]:
        operands = (self._kernel.output, *self._kernel.inputs)
        locals_ = (self._output, *self._inputs)
        if moved is None:
            return [Pointer(p, o.byte_strides) for p, o in zip(locals_, operands, strict=True)]
        return [Pointer(p, o.byte_strides[:-1], m) for p, o, m in zip(locals_, operands, moved, strict=True)]

    def _row_steps(self) -> list[int]:
        return [operand.byte_strides[-1] for operand in (self._kernel.output, *self._kernel.inputs)]

    def _unroll(self, vectors: int) -> int:
        cost = sum(20 if i.operation in FUNCTIONS else 1 for i in self._kernel.formula.instructions)
        return max(1, min(_MAX_UNROLL, vectors, _UNROLLED_INSTRUCTIONS // cost))

    def _write_row(self, rounds: int, unroll: int, more: int, rest: int) -> None:
        for number, (address, operand) in enumerate(zip(self._inputs, self._kernel.inputs, strict=True)):
            if operand.strides[-1] == 0:
                self._spread[number] = self._f.keep(load_splat(operand.dtype, address))
        steps = self._row_steps()
        pointers = [
            Pointer(p, (step * unroll * LANES,)) for p, step in zip((self._output, *self._inputs), steps, strict=True)
        ]

        def write_round() -> None:
            for n in range(unroll):
                self._write_vector(n * LANES, LANES)

        done = 0
        if rounds:
            nest(self._f, [rounds], pointers, write_round)
            done = 0 if rounds > 1 else unroll
        for n in range(more):
            self._write_vector((done + n) * LANES, LANES)
        if rest:
            self._write_vector((done + more) * LANES, rest)

    def _write_vector(self, index: int, count: int) -> None:
        """Write `count` elements, from `index` elements behind where the pointers are."""
        args = [self._load(n, index, count) for n in range(len(self._inputs))]
        value = write_vectors(self._f, self._target, self._kernel.formula, args)
        dtype = self._kernel.output.dtype
        store_vector(self._f, dtype, (self._output, index * dtype.item_bytes), value, count)

    def _load(self, number: int, index: int, count: int) -> V128:
        address, operand = self._inputs[number], self._kernel.inputs[number]
        stride = operand.strides[-1]
        if stride == 0:
            return self._spread[number]
        offset = index * operand.byte_strides[-1]
        if stride == 1:
            value = load_vector(operand.dtype, address, offset)
        else:
            value = load_strided(operand.dtype, address, operand.byte_strides[-1], count, offset)
        return self._f.keep(value) if self._is_reused(number) else value

    def _write_element(self) -> None:
        args = []
        for number, (address, operand) in enumerate(zip(self._inputs, self._kernel.inputs, strict=True)):
            value = load(operand.dtype, address)
            args.append(self._f.keep(value) if self._is_reused(number) else value)
        value = write_scalars(self._f, self._target, self._kernel.formula, args)
        self._f.do(store(self._kernel.output.dtype, self._output, value))

    def _is_reused(self, number: int) -> bool:
        """Whether the formula reads an operand more than once."""
        uses = self._kernel.formula.uses()
        instructions = self._kernel.formula.instructions
        return any(uses[n] > 1 for n, i in enumerate(instructions) if i.operation == "arg" and int(i.value) == number)
