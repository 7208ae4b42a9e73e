"""Puts elementwise work where its operands are at hand: into the node that computes them, before they are stored.

A chain of elementwise nodes becomes one formula; one behind a convolution, a matrix product, a layer normalisation or
a reduction becomes part of its kernel, and one in front of a reduction part of what is reduced. Only values that nobody
else reads are fused away, so nothing is computed twice.
"""

import msgspec

from compiler.formula import Formula
from compiler.formula.rewrite import fused, without_unused
from compiler.ir import Graph, Node
from compiler.ir import operations as ops
from compiler.ir.graph import Operation
from compiler.lowering.epilogue import is_supported
from compiler.passes.edit import Edit

_RESULT = "the result itself"
_FIXED_INPUTS: dict[type[Operation], int] = {ops.Conv: 3, ops.MatMul: 3, ops.LayerNorm: 1}
"""How many inputs come before the further operands of an epilogue."""
MAX_EPILOGUE_INPUTS = 4
MAX_INSTRUCTIONS = 128
"""Of one formula. More values at a time than registers gain nothing, and fusing takes the longer the longer it gets."""


def fuse_elementwise(graph: Graph) -> Graph:
    """Fuse elementwise nodes with the nodes before them and with reductions behind them."""
    edit = Edit(graph)
    for position, node in edit.positions():
        merged = _fused(edit, node)
        while merged is not None:
            producer, both = merged
            edit.replace(producer, None)
            edit.replace(position, both)
            merged = _fused(edit, both)
    return edit.graph()


def _fused(edit: Edit, node: Node) -> tuple[int, Node] | None:
    """Return the position of a node that can be fused with one behind it, and both as one node."""
    match node.operation:
        case ops.Map():
            return _with_producer(edit, node, node.operation)
        case ops.Reduce():
            return _with_element(edit, node, node.operation)
    return None


def _with_producer(edit: Edit, node: Node, operation: ops.Map) -> tuple[int, Node] | None:
    """Return one of the nodes before an elementwise one, and both as one node; the latest that can be."""
    shape = edit.types[node.outputs[0]].shape
    candidates = []
    for name in dict.fromkeys(node.inputs):
        found = edit.producer(name)
        if found is not None and edit.is_used_once(name) and edit.types[name].shape == shape:
            candidates.append((not isinstance(found[1].operation, ops.Map), found[0], name, found[1]))
    for _, position, name, producer in sorted(candidates, key=lambda c: c[:2], reverse=True):
        merged = _merge(node, operation, name, producer)
        if merged is not None:
            return position, merged
    return None


def _merge(node: Node, operation: ops.Map, name: str, producer: Node) -> Node | None:
    match producer.operation:
        case ops.Map(inner):
            if len(operation.formula.instructions) + len(inner.instructions) > MAX_INSTRUCTIONS:
                return None
            formula, inputs = fused(operation.formula, node.inputs, name, inner, producer.inputs)
            return msgspec.structs.replace(node, operation=ops.Map(formula), inputs=inputs)
        case ops.Conv(epilogue=inner) | ops.MatMul(epilogue=inner) | ops.LayerNorm(epilogue=inner):
            fixed = _FIXED_INPUTS[type(producer.operation)]
            formula, extras = _behind(node, operation, name, inner, producer.inputs[fixed:])
            if not is_supported(formula) or len(extras) > MAX_EPILOGUE_INPUTS:
                return None
            changed: Operation = msgspec.structs.replace(producer.operation, epilogue=formula)
            inputs = (*producer.inputs[:fixed], *extras)
        case ops.Reduce(finish=inner):
            fixed = len(producer.operation.element.args)
            formula, extras = _behind(node, operation, name, inner, producer.inputs[fixed:])
            changed = msgspec.structs.replace(producer.operation, finish=formula)
            inputs = (*producer.inputs[:fixed], *extras)
        case _:
            return None
    return Node(producer.name, changed, inputs, node.outputs)


def _behind(
    node: Node, operation: ops.Map, name: str, inner: Formula, extras: tuple[str, ...]
) -> tuple[Formula, tuple[str, ...]]:
    """Return the formula that computes `inner` and then a node, and its operands behind the result itself."""
    formula, inputs = fused(operation.formula, node.inputs, name, inner, (_RESULT, *extras))
    formula, inputs = without_unused(formula, inputs, keep=1)
    return formula, inputs[1:]


def _with_element(edit: Edit, node: Node, operation: ops.Reduce) -> tuple[int, Node] | None:
    """Return an elementwise node before a reduction of as many elements, and both as one node."""
    count = len(operation.element.args)
    elements, extras = node.inputs[:count], node.inputs[count:]
    for name in elements:
        found = edit.producer(name)
        if found is None or not edit.is_used_once(name) or name in extras:
            continue
        position, producer = found
        rank = max(edit.types[n].rank for n in elements)
        if isinstance(producer.operation, ops.Map) and edit.types[name].rank == rank and _spans(edit, name, elements):
            formula, inputs = fused(operation.element, elements, name, producer.operation.formula, producer.inputs)
            changed = msgspec.structs.replace(operation, element=formula)
            return position, msgspec.structs.replace(node, operation=changed, inputs=(*inputs, *extras))
    return None


def _spans(edit: Edit, name: str, elements: tuple[str, ...]) -> bool:
    """Whether a value is as large as everything that is reduced, so that nothing is computed more than once."""
    return all(edit.types[name].elements >= edit.types[other].elements for other in elements)
