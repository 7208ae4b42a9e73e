"""Moves the work on turned values before the turn: transposes meet and cancel, and the work meets what it can join.

A transpose, and a reshape that only adds or drops dimensions of 1, is held back until something needs it. What is
elementwise, sums up, joins, pads or cuts is done on the values behind it instead, and the turn held back once more.
Two in a row are one, and one that changes nothing is none. So an image that an exporter turns before and after each
convolution is turned no more, and what follows a convolution gets into its kernel. No result changes by a bit, but that
sums over several dimensions are added up in another order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.ir import Graph, Node, TensorType
from compiler.ir import operations as ops
from compiler.ir.axes import Axes, inverse, reshape_axes
from compiler.ir.graph import Operation, type_of
from compiler.ir.typing import output_types
from compiler.passes.edit import Edit

Moved = tuple[Operation, Axes]
"""An operation on what lies behind a turn, and how its result is turned."""


class _Turn(msgspec.Struct, frozen=True):
    """How one value lies behind another."""

    axes: Axes
    """None for a new dimension of length 1."""
    rank: int
    """Of what is turned."""

    @property
    def inverse(self) -> Axes:
        """For each dimension of what is turned that of the result."""
        return inverse(self.axes, self.rank)

    def back(self, rank: int) -> Axes:
        """Return the inverse for a value that may have fewer dimensions: those missing in front are new ones."""
        missing = len(self.axes) - rank
        return tuple(None if axis is None or axis < missing else axis - missing for axis in self.inverse)

    def spread(self, numbers: Sequence[int], other: int) -> tuple[int, ...]:
        """Return numbers for the dimensions of what is turned, and another one where there is none."""
        return tuple(other if axis is None else numbers[axis] for axis in self.inverse)

    def keeps_new(self, numbers: Sequence[int], number: int) -> bool:
        """Whether a number stands at all dimensions that are new."""
        return all(axis is not None or n == number for axis, n in zip(self.axes, numbers, strict=True))


class _Turned(msgspec.Struct, frozen=True):
    """A value that has the elements of another one; dimensions of that which are not there are of length 1."""

    source: str
    axes: Axes


def sink_transposes(graph: Graph) -> Graph:
    """Hold transposes back until something needs them."""
    return _Sink(graph).run()


class _Sink:
    """A graph on its way: what has been taken, and what is held back."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._types = dict(graph.types)
        self._constants = dict(graph.constants)
        self._nodes: list[Node] = []
        self._held: dict[str, _Turned] = {}
        self._shown: dict[_Turned, str] = {}
        self._count = 0

    def run(self) -> Graph:
        """Return the graph with every node taken in its turn."""
        for node in self._graph.nodes:
            self._take(node)
        outputs = tuple(self._show(name, "outputs") for name in self._graph.outputs)
        whole = Graph(tuple(self._nodes), self._types, self._constants, self._graph.inputs, outputs)
        return Edit(whole).graph()

    def _take(self, node: Node) -> None:
        if isinstance(node.operation, ops.View):
            axes = _turn(node.operation, self._types[node.inputs[0]].shape)
            if axes is not None:
                self._held[node.outputs[0]] = self._behind(node.inputs[0], axes)
                return
        if not self._move(node):
            names = tuple(self._show(name, node.name) for name in node.inputs)
            self._nodes.append(msgspec.structs.replace(node, inputs=names))

    def _move(self, node: Node) -> bool:
        """Do a node behind the turn of its inputs, if that can be; return whether it was."""
        rule = _RULES.get(type(node.operation))
        largest = max(node.inputs, key=lambda name: (self._types[name].rank, self._types[name].elements), default="")
        if rule is None or largest not in self._held:
            return False
        turn = _Turn(self._held[largest].axes, self._types[self._held[largest].source].rank)
        moved = rule(node.operation, turn)
        if moved is None or not all(self._can_turn_back(node, name, turn) for name in node.inputs):
            return False
        names = tuple(self._turn_back(name, turn, node.name) for name in node.inputs)
        operation, axes = moved
        [kind] = output_types(operation, [self._types[name] for name in names])
        result = self._new_name(kind)
        self._nodes.append(Node(node.name, operation, names, (result,)))
        self._held[node.outputs[0]] = _Turned(result, axes)
        return True

    def _can_turn_back(self, node: Node, name: str, turn: _Turn) -> bool:
        """Whether an input of a node lies behind the turn as it is, is constant, or small beside the others."""
        kind = self._types[name]
        if not turn.keeps_new((1,) * (len(turn.axes) - kind.rank) + kind.shape, 1):
            return False
        if kind.elements < max(self._types[other].elements for other in node.inputs) or name in self._constants:
            return True
        return self._is_same(self._behind(name, turn.back(kind.rank)))

    def _turn_back(self, name: str, turn: _Turn, layer: str) -> str:
        """Return an input of a node as it is behind the turn."""
        back = turn.back(self._types[name].rank)
        if name not in self._constants:
            return self._value(self._behind(name, back), layer)
        array = _turned_array(self._constants[name], back)
        new = self._new_name(type_of(array))
        self._constants[new] = array
        return new

    def _behind(self, name: str, axes: Axes) -> _Turned:
        """Return what a turn of a value is a turn of."""
        inner = self._held.get(name)
        if inner is None:
            return _Turned(name, axes)
        return _Turned(inner.source, tuple(None if axis is None else inner.axes[axis] for axis in axes))

    def _show(self, name: str, layer: str) -> str:
        """Return a value that something needs as it is."""
        return self._value(self._held[name], layer) if name in self._held else name

    def _value(self, turned: _Turned, layer: str) -> str:
        """Return the value that a turn makes; the nodes for it are added once."""
        if self._is_same(turned):
            return turned.source
        if turned not in self._shown:
            shape, order = self._shape(turned), _order(turned.axes, self._types[turned.source].rank)
            name = turned.source
            if not self._is_in_order(turned):
                name = self._add(layer, ops.Transpose(order), name)
            if self._types[name].shape != shape:
                name = self._add(layer, ops.Reshape(shape), name)
            self._shown[turned] = name
        return self._shown[turned]

    def _add(self, layer: str, operation: ops.View, source: str) -> str:
        [kind] = output_types(operation, [self._types[source]])
        name = self._new_name(kind)
        self._nodes.append(Node(layer, operation, (source,), (name,)))
        return name

    def _shape(self, turned: _Turned) -> tuple[int, ...]:
        shape = self._types[turned.source].shape
        return tuple(1 if axis is None else shape[axis] for axis in turned.axes)

    def _is_same(self, turned: _Turned) -> bool:
        return self._is_in_order(turned) and self._shape(turned) == self._types[turned.source].shape

    def _is_in_order(self, turned: _Turned) -> bool:
        """Whether a reshape is all that a turn takes."""
        shape = self._types[turned.source].shape
        wide = [axis for axis in turned.axes if axis is not None and shape[axis] != 1]
        return wide == sorted(wide)

    def _new_name(self, kind: TensorType) -> str:
        while (name := f"t{self._count}") in self._types:
            self._count += 1
        self._types[name] = kind
        return name


