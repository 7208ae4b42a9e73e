"""Puts single numbers into formulas: a constant whose elements are all the same needs no memory and no reads."""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.formula.formula import Number
from compiler.formula.rewrite import with_numbers
from compiler.ir import Graph, Node
from compiler.ir import operations as ops
from compiler.passes.edit import Edit


def put_numbers_into_formulas(graph: Graph) -> Graph:
    """Replace operands that are single numbers, where the shape of the result does not come from them."""
    edit = Edit(graph)
    for position, node in edit.positions():
        if isinstance(node.operation, ops.Map):
            edit.replace(position, _simplified(graph, node, node.operation))
    return edit.graph()


def _simplified(graph: Graph, node: Node, operation: ops.Map) -> Node:
    numbers: dict[int, Number] = {}
    for position, name in enumerate(node.inputs):
        number = _number(graph.constants.get(name))
        if number is not None:
            numbers[position] = number
    shape = graph.types[node.outputs[0]].shape
    while numbers:
        kept = [name for position, name in enumerate(node.inputs) if position not in numbers]
        if np.broadcast_shapes(*(graph.types[name].shape for name in kept)) == shape:
            formula = with_numbers(operation.formula, numbers)
            return msgspec.structs.replace(node, operation=ops.Map(formula), inputs=tuple(kept))
        numbers.popitem()
    return node


def _number(array: NDArray[Any] | None) -> Number | None:
    """Return the number that all elements of a constant are, or None."""
    if array is None or array.size == 0:
        return None
    first = array.flat[0]
    same = array.tobytes() == first.tobytes() * array.size
    value: Number = first.item()
    return value if same else None
