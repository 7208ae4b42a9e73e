"""Finds layer normalisation, which exporters write as eight or nine nodes, and makes one node of it.

    (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon)

Means are over the last axis, or the last few; the square may be a product or a power, the quotient a product with
1 / sqrt(…) or with a power of -0.5. What is done to the result, scale and shift at first, `compiler.passes.fusion` puts
into the same kernel. A value inside that something else reads, too, leaves all as it is: nothing is computed twice.
"""

import math
from collections.abc import Iterator

import msgspec

from compiler.dtypes import DType
from compiler.formula import identity
from compiler.formula.formula import Number
from compiler.ir import Graph, Node
from compiler.ir import operations as ops
from compiler.passes.edit import Edit

Value = str | Number
"""The name of a value, or a number."""


def fuse_layer_norm(graph: Graph) -> Graph:
    """Make one node of each layer normalisation."""
    edit = Edit(graph)
    for position, node in edit.positions():
        fused = _Search(edit, position, node).layer_norm()
        if fused is not None:
            edit.replace(position, fused)
    return edit.graph()


class _Search:
    """What leads to one node; the values on the way are `inside`."""

    def __init__(self, edit: Edit, position: int, node: Node) -> None:
        self._edit, self._position, self._node = edit, position, node
        self._inside: set[str] = set()

    def layer_norm(self) -> Node | None:
        """Return the node that computes the same from what is normalised, if it is a layer normalisation."""
        for centred, variance, epsilon in self._quotients():
            mean, square = self._centre(centred), self._mean(variance)
            if mean is None or square is None or mean[1] != square[1] or not self._is_square(square[0], centred):
                continue
            x, axes = mean
            # Only if all of it has the shape of x, the means were over rows of x.
            if self._edit.types[x] == self._edit.types[self._node.outputs[0]] and self._is_private():
                operation = ops.LayerNorm(float(epsilon), identity(DType.F32), axes)
                return msgspec.structs.replace(self._node, operation=operation, inputs=(x,))
        return None

    def _quotients(self) -> Iterator[tuple[str, Value, Number]]:
        """Yield a, b, c when the node may be a / sqrt(b + c)."""
        match _call(self._node):
            case "div", (str(above), below):
                for variance, epsilon in self._root(below):
                    yield above, variance, epsilon
            case "mul", (first, second):
                for value, factor in ((first, second), (second, first)):
                    for variance, epsilon in self._inverse_root(factor):
                        if isinstance(value, str):
                            yield value, variance, epsilon

    def _root(self, name: Value) -> Iterator[tuple[Value, Number]]:
        """Yield b, c for sqrt(b + c)."""
        match self._call(name):
            case ("sqrt", (total,)) | ("pow", (total, 0.5)):
                yield from self._sum(total)

    def _inverse_root(self, name: Value) -> Iterator[tuple[Value, Number]]:
        """Yield b, c for 1 / sqrt(b + c)."""
        match self._call(name):
            case "div", (1.0, root):
                yield from self._root(root)
            case "pow", (total, -0.5):
                yield from self._sum(total)

    def _sum(self, name: Value) -> Iterator[tuple[Value, Number]]:
        """Yield the value and the number of a sum."""
        match self._call(name):
            case ("add", (str(value), int() | float() as number)) | ("add", (int() | float() as number, str(value))):
                yield value, number

    def _centre(self, name: str) -> tuple[str, int] | None:
        """Return the floats that a value is, less their mean, and over how many axes that is."""
        match self._call(name):
            case "sub", (str(x), mean) if self._edit.types[x].dtype is DType.F32:
                found = self._mean(mean)
                return found if found is not None and found[0] == x else None
        return None

    def _is_square(self, name: str, of: str) -> bool:
        return self._call(name) in [("mul", (of, of)), ("pow", (of, 2.0))]

    def _mean(self, name: Value) -> tuple[str, int] | None:
        """Return the value whose mean over the last axes another one is, with dimensions of 1 in their place."""
        if not isinstance(name, str):
            return None
        shape = self._edit.types[name].shape
        self._inside.add(name)
        found = self._edit.producer(name)
        while found is not None and isinstance(found[1].operation, ops.Reshape):
            self._inside.add(found[1].inputs[0])
            found = self._edit.producer(found[1].inputs[0])
        if found is None or not isinstance(found[1].operation, ops.Reduce):
            return None
        operation, values = found[1].operation, found[1].inputs
        if len(values) != 1 or operation.combine != "add" or not operation.element.is_identity:
            return None
        whole, count = self._edit.types[values[0]].shape, len(operation.axes)
        first = len(whole) - count
        if operation.axes != tuple(range(first, len(whole))) or shape != (*whole[:first], *(1,) * count):
            return None
        return (values[0], count) if count and _is_share(operation, math.prod(whole[first:])) else None

    def _call(self, name: Value) -> tuple[str, tuple[Value, ...]] | None:
        """Return the one operation that computes a value, and its operands."""
        found = self._edit.producer(name) if isinstance(name, str) else None
        if found is None or not isinstance(name, str):
            return None
        self._inside.add(name)
        return _call(found[1])

    def _is_private(self) -> bool:
        found = [self._edit.producer(name) for name in self._inside]
        positions = {self._position, *(producer[0] for producer in found if producer is not None)}
        return all(self._edit.is_read_only_by(name, positions) for name in self._inside)


def _call(node: Node) -> tuple[str, tuple[Value, ...]] | None:
    """Return the operation of an elementwise node that has only one, and its operands."""
    if not isinstance(node.operation, ops.Map):
        return None
    instructions = node.operation.formula.instructions
    work = [i for i in instructions if i.operation not in {"arg", "const"}]
    if len(work) != 1 or instructions[node.operation.formula.result] is not work[0]:
        return None
    operands = [instructions[n] for n in work[0].operands]
    return work[0].operation, tuple(node.inputs[int(i.value)] if i.operation == "arg" else i.value for i in operands)


def _is_share(operation: ops.Reduce, count: int) -> bool:
    """Whether a sum is divided by how many were added."""
    if operation.finish.is_identity:
        return count == 1
    match operation.finish.instructions:
        case [first, number, last] if (first.operation, number.operation, last.operands) == ("arg", "const", (0, 1)):
            value = float(number.value)
            return (last.operation == "mul" and math.isclose(value * count, 1, rel_tol=1e-6)) or (
                last.operation == "div" and value == count
            )
    return False