def _turn(view: ops.View, shape: Sequence[int]) -> Axes | None:
    """Return the turn that a view is, or None when it is none."""
    match view:
        case ops.Transpose(order):
            return order
        case ops.Reshape(new) if [n for n in new if n != 1] == [n for n in shape if n != 1]:
            return reshape_axes(shape, new)
    return None


def _order(axes: Axes, rank: int) -> tuple[int, ...]:
    """Return the order in which a transpose puts the dimensions; those of 1 that go come first."""
    kept = [axis for axis in axes if axis is not None]
    return (*(n for n in range(rank) if n not in kept), *kept)


def _turned_array(array: NDArray[Any], axes: Axes) -> NDArray[Any]:
    order = _order(axes, array.ndim)
    shape = [1 if axis is None else array.shape[axis] for axis in axes]
    return np.ascontiguousarray(array.transpose(order)).reshape(shape)


def _map(operation: ops.Map, turn: _Turn) -> Moved | None:
    return operation, turn.axes


def _reduce(operation: ops.Reduce, turn: _Turn) -> Moved | None:
    reduced = [turn.axes[n] for n in operation.axes]
    if None in reduced or len(operation.finish.args) > 1:
        return None
    kept = [n for n in range(turn.rank) if n not in reduced]
    left = [axis for n, axis in enumerate(turn.axes) if n not in operation.axes]
    axes = tuple(n for n in range(turn.rank) if n in reduced)
    return msgspec.structs.replace(operation, axes=axes), tuple(None if n is None else kept.index(n) for n in left)


def _concat(operation: ops.Concat, turn: _Turn) -> Moved | None:
    axis = turn.axes[operation.axis]
    return None if axis is None else (ops.Concat(axis), turn.axes)


def _pad(operation: ops.Pad, turn: _Turn) -> Moved | None:
    before, after = operation.before, operation.after
    if not (turn.keeps_new(before, 0) and turn.keeps_new(after, 0)):
        return None
    return ops.Pad(turn.spread(before, 0), turn.spread(after, 0), operation.value), turn.axes


def _slice(operation: ops.Slice, turn: _Turn) -> Moved | None:
    if not turn.keeps_new(operation.counts, 1):
        return None
    starts, counts = turn.spread(operation.starts, 0), turn.spread(operation.counts, 1)
    return ops.Slice(starts, turn.spread(operation.steps, 1), counts), turn.axes


def _unfold(operation: ops.Unfold, turn: _Turn) -> Moved | None:
    axis = turn.axes[operation.axis]
    if axis is None:
        return None
    axes = [n if n is None or n <= axis else n + 1 for n in turn.axes]
    axes.insert(operation.axis + 1, axis + 1)
    return msgspec.structs.replace(operation, axis=axis), tuple(axes)


_RULES: dict[type[Operation], Callable[[Any, _Turn], Moved | None]] = {
    ops.Map: _map,
    ops.Reduce: _reduce,
    ops.Concat: _concat,
    ops.Pad: _pad,
    ops.Slice: _slice,
    ops.Unfold: _unfold,
}
"""What each operation is behind the turn of all of its inputs."""
