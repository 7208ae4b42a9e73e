"""In which order of dimensions each computed value is stored, and how wide a border of zeros it gets.

Images under a convolution are stored with their channels last, so that a pixel is a matrix row; what they are computed
from, and what is computed from them, follows, through views as well: behind a transpose the channels are another
dimension. A value that a convolution pads gets its padding as a border of zeros, so that its producer writes it in
place and nothing is copied. Pixels that would crowd one another in a cache lie a little farther apart. Heads of
attention are written side by side, where they are read so.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from compiler.ir import Graph, Node, TensorType
from compiler.ir import operations as ops
from compiler.ir.axes import Axes, inverse, view_axes
from compiler.lowering.placement import Border, Placement, no_border

_CHANNEL = 1
_LINE_BYTES: Final = 64
_CROWDED_BYTES: Final = 1024
"""Pixels a multiple of this apart share few places in a first cache; more than 32 of them do not fit."""
_BOUND = (ops.MatMul, ops.Attention, ops.Softmax, ops.LayerNorm, ops.Scan, ops.While)
"""What writes its results with their last dimension innermost, whoever reads them."""
_FOLLOWING = (ops.Map, ops.Concat, ops.Pad)
"""What writes any layout, and reads fastest what lies alike."""


class Layout(msgspec.Struct, frozen=True):
    """How a value is stored."""

    order: tuple[int, ...]
    """Its dimensions, the outermost first."""
    border: Border

    @classmethod
    def row_major(cls, rank: int) -> "Layout":
        """Return the layout in which the last dimension is the innermost."""
        return cls(tuple(range(rank)), no_border(rank))

    def extents(self, kind: TensorType) -> list[int]:
        """Return how many elements of its buffer a value takes along each dimension: with border and gap."""
        extents = [before + n + after for n, (before, after) in zip(kind.shape, self.border, strict=True)]
        inner = self.order[-1] if self.order else 0
        if inner < kind.rank - 1 and not any(self.border[inner]):  # rows and borders have to follow each other
            extents[inner] += _gap(extents[inner], kind.dtype.item_bytes)
        return extents

    def placement(self, buffer: int, kind: TensorType) -> Placement:
        """Return where a value lies that is stored like this in a buffer of its own."""
        extents = self.extents(kind)
        strides = [0] * kind.rank
        step = 1
        for axis in reversed(self.order):
            strides[axis] = step
            step *= extents[axis]
        offset = sum(stride * before for stride, (before, _) in zip(strides, self.border, strict=True))
        return Placement(buffer, kind.dtype, kind.shape, tuple(strides), offset, self.border)

    @classmethod
    def with_innermost(cls, rank: int, axis: int) -> "Layout":
        """Return the layout in which one dimension is the innermost, and the others are in order."""
        return cls((*(n for n in range(rank) if n != axis), axis), no_border(rank))


def _gap(length: int, item_bytes: int) -> int:
    """Return how many elements to leave free behind each pixel, so that a window of pixels fits a cache."""
    return _LINE_BYTES // item_bytes if length * item_bytes % _CROWDED_BYTES == 0 else 0


def channels_last(rank: int) -> tuple[int, ...]:
    """Return the order of an image with its channels, dimension 1, innermost."""
    return Layout.with_innermost(rank, _CHANNEL).order


def choose_layouts(graph: Graph) -> dict[str, Layout]:
    """Return the layout of each value; for a view, the one that it gets if it has to be copied."""
    innermost = _innermost(graph)
    layouts = {name: Layout.row_major(kind.rank) for name, kind in graph.types.items()}
    layouts |= {name: Layout.with_innermost(graph.types[name].rank, axis) for name, axis in innermost.items()}
    layouts |= {name: Layout(order, no_border(len(order))) for name, order in _turned_products(graph)}
    for name, border in _borders(graph):
        if name in innermost:
            old = layouts[name]
            wider = tuple((max(a, c), max(b, d)) for (a, b), (c, d) in zip(old.border, border, strict=True))
            layouts[name] = Layout(old.order, wider)
    return layouts


def _innermost(graph: Graph) -> dict[str, int]:
    """Return which dimension is the innermost of each value that is tied to a convolution."""
    links: dict[str, list[tuple[str, Axes]]] = {}
    found: dict[str, int] = {}
    bound = {name for node in graph.nodes if isinstance(node.operation, _BOUND) for name in node.outputs}
    bound.update(graph.constants)
    for node in graph.nodes:
        for name, axes in _along(graph, node):
            [output] = node.outputs
            links.setdefault(output, []).append((name, axes))
            links.setdefault(name, []).append((output, inverse(axes, graph.types[name].rank)))
        if isinstance(node.operation, ops.Conv):
            found.update(dict.fromkeys((node.inputs[0], *node.outputs), _CHANNEL))
    found = {name: axis for name, axis in found.items() if name not in bound}
    waiting = list(found)
    while waiting:
        name = waiting.pop(0)
        for other, axes in links.get(name, ()):
            axis = axes[found[name]]
            if axis is not None and other not in found and other not in bound:
                found[other] = axis
                waiting.append(other)
    return found


def _turned_products(graph: Graph) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the stacks of matrices that are only read turned, rows kept, and the order in which they are wanted."""
    users = graph.users()
    for node in graph.nodes:
        if isinstance(node.operation, ops.Attention | ops.MatMul) and node.outputs[0] not in graph.outputs:
            [name], second = node.outputs, graph.types[node.inputs[1]].shape
            match [user.operation for user in users[name]]:
                case [ops.Transpose(order)] if order[-1] == len(order) - 1 and any(n > 1 for n in second[:-2]):
                    yield name, order


