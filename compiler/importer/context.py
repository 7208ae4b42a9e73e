"""What a converter sees of the node that it converts: attributes, inputs, and the graph that it adds to."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, NodeProto, helper

from compiler.dtypes import DType
from compiler.formula import Formula, Term, formula_of
from compiler.importer.weights import array_of
from compiler.ir import GraphBuilder, TensorType

Array = NDArray[Any]


class NotConvertibleError(Exception):
    """A node cannot be converted; the text says why. Becomes one line of an UnsupportedError."""


class Body:
    """The body of a branch or a loop, as a graph under construction."""

    def __init__(self, graph: GraphBuilder, inputs: list[str], outputs: list[str], captured: list[str]) -> None:
        self.graph = graph
        self.inputs = inputs
        """Those that the node gives it; behind them the graph has one for each captured value."""
        self.outputs = outputs
        self.captured = captured
        """Values of the graph around it."""


class Bodies(Protocol):
    """Converts the bodies of a node."""

    def convert(self, graph: GraphProto, formals: Sequence[TensorType]) -> Body:
        """Return a body as a graph of its own; its inputs have the given types."""

    def inline(self, graph: GraphProto) -> list[str]:
        """Convert a body where the node stands; return the values of its outputs."""

    def empty(self) -> GraphBuilder:
        """Return a body to be written by the converter."""


class NodeContext:
    """One ONNX node. Inputs are given by position; results are set by position."""

    def __init__(
        self, node: NodeProto, opset: int, inputs: Sequence[str | None], graph: GraphBuilder, bodies: Bodies
    ) -> None:
        self.node = node
        self.bodies = bodies
        self.opset = opset
        self.graph = graph
        self.results: dict[int, str] = {}
        self._inputs = list(inputs)
        self._attributes: dict[str, AttributeProto] = {a.name: a for a in node.attribute}

    @property
    def count(self) -> int:
        """How many inputs there are, left-out ones in between included."""
        return len(self._inputs)

    def has(self, position: int) -> bool:
        """Whether an input is there."""
        return position < len(self._inputs) and self._inputs[position] is not None

    def __getitem__(self, position: int) -> str:
        """Return the value that an input has."""
        name = self._inputs[position] if position < len(self._inputs) else None
        if name is None:
            raise NotConvertibleError(f"input {position} is missing")
        return name

    def all(self) -> list[str]:
        """Return all inputs."""
        return [self[n] for n in range(len(self._inputs))]

    def type(self, position: int = 0) -> TensorType:
        """Return the type of an input."""
        return self.graph.type(self[position])

    def shape(self, position: int = 0) -> tuple[int, ...]:
        """Return the shape of an input."""
        return self.type(position).shape

    def dtype(self, position: int = 0) -> DType:
        """Return the type of the elements of an input."""
        return self.type(position).dtype

    def require_float(self, *positions: int) -> None:
        """Refuse inputs that are no 32-bit floats."""
        for position in positions or range(self.count):
            if self.has(position) and self.dtype(position) is not DType.F32:
                raise NotConvertibleError(f"it is implemented for float32, not for {self.dtype(position).value}")

    def require_finite(self) -> None:
        """Refuse constants with NaN or infinity, for operators that add up products: nothing else comes of those."""
        for position in range(self.count):
            numbers = self.graph.value_of(self[position]) if self.has(position) else None
            if numbers is not None and numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
                raise NotConvertibleError(
                    f"its weights {self.node.input[position]!r} hold NaN or infinity, so its results would: "
                    "the training diverged"
                )

    def constant(self, position: int) -> Array:
        """Return the numbers of an input that has to be constant."""
        array = self.graph.value_of(self[position])
        if array is None:
            raise NotConvertibleError(f"input {position} has to be constant: its value fixes a shape or the code")
        return array

    def is_constant(self, position: int) -> bool:
        """Whether an input is there and constant."""
        return self.has(position) and self.graph.value_of(self[position]) is not None

    def constant_integers(self, position: int) -> list[int]:
        """Return a constant input as whole numbers."""
        return [int(n) for n in self.constant(position).ravel()]

    def scalar(self, position: int) -> Any:
        """Return the one number of a constant input."""
        array = self.constant(position)
        if array.size != 1:
            raise NotConvertibleError(f"input {position} has to be one number, it has the shape {list(array.shape)}")
        return array.ravel()[0].item()

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or `default`."""
        if name not in self._attributes:
            return default
        value = helper.get_attribute_value(self._attributes[name])
        return value.decode() if isinstance(value, bytes) else value

    def choice(self, name: str, *choices: str) -> str:
        """Return an attribute that is one of some words; the first of them is the default."""
        word = str(self.attribute(name, choices[0]))
        if word not in choices:
            raise NotConvertibleError(f"expected {name} to be one of {', '.join(choices)}, got {word!r}")
        return word

    def integer(self, name: str, default: int) -> int:
        """Return a whole number."""
        return int(self.attribute(name, default))

    def number(self, name: str, default: float) -> float:
        """Return a number, as the 32-bit float that it is."""
        return float(np.float32(self.attribute(name, default)))

    def integers(self, name: str, default: Sequence[int]) -> list[int]:
        """Return whole numbers."""
        return [int(n) for n in self.attribute(name, default)]

    def sizes(self, name: str, default: Sequence[int], *, least: int = 1) -> list[int]:
        """Return whole numbers, as many as there are defaults, of which none is less than the least."""
        numbers = self.integers(name, default)
        if len(numbers) != len(default):
            raise NotConvertibleError(f"expected {len(default)} numbers as {name}, got {numbers}")
        if min(numbers, default=least) < least:
            raise NotConvertibleError(f"expected {name} of at least {least}, got {numbers}")
        return numbers

    def integers_or_input(self, name: str, position: int) -> list[int] | None:
        """Return whole numbers that are an attribute in old opsets and a constant input in newer ones."""
        if name in self._attributes:
            return self.integers(name, ())
        return self.constant_integers(position) if self.has(position) else None

    def tensor(self, name: str) -> Array:
        """Return an attribute that is a tensor."""
        return array_of(self._attributes[name].t)

    def subgraph(self, name: str) -> GraphProto:
        """Return an attribute that is a graph."""
        return self._attributes[name].g

    def axis(self, axis: int, rank: int) -> int:
        """Return an axis counted from the front."""
        if not -rank <= axis < rank:
            raise NotConvertibleError(f"axis {axis} of {rank} dimensions")
        return axis % rank

    def refuse(self, reason: str) -> NotConvertibleError:
        """Return the error that says why the node cannot be converted."""
        return NotConvertibleError(reason)

    def map(self, function: Callable[..., Term], *inputs: str) -> str:
        """Add the formula that `function` writes for these values."""
        return self.graph.map(self.formula(function, *inputs), *inputs)

    def formula(self, function: Callable[..., Term], *inputs: str) -> Formula:
        """Return the formula that `function` writes for values of these types."""
        return formula_of(function, *(self.graph.type(name).dtype for name in inputs))

    def set(self, *results: str) -> None:
        """Set the results."""
        self.results = dict(enumerate(results))
