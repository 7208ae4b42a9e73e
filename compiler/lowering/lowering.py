"""Walks a graph and decides, for each node, where its results lie and by which steps they are computed.

Views cost nothing here: they are other placements of the same buffer. What a kernel cannot read where it lies is copied
first, once for each arrangement that is asked for.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.errors import InternalError
from compiler.formula import Formula, identity
from compiler.ir import Graph, Node, TensorType
from compiler.ir import operations as ops
from compiler.ir.graph import Operation, type_of
from compiler.kernels.target import Target
from compiler.loops.fill import FillKernel, write_fill
from compiler.loops.map import MapKernel, write_map
from compiler.lowering.layout import Layout, choose_layouts
from compiler.lowering.placement import Placement, broadcast, dense, no_border, view
from compiler.lowering.step import Buffer, Emitter, Step
from compiler.lowering.storing import Stored, stored
from compiler.options import Weights

Array = NDArray[Any]


Rule = Callable[["Lowering", Node, Any], None]
RULES: dict[type[Operation], Rule] = {}
"""How each operation is lowered; `compiler.lowering.nodes` fills it."""


class Lowered(msgspec.Struct, frozen=True):
    """A graph as steps on buffers."""

    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]
    inputs: tuple[Placement, ...]
    outputs: tuple[Placement, ...]
    states: tuple[Placement, ...] = ()
    """What a call keeps for the next one."""


class Memory:
    """All buffers of a model, those of the bodies of its branches and loops included."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.buffers: list[Buffer] = []
        self._constants: dict[bytes, int] = {}

    def add(self, size_bytes: int) -> int:
        """Return a new buffer."""
        self.buffers.append(Buffer(len(self.buffers), size_bytes))
        return len(self.buffers) - 1

    def constant(self, raw: bytes, store: Callable[[], Stored | None]) -> int:
        """Return the buffer of a constant, stored as `store` says unless they all stay raw; equal ones share it."""
        if raw not in self._constants:
            self._constants[raw] = len(self.buffers)
            how = None if self._weights is Weights.RAW else store()
            self.buffers.append(Buffer(len(self.buffers), len(raw), raw, how))
        return self._constants[raw]

    def is_constant(self, number: int) -> bool:
        """Whether a buffer is a constant."""
        return self.buffers[number].constant is not None


