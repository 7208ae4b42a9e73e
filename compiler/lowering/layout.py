"""In which order of dimensions each computed value is stored, and how wide a border of zeros it gets.

Images under a convolution or a pooling window are stored with their channels last, so that a pixel is a matrix row;
what they are computed from elementwise follows. A value that a convolution pads gets its padding as a border of zeros,
so that its producer writes it in place and nothing is copied.
"""

from collections.abc import Iterator

import msgspec

from compiler.ir import Graph, Node
from compiler.ir import operations as ops
from compiler.lowering.placement import Border, no_border

_MIN_IMAGE_RANK = 3


class Layout(msgspec.Struct, frozen=True):
    """How a value is stored."""

    order: tuple[int, ...]
    """Its dimensions, the outermost first."""
    border: Border

    @classmethod
    def row_major(cls, rank: int) -> "Layout":
        """Return the layout in which the last dimension is the innermost."""
        return cls(tuple(range(rank)), no_border(rank))


def channels_last(rank: int) -> tuple[int, ...]:
    """Return the order of an image with its channels, dimension 1, innermost."""
    return (0, *range(2, rank), 1)


def choose_layouts(graph: Graph) -> dict[str, Layout]:
    """Return the layout of each value that a node computes into memory of its own."""
    roots = _roots(graph)
    images = _images(graph, roots)
    layouts = {}
    for node in graph.nodes:
        if isinstance(node.operation, ops.View):
            continue
        for name in node.outputs:
            rank = graph.types[name].rank
            order = channels_last(rank) if name in images else tuple(range(rank))
            layouts[name] = Layout(order, no_border(rank))
    for name, border in _borders(graph, roots):
        if name in layouts and name in images:
            old = layouts[name]
            wider = tuple((max(a, c), max(b, d)) for (a, b), (c, d) in zip(old.border, border, strict=True))
            layouts[name] = Layout(old.order, wider)
    return layouts


def _roots(graph: Graph) -> dict[str, str]:
    """Return for each value the one that it is a view of."""
    roots = {name: name for name in graph.types}
    for node in graph.nodes:
        if isinstance(node.operation, ops.View):
            roots[node.outputs[0]] = roots[node.inputs[0]]
    return roots


def _images(graph: Graph, roots: dict[str, str]) -> set[str]:
    """Return the values to store with their channels last: those of convolutions, and what is tied to them."""
    ties: dict[str, set[str]] = {}
    images: set[str] = set()
    for node in graph.nodes:
        if isinstance(node.operation, ops.Conv):
            images.update(name for name in _image_values(graph, node, roots) if _is_image(graph, name))
        elif not isinstance(node.operation, ops.View):
            values = [name for name in _image_values(graph, node, roots) if _is_image(graph, name)]
            for name in values:
                ties.setdefault(name, set()).update(values)
    waiting = list(images)
    while waiting:
        for other in ties.get(waiting.pop(), ()):
            if other not in images:
                images.add(other)
                waiting.append(other)
    return images


def _is_image(graph: Graph, name: str) -> bool:
    return graph.types[name].rank >= _MIN_IMAGE_RANK


def _image_values(graph: Graph, node: Node, roots: dict[str, str]) -> Iterator[str]:
    """Yield the values of a node that are stored alike: its results, and inputs of the same rank."""
    yield from node.outputs
    rank = graph.types[node.outputs[0]].rank
    match node.operation:
        case ops.Conv():
            candidates = [node.inputs[0], *node.inputs[3:]]
        case ops.Map() | ops.Concat() | ops.Pad() | ops.Reduce():
            candidates = list(node.inputs)
        case ops.Lookup():
            candidates = [node.inputs[0]]
        case _:
            return
    for name in candidates:
        root = roots[name]
        if graph.types[root].rank == rank or isinstance(node.operation, ops.Conv):
            yield root


def _borders(graph: Graph, roots: dict[str, str]) -> Iterator[tuple[str, Border]]:
    """Yield for each convolution that pads the value that it reads and the border that it needs there."""
    for node in graph.nodes:
        if not isinstance(node.operation, ops.Conv) or not any(node.operation.pads):
            continue
        top, left, bottom, right = node.operation.pads
        name = node.inputs[0]
        root = roots[name]
        shape, stored = graph.types[name].shape, graph.types[root].shape
        if shape[2:] == stored[2:]:
            yield root, ((0, 0), (0, 0), (top, bottom), (left, right))
        elif len(stored) == _MIN_IMAGE_RANK and shape[3] == stored[2] and shape[2] == 1:
            yield root, ((0, 0), (0, 0), (left, right))