def _along(graph: Graph, node: Node) -> Iterator[tuple[str, Axes]]:
    """Yield the inputs of a node that had best lie like its result, and how their dimensions correspond."""
    shape = graph.types[node.outputs[0]].shape
    match node.operation:
        case ops.View() as view:
            yield node.inputs[0], view_axes(view, graph.types[node.inputs[0]].shape, shape)
            return
        case ops.Reduce(axes, element):
            names = node.inputs[: len(element.args)]
            rank = max(graph.types[name].rank for name in names)
            box: Axes = tuple(axis for axis in range(rank) if axis not in axes)
        case ops.Conv():
            names, rank, box = node.inputs[3:], len(shape), tuple(range(len(shape)))
        case ops.Lookup():
            names, rank, box = node.inputs[:1], len(shape), tuple(range(len(shape)))
            rank += len(node.inputs) - 1  # the dimensions that are looked up in come behind the others
        case operation if isinstance(operation, _FOLLOWING):
            names, rank, box = node.inputs, len(shape), tuple(range(len(shape)))
        case _:
            return
    for name in names:
        missing = rank - graph.types[name].rank
        yield name, tuple(axis - missing if axis is not None and axis >= missing else None for axis in box)


def _borders(graph: Graph) -> Iterator[tuple[str, Border]]:
    """Yield for each convolution that pads the value that it reads, behind views, and the border it needs there."""
    producers = graph.producers()
    for node in graph.nodes:
        if not isinstance(node.operation, ops.Conv) or not any(node.operation.pads):
            continue
        top, left, bottom, right = node.operation.pads
        name = node.inputs[0]
        sides: dict[int, tuple[int, int]] | None = {2: (top, bottom), 3: (left, right)}
        while sides is not None and name in producers and isinstance(producers[name].operation, ops.View):
            sides = _before_view(graph, producers[name], sides)
            name = producers[name].inputs[0]
        if sides is not None:
            yield name, tuple(sides.get(n, (0, 0)) for n in range(graph.types[name].rank))


def _before_view(graph: Graph, node: Node, sides: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]] | None:
    """Return which border a value needs for a view of it to have one, or None if it cannot."""
    assert isinstance(node.operation, ops.View)
    old, new = graph.types[node.inputs[0]].shape, graph.types[node.outputs[0]].shape
    axes = view_axes(node.operation, old, new)
    wanted: dict[int, tuple[int, int]] = {}
    for n, side in sides.items():
        axis = axes[n]
        if axis is not None and old[axis] == new[n]:
            wanted[axis] = side
        elif any(side):
            return None
    return wanted
