"""Builds a graph: names values, works out types, folds what is constant, and makes nothing twice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.errors import TooLargeError
from compiler.formula import Formula, Writer, identity
from compiler.formula.formula import Number
from compiler.ir import operations as ops
from compiler.ir.graph import Graph, Node, Operation, TensorType, type_of
from compiler.ir.reference import evaluate
from compiler.ir.typing import output_types

Array = NDArray[Any]

MAX_FOLDED_BYTES = 64 * 1024 * 1024
"""A larger result is computed on the device, from smaller constants."""
MAX_ELEMENTS = (1 << 32) - 1
"""No value has more, also when it is never stored: there is no address for more, and no time."""


def check_foldable(elements: int, item_bytes: int = 8) -> None:
    """Refuse, before it takes memory, a constant that is too large to be made at import; raises ValueError."""
    if elements * item_bytes > MAX_FOLDED_BYTES:
        raise ValueError(f"expected a constant of at most {MAX_FOLDED_BYTES:,} bytes, got {elements * item_bytes:,}")


class GraphBuilder:
    """A graph under construction. Values are names; `layer` is the name of the nodes that are added."""

    def __init__(self) -> None:
        self.layer = "model"
        self.labels: dict[str, tuple[str, ...]] = {}
        """What the indices of the last dimension of a value mean."""
        self._nodes: list[Node] = []
        self._types: dict[str, TensorType] = {}
        self._constants: dict[str, Array] = {}
        self._inputs: list[str] = []
        self._known: dict[tuple[Operation, tuple[str, ...]], tuple[str, ...]] = {}
        self._known_constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def input(self, kind: TensorType) -> str:
        """Add an input."""
        name = self._name(kind)
        self._inputs.append(name)
        return name

    def nodes_from(self, start: int) -> list[Node]:
        """Return the nodes that were added since there were `start`."""
        return self._nodes[start:]

    @property
    def node_count(self) -> int:
        """How many nodes there are."""
        return len(self._nodes)

    def placeholder(self, kind: TensorType) -> str:
        """Return a value of a type that nothing computes, for a graph that will not be used."""
        return self._name(kind)

    def constant(self, array: Array) -> str:
        """Add a constant."""
        array = np.asarray(array)
        key = (array.dtype.name, array.shape, array.tobytes()) if array.nbytes <= 4096 else None
        if key is not None and key in self._known_constants:
            return self._known_constants[key]
        name = self._name(type_of(array))
        self._constants[name] = array
        if key is not None:
            self._known_constants[key] = name
        return name

    def counting(self, count: int) -> str:
        """Add the numbers from 0 to `count` - 1 as a constant; raises ValueError for too many."""
        check_foldable(count)
        return self.constant(np.arange(count))

    def type(self, name: str) -> TensorType:
        """Return the type of a value."""
        return self._types[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a value."""
        return self._types[name].shape

    def value_of(self, name: str) -> Array | None:
        """Return the numbers of a constant, or None for a value that is computed."""
        return self._constants.get(name)

    def add(self, operation: Operation, *inputs: str) -> str:
        """Add a node with one result."""
        [result] = self.add_many(operation, *inputs)
        return result

    def add_many(self, operation: Operation, *inputs: str) -> tuple[str, ...]:
        """Add a node; raises TooLargeError for a result that no module could address."""
        key = operation, inputs
        if key in self._known:
            return self._known[key]
        types = output_types(operation, [self._types[name] for name in inputs])
        if (elements := max((kind.elements for kind in types), default=0)) > MAX_ELEMENTS:
            raise TooLargeError(
                f"{self.layer}: expected at most {MAX_ELEMENTS:,} elements in a value, got {elements:,}"
            )
        arrays = [self._constants[name] for name in inputs if name in self._constants]
        if len(arrays) == len(inputs) and sum(t.size_bytes for t in types) <= MAX_FOLDED_BYTES:
            outputs = tuple(self.constant(result) for result in evaluate(operation, arrays))
        elif all(kind.elements == 0 for kind in types):  # nothing is to be computed, and all of it is known
            outputs = tuple(self.constant(np.empty(kind.shape, kind.dtype.numpy)) for kind in types)
        else:
            outputs = tuple(self._name(kind) for kind in types)
            self._nodes.append(Node(self.layer, operation, inputs, outputs))
        self._known[key] = outputs
        return outputs

    def map(self, formula: Formula, *inputs: str) -> str:
        """Add an elementwise computation; one that only passes its operand on adds nothing."""
        if formula.is_identity:
            return inputs[int(formula.instructions[formula.result].value)]
        return self.add(ops.Map(formula), *inputs)

    def apply(self, operation: str, *inputs: str) -> str:
        """Add one operation of a formula on values of one type."""
        writer = Writer([self._types[name].dtype for name in inputs])
        return self.map(writer.formula(writer.apply(operation, *(writer.arg(n) for n in range(len(inputs))))), *inputs)

    def number(self, like: str, value: Number) -> str:
        """Return a constant of no dimensions of the type of another value."""
        return self.constant(np.asarray(value, self._types[like].dtype.numpy))

    def cast(self, dtype: DType, name: str) -> str:
        """Add a conversion to another type."""
        writer = Writer([self._types[name].dtype])
        return self.map(writer.formula(writer.cast(dtype, writer.arg(0))), name)

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """Add another shape of the same elements."""
        return name if self.shape(name) == tuple(shape) else self.add(ops.Reshape(tuple(shape)), name)

    def transpose(self, name: str, order: Sequence[int]) -> str:
        """Add another order of dimensions."""
        return name if list(order) == list(range(len(order))) else self.add(ops.Transpose(tuple(order)), name)

    def broadcast(self, name: str, shape: Sequence[int]) -> str:
        """Add a repetition of dimensions of 1."""
        return name if self.shape(name) == tuple(shape) else self.add(ops.Broadcast(tuple(shape)), name)

    def slice(self, name: str, starts: Sequence[int], counts: Sequence[int], steps: Sequence[int] = ()) -> str:
        """Add a cut out of a value."""
        shape = self.shape(name)
        steps = tuple(steps) or (1,) * len(shape)
        if tuple(counts) == shape and all(start == 0 for start in starts) and all(step == 1 for step in steps):
            return name
        return self.add(ops.Slice(tuple(starts), steps, tuple(counts)), name)

    def take(self, name: str, indices: str, axis: int) -> str:
        """Add the entries along an axis that indices name."""
        shape, places = self.shape(name), self.shape(indices)
        order = [*(n for n in range(len(shape)) if n != axis), axis]
        spread = (*shape[:axis], *([1] * len(places)), *shape[axis + 1 :], shape[axis])
        data = self.reshape(self.transpose(name, order), spread)
        behind = len(shape) - axis - 1
        return self.add(ops.Lookup(), data, self.reshape(indices, (*places, *([1] * behind))))

    def reduce(self, combine: str, name: str, axes: Sequence[int], finish: Formula | None = None) -> str:
        """Add a reduction of one value; its axes vanish."""
        dtype = self._types[name].dtype
        return self.add(ops.Reduce(tuple(sorted(axes)), identity(dtype), combine, finish or identity(dtype)), name)

    @property
    def inputs(self) -> list[str]:
        """The inputs, in the order in which they were added."""
        return list(self._inputs)

    def graph(self, outputs: Sequence[str], inputs: Sequence[str] | None = None) -> Graph:
        """Return the graph with these outputs, and its inputs in a given order; what nobody needs is left out."""
        needed = set(outputs)
        nodes: list[Node] = []
        for node in reversed(self._nodes):
            if needed.intersection(node.outputs):
                nodes.append(node)
                needed.update(node.inputs)
        needed.update(self._inputs)
        types = {name: kind for name, kind in self._types.items() if name in needed}
        for node in nodes:
            types.update({name: self._types[name] for name in node.outputs})
        return Graph(
            nodes=tuple(reversed(nodes)),
            types=types,
            constants={name: array for name, array in self._constants.items() if name in needed},
            inputs=tuple(self._inputs if inputs is None else inputs),
            outputs=tuple(outputs),
        )

    def _name(self, kind: TensorType) -> str:
        name = f"v{len(self._types)}"
        self._types[name] = kind
        return name
