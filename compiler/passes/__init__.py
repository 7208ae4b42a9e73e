"""What is done to a graph before it is lowered: each pass returns a graph that means the same."""

from collections.abc import Callable

import msgspec

from compiler.ir import Graph, Node
from compiler.ir.graph import bodies
from compiler.passes.affine import fold_scales_and_shifts
from compiler.passes.attention import fuse_attention
from compiler.passes.fusion import fuse_elementwise
from compiler.passes.normalisation import fuse_layer_norm
from compiler.passes.numbers import put_numbers_into_formulas
from compiler.passes.views import sink_transposes

Pass = Callable[[Graph], Graph]

PASSES: tuple[Pass, ...] = (
    put_numbers_into_formulas,
    fuse_layer_norm,
    sink_transposes,
    fuse_elementwise,
    fold_scales_and_shifts,
    fuse_attention,
)
"""In the order in which they run."""


def everywhere(one_pass: Pass, graph: Graph) -> Graph:
    """Return a graph after a pass over it and over the bodies of its branches and loops."""
    return one_pass(msgspec.structs.replace(graph, nodes=tuple(_inside(one_pass, node) for node in graph.nodes)))


def _inside(one_pass: Pass, node: Node) -> Node:
    changed = {name: everywhere(one_pass, body) for name, body in bodies(node.operation).items()}
    if not changed:
        return node
    return msgspec.structs.replace(node, operation=msgspec.structs.replace(node.operation, **changed))
