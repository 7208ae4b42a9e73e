"""Which names nodes read, those of the bodies inside them included; and which nodes anybody needs."""

from collections.abc import Iterator, Sequence

from onnx import GraphProto, NodeProto


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs inside of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def names_read(node: NodeProto) -> Iterator[str]:
    """Yield every name that a node reads, or that a body inside it reads or gives."""
    yield from node.input
    for graph in bodies(node):
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from names_read(inner)


def needed_nodes(graph: GraphProto) -> Sequence[NodeProto]:
    """Return the nodes on which the outputs of a graph depend, in their order."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(names_read(node))
    return kept[::-1]
