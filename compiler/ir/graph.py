"""A graph: nodes in the order in which they can run, values by name, constants with their numbers."""

import math
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.dtypes import DType, dtype_of

Array = NDArray[Any]


class TensorType(msgspec.Struct, frozen=True):
    """The type of a value: of its elements, and its static shape."""

    dtype: DType
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """How many bytes it takes, stored densely."""
        return self.elements * self.dtype.item_bytes

    def __str__(self) -> str:
        return f"{self.dtype.value}{list(self.shape)}"


class Operation(msgspec.Struct, frozen=True):
    """What a node does; `compiler.ir.operations` has them all."""


class Node(msgspec.Struct, frozen=True):
    """One operation on values."""

    name: str
    """Of the layer that it came from: what a trap shows."""
    operation: Operation
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Graph(msgspec.Struct, frozen=True, eq=False):
    """A model, or the body of a branch or a loop. Each is only equal to itself."""

    nodes: tuple[Node, ...]
    types: dict[str, TensorType]
    """Of every value: inputs, constants and results."""
    constants: dict[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def users(self) -> dict[str, list[Node]]:
        """Return the nodes that read each value."""
        found: dict[str, list[Node]] = {name: [] for name in self.types}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node)
        return found

    def producers(self) -> dict[str, Node]:
        """Return the node that makes each value, for those that a node makes."""
        return {name: node for node in self.nodes for name in node.outputs}


def bodies(operation: Operation) -> dict[str, Graph]:
    """Return the graphs inside an operation, by the names of its fields."""
    found = {name: getattr(operation, name) for name in operation.__struct_fields__}
    return {name: value for name, value in found.items() if isinstance(value, Graph)}


def type_of(array: Array) -> TensorType:
    """Return the type of a constant."""
    return TensorType(dtype_of(array), tuple(np.shape(array)))