class Lowering:
    """A graph on its way to steps; the families of operations add theirs through the methods here."""

    def __init__(self, graph: Graph, target: Target, memory: Memory) -> None:
        self.graph = graph
        self.target = target
        self.layer = "model"
        self._layouts = choose_layouts(graph)
        self._memory = memory
        self._steps: list[Step] = []
        self._placements: dict[str, Placement] = {}
        self._copies: dict[tuple[Placement, Layout], Placement] = {}

    def type(self, name: str) -> TensorType:
        """Return the type of a value."""
        return self.graph.types[name]

    def value_of(self, name: str) -> Array | None:
        """Return the numbers of a constant, or None."""
        return self.graph.constants.get(name)

    def placement(self, name: str) -> Placement:
        """Return where a value lies; constants get their place when they are first asked for."""
        if name not in self._placements:
            array = self.graph.constants[name]
            self._placements[name] = dense(self.constant(array), type_of(array).dtype, tuple(array.shape))
        return self._placements[name]

    def constant(self, array: Array, heads: int = 0, store: Callable[[], Stored | None] | None = None) -> int:
        """Return the buffer of constant numbers, which `store` says how to store, if not they themselves.

        With heads they are (groups, rows, width), and the first rows of each group are not like the others.
        """
        return self._memory.constant(np.ascontiguousarray(array).tobytes(), store or (lambda: stored(array, heads)))

    def place(self, kind: TensorType, layout: Layout) -> Placement:
        """Return a new place for a value; its border is made by `clear_border`."""
        buffer = self._memory.add(math.prod(layout.extents(kind)) * kind.dtype.item_bytes)
        placement = layout.placement(buffer, kind)
        if any(before or after for before, after in layout.border):
            self._clear_border(placement, layout)
        return placement

    def scratch(self, size_bytes: int) -> int:
        """Return a new buffer that a step needs for itself."""
        return self._memory.add(size_bytes)

    def result(self, name: str) -> Placement:
        """Return a new place for a result of a node, in the layout chosen for it."""
        if name not in self._placements:
            self._placements[name] = self.place(self.type(name), self._layouts[name])
        return self._placements[name]

    def alias(self, name: str, placement: Placement) -> None:
        """Let a value lie where another one does."""
        self._placements[name] = placement

    def block(
        self,
        reads: Sequence[Placement],
        writes: Sequence[Placement],
        blocks: Sequence[Sequence[Step]],
        emit: Callable[[Emitter], None],
        *,
        is_loop: bool,
    ) -> None:
        """Add a step with others inside."""
        self._steps.append(
            Step(
                self.layer,
                tuple(p.buffer for p in reads),
                tuple(p.buffer for p in writes),
                emit,
                blocks=tuple(tuple(block) for block in blocks),
                is_loop=is_loop,
            )
        )

    def step(
        self,
        reads: Sequence[Placement | int],
        writes: Sequence[Placement | int],
        emit: Callable[[Emitter], None],
        *,
        multiply_adds: int = 0,
        may_overwrite: bool = False,
    ) -> None:
        """Add a step of the current layer."""
        numbers = [[p if isinstance(p, int) else p.buffer for p in places] for places in (reads, writes)]
        self._steps.append(Step(self.layer, tuple(numbers[0]), tuple(numbers[1]), emit, multiply_adds, may_overwrite))

    def map(self, formula: Formula, output: Placement, inputs: Sequence[Placement]) -> None:
        """Add an elementwise step; the inputs broadcast to the shape of the output."""
        spread = [broadcast(p, output.shape) for p in inputs]
        kernel = MapKernel(output.shape, output.operand, tuple(p.operand for p in spread), formula).simplified()
        target = self.target

        def emit(e: Emitter) -> None:
            function = e.kernel(kernel, lambda f: write_map(f, kernel, target))
            e.do(function(e.address(output), *(e.address(p) for p in spread)))

        first = next((p for p in spread if _lies_alike(p, output)), None)
        others = [p for p in spread if first is not None and p.buffer == first.buffer and p != first]
        ordered = [first, *(p for p in spread if p is not first)] if first is not None else spread
        self.step(ordered, [output], emit, may_overwrite=first is not None and not others)

    def copy(self, source: Placement, layout: Layout) -> Placement:
        """Return a place of a value in a given layout, copied there unless it was before."""
        key = source, layout
        if key not in self._copies:
            target = self.place(TensorType(source.dtype, source.shape), layout)
            self.map(identity(source.dtype), target, [source])
            self._copies[key] = target
        return self._copies[key]

    def aside(self, source: Placement) -> Placement:
        """Return a new place with a copy of a value."""
        target = self.place_dense(source)
        self.map(identity(source.dtype), target, [source])
        return target

    def dense(self, source: Placement) -> Placement:
        """Return a place of a value in row-major order without gaps."""
        return source if source.is_dense else self.copy(source, Layout.row_major(len(source.shape)))

    def with_innermost(self, source: Placement, axis: int) -> Placement:
        """Return a place of a value with a dimension, counted from the end if negative, innermost."""
        rank = len(source.shape)
        if rank == 0 or source.shape[axis] == 1 or source.strides[axis] in {0, 1}:
            return source
        return self.copy(source, Layout.with_innermost(rank, axis % rank))

    def place_dense(self, like: Placement) -> Placement:
        """Return a new place in row-major order for a value of the type of another."""
        return self.place(TensorType(like.dtype, like.shape), Layout.row_major(len(like.shape)))

    def move(self, source: Placement, target: Placement) -> None:
        """Add a copy, unless it is where it should be."""
        if source != target:
            self.map(identity(source.dtype), target, [source])

    def run(self, state_count: int = 0) -> Lowered:
        """Lower the whole graph, with places of its own for its inputs and outputs.

        The last inputs are states: a call starts with what the last outputs of the call before were.
        """
        places = []
        for name in self.graph.inputs:
            kind = self.type(name)
            places.append(dense(self._memory.add(kind.size_bytes), kind.dtype, kind.shape))
        inputs, states = places[: len(places) - state_count], places[len(places) - state_count :]
        self._lower_nodes(places)
        names = self.graph.outputs[: len(self.graph.outputs) - state_count]
        outputs = self._lower_outputs(names, places)
        self.layer = "states"
        self.keep_states(self.outputs()[len(names) :], states)
        return Lowered(tuple(self._steps), tuple(self._memory.buffers), tuple(inputs), outputs, tuple(states))

    def keep_states(self, results: Sequence[Placement], states: Sequence[Placement]) -> None:
        """Add the copies of results to the states of the next round."""
        others = {state.buffer for state in states}
        moves = [(r, s) for r, s in zip(results, states, strict=True) if r != s]
        # A result that is another state is copied aside before that state changes.
        ready = [(self.aside(r) if r.buffer in others else r, s) for r, s in moves]
        for result, state in ready:
            self.move(result, state)

    def inside(self, graph: Graph, inputs: Sequence[Placement]) -> "Lowering":
        """Return a body of a node, lowered with its inputs where they lie."""
        inner = Lowering(graph, self.target, self._memory)
        inner.layer = self.layer
        inner._lower_nodes(inputs)
        return inner

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps so far."""
        return tuple(self._steps)

    def outputs(self) -> list[Placement]:
        """Return where the results of the graph lie."""
        return [self.placement(name) for name in self.graph.outputs]

    def _lower_nodes(self, inputs: Sequence[Placement]) -> None:
        self._placements.update(zip(self.graph.inputs, inputs, strict=True))
        for node in self.graph.nodes:
            self.layer = node.name
            if isinstance(node.operation, ops.View):
                self._lower_view(node, node.operation)
            else:
                RULES[type(node.operation)](self, node, node.operation)

    def _lower_view(self, node: Node, operation: ops.View) -> None:
        [name], [output] = node.inputs, node.outputs
        source = self.placement(name)
        placement = view(operation, source)
        if placement is None:
            layout = Layout(self._layouts[name].order, no_border(len(source.shape)))
            if view(operation, layout.placement(0, self.type(name))) is None:
                layout = Layout.row_major(len(source.shape))
            placement = view(operation, self.copy(source, layout))
        if placement is None:
            raise InternalError(f"{node.name}: no view of a dense value")
        self.alias(output, placement)

    def _lower_outputs(self, names: Sequence[str], inputs: Sequence[Placement]) -> tuple[Placement, ...]:
        """Return a dense place for each output, in no buffer of an input, of a constant or of another output."""
        taken = {p.buffer for p in inputs}
        outputs = []
        for name in names:
            placement = self.placement(name)
            self.layer = "outputs"
            is_whole = placement.is_dense and placement.offset == 0
            if not is_whole or placement.buffer in taken or self._memory.is_constant(placement.buffer):
                target = self.place(self.type(name), Layout.row_major(self.type(name).rank))
                self.map(identity(placement.dtype), target, [placement])
                placement = target
            taken.add(placement.buffer)
            outputs.append(placement)
        return tuple(outputs)

    def _clear_border(self, placement: Placement, layout: Layout) -> None:
        """Add a step that makes the border zero."""
        extents = layout.extents(TensorType(placement.dtype, placement.shape))
        kernel = FillKernel(
            tuple(extents[axis] for axis in layout.order),
            tuple(placement.border[axis] for axis in layout.order),
            placement.dtype.item_bytes,
        )

        def emit(e: Emitter) -> None:
            e.do(e.kernel(kernel, lambda f: write_fill(f, kernel))(e.buffer_address(placement.buffer)))

        self.step([], [placement], emit)


def elements(shape: Sequence[int]) -> int:
    """Return the number of elements of a shape."""
    return math.prod(shape)


def _lies_alike(a: Placement, b: Placement) -> bool:
    """Whether two values of one type lie in their buffers in the same way."""
    return (a.dtype, a.shape, a.strides, a.offset, a.border) == (b.dtype, b.shape, b.strides, b.offset, b.border)
