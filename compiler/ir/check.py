"""What must hold of every graph between two passes; a pass that breaks it is found at once."""

from compiler.errors import InternalError
from compiler.ir.graph import Graph, bodies, type_of
from compiler.ir.typing import output_types


def check(graph: Graph, what: str) -> None:
    """Raise InternalError, which names `what` was done last, unless the graph is sound."""
    known = {*graph.inputs, *graph.constants}
    if len(known) != len(graph.inputs) + len(graph.constants):
        raise InternalError(f"after {what}: a name is used for two values")
    for name, array in graph.constants.items():
        if graph.types.get(name) != type_of(array):
            raise InternalError(f"after {what}: constant {name} is {type_of(array)}, not {graph.types.get(name)}")
    for node in graph.nodes:
        if missing := [name for name in node.inputs if name not in known]:
            raise InternalError(f"after {what}: {node.name} reads {missing} before they are computed")
        types = output_types(node.operation, [graph.types[name] for name in node.inputs])
        if types != tuple(graph.types.get(name) for name in node.outputs):
            raise InternalError(f"after {what}: {node.name} gives {list(map(str, types))}")
        if known.intersection(node.outputs):
            raise InternalError(f"after {what}: {node.name} computes {node.outputs} a second time")
        known.update(node.outputs)
        for name, body in bodies(node.operation).items():
            check(body, f"{what}, in {name} of {node.name}")
    if missing := [name for name in graph.outputs if name not in known]:
        raise InternalError(f"after {what}: outputs {missing} are not computed")
