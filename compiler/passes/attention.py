"""Finds attention, two products with a softmax between them, and makes one node of it.

So the scores of all heads are never there at the same time: the kernel computes some rows of them, and what becomes of
these, in a small piece of memory. Scale and mask are in the first product already, by `compiler.passes.fusion`. Scores
that are a small piece of memory as they are stay in pieces.
"""

from typing import Final

from compiler.ir import Graph, Node
from compiler.ir import operations as ops
from compiler.passes.edit import Edit

MIN_SCORES_BYTES: Final = 128 * 1024
"""Of all scores together; the caches keep fewer anyway."""


def fuse_attention(graph: Graph) -> Graph:
    """Make one node of each softmax between two products, where nothing else reads what is between them."""
    edit = Edit(graph)
    for position, node in edit.positions():
        found = _attention(edit, node)
        if found is not None:
            for inner, _ in found:
                edit.replace(inner, None)
            edit.replace(position, _joined(found[1][1], node))
    return edit.graph()


def _attention(edit: Edit, node: Node) -> tuple[tuple[int, Node], tuple[int, Node]] | None:
    """Return the softmax and the product before a product, with their positions, if they are private to it."""
    if not isinstance(node.operation, ops.MatMul) or node.inputs.count(node.inputs[0]) > 1:
        return None
    softmax = _private(edit, node.inputs[0])
    if softmax is None or softmax[1].operation != ops.Softmax(is_log=False):
        return None
    product = _private(edit, softmax[1].inputs[0])
    if product is None or not isinstance(product[1].operation, ops.MatMul):
        return None
    scores, result = (edit.types[name] for name in (node.inputs[0], *node.outputs))
    is_large = scores.size_bytes > MIN_SCORES_BYTES
    return (softmax, product) if is_large and scores.shape[:-2] == result.shape[:-2] else None


def _private(edit: Edit, name: str) -> tuple[int, Node] | None:
    """Return the node that computes a value which is read once."""
    return edit.producer(name) if edit.is_used_once(name) else None


def _joined(first: Node, second: Node) -> Node:
    assert isinstance(first.operation, ops.MatMul)
    assert isinstance(second.operation, ops.MatMul)
    operation = ops.Attention(first.operation.epilogue, second.operation.epilogue)
    inputs = (*first.inputs[:3], *second.inputs[1:3], *first.inputs[3:], *second.inputs[3:])
    return Node(first.name, operation, inputs, second.outputs)
