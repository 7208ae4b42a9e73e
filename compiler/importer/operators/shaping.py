"""Operators that move data, or compute shapes."""

import math

import numpy as np

from compiler.importer.context import NodeContext
from compiler.importer.registry import operator
from compiler.importer.types import ONNX_TYPES
from compiler.importer.weights import dense_array
from compiler.ir import operations as ops
from compiler.ir.builder import check_foldable


@operator("Constant")
def constant(n: NodeContext) -> None:
    """Numbers that are in the node."""
    for name in ("value_int", "value_ints", "value_float", "value_floats"):
        if (value := n.attribute(name)) is not None:
            return n.set(n.graph.constant(np.asarray(value, np.int64 if "int" in name else np.float32)))
    if (sparse := n.attribute("sparse_value")) is not None:
        return n.set(n.graph.constant(dense_array(sparse)))
    if n.attribute("value") is None:
        raise n.refuse("it is text")
    return n.set(n.graph.constant(n.tensor("value")))


@operator("ConstantOfShape")
def constant_of_shape(n: NodeContext) -> None:
    """One number, as often as a shape says."""
    value = n.tensor("value") if n.attribute("value") is not None else np.zeros(1, np.float32)
    n.set(n.graph.broadcast(n.graph.constant(value.reshape(())), n.constant_integers(0)))


@operator("Shape")
def shape(n: NodeContext) -> None:
    """The shape, which is known."""
    dimensions = n.shape()
    cut = slice(n.integer("start", 0), n.attribute("end"))
    n.set(n.graph.constant(np.array(dimensions[cut], np.int64)))


@operator("Size")
def size(n: NodeContext) -> None:
    """The number of elements, which is known."""
    n.set(n.graph.constant(np.asarray(math.prod(n.shape()), np.int64)))


@operator("Range")
def range_(n: NodeContext) -> None:
    """Numbers at regular distances."""
    start, limit, delta = (n.scalar(position) for position in range(3))
    count = max(math.ceil((limit - start) / delta), 0)
    check_foldable(count)
    n.set(n.graph.constant((start + delta * np.arange(count)).astype(n.dtype().numpy)))


@operator("Reshape")
def reshape(n: NodeContext) -> None:
    """To a shape in which 0 is the old size and -1 what is left."""
    old, wanted = n.shape(), n.constant_integers(1)
    if not n.integer("allowzero", 0):
        wanted = [old[axis] if length == 0 and axis < len(old) else length for axis, length in enumerate(wanted)]
    if -1 in wanted:
        rest = math.prod(length for length in wanted if length != -1)
        wanted[wanted.index(-1)] = math.prod(old) // rest if rest else 0
    if math.prod(wanted) != math.prod(old):
        raise n.refuse(f"cannot reshape {list(old)} to {wanted}")
    n.set(n.graph.reshape(n[0], wanted))


@operator("Flatten")
def flatten(n: NodeContext) -> None:
    """To two dimensions."""
    dimensions = n.shape()
    axis = n.integer("axis", 1)
    axis = axis + len(dimensions) if axis < 0 else axis
    n.set(n.graph.reshape(n[0], (math.prod(dimensions[:axis]), math.prod(dimensions[axis:]))))


@operator("Squeeze")
def squeeze(n: NodeContext) -> None:
    """Without dimensions of 1."""
    dimensions = n.shape()
    given = n.integers_or_input("axes", 1)
    axes = (
        {n.axis(a, len(dimensions)) for a in given}
        if given is not None
        else {a for a, d in enumerate(dimensions) if d == 1}
    )
    n.set(n.graph.reshape(n[0], [d for a, d in enumerate(dimensions) if a not in axes]))


@operator("Unsqueeze")
def unsqueeze(n: NodeContext) -> None:
    """With further dimensions of 1."""
    given = n.integers_or_input("axes", 1) or []
    rank = len(n.shape()) + len(given)
    axes = {n.axis(a, rank) for a in given}
    rest = iter(n.shape())
    n.set(n.graph.reshape(n[0], [1 if a in axes else next(rest) for a in range(rank)]))


@operator("Transpose")
def transpose(n: NodeContext) -> None:
    """In another order, by default the reverse."""
    n.set(n.graph.transpose(n[0], n.integers("perm", range(len(n.shape()))[::-1])))


@operator("Expand")
def expand(n: NodeContext) -> None:
    """Broadcast against a shape."""
    n.set(n.graph.broadcast(n[0], np.broadcast_shapes(n.shape(), tuple(n.constant_integers(1)))))


@operator("Tile")
def tile(n: NodeContext) -> None:
    """Repeated along each dimension: a new dimension for the repeats, joined with the old one."""
    dimensions, repeats = n.shape(), n.constant_integers(1)
    split = [length for d in dimensions for length in (1, d)]
    spread = [length for d, r in zip(dimensions, repeats, strict=True) for length in (r, d)]
    repeated = n.graph.broadcast(n.graph.reshape(n[0], split), spread)
    n.set(n.graph.reshape(repeated, [d * r for d, r in zip(dimensions, repeats, strict=True)]))


@operator("Concat")
def concat(n: NodeContext) -> None:
    """One behind the other; what is empty is left out."""
    axis = n.axis(n.integer("axis", 1), len(n.shape()))
    parts = [name for name in n.all() if n.graph.shape(name)[axis]] or [n[0]]
    n.set(n.graph.add(ops.Concat(axis), *parts) if len(parts) > 1 else parts[0])


@operator("Split")
def split(n: NodeContext) -> None:
    """Cut along one axis, into equal parts unless told otherwise."""
    dimensions = n.shape()
    axis = n.axis(n.integer("axis", 0), len(dimensions))
    parts = len(n.node.output)
    lengths = n.integers_or_input("split", 1)
    if lengths is None:
        whole = -(-dimensions[axis] // parts)
        lengths = [min(whole, dimensions[axis] - whole * p) for p in range(parts)]
    results, start = [], 0
    for length in lengths:
        starts = [start if a == axis else 0 for a in range(len(dimensions))]
        counts = [length if a == axis else d for a, d in enumerate(dimensions)]
        results.append(n.graph.slice(n[0], starts, counts))
        start += length
    n.set(*results)


@operator("Slice")
def slice_(n: NodeContext) -> None:
    """Every so many elements from one place to another, along some axes."""
    dimensions = n.shape()
    if n.opset < 10:
        begins, ends, axes, steps = n.integers("starts", ()), n.integers("ends", ()), n.attribute("axes"), None
    else:
        begins, ends = n.constant_integers(1), n.constant_integers(2)
        axes = n.constant_integers(3) if n.has(3) else None
        steps = n.constant_integers(4) if n.has(4) else None
    starts, counts, strides = [0] * len(dimensions), list(dimensions), [1] * len(dimensions)
    for position, axis in enumerate(axes or range(len(begins))):
        at = n.axis(axis, len(dimensions))
        step = steps[position] if steps else 1
        indices = range(*slice(begins[position], ends[position], step).indices(dimensions[at]))
        if step < 0 and ends[position] < -dimensions[at]:
            indices = range(*slice(begins[position], None, step).indices(dimensions[at]))
        starts[at], counts[at], strides[at] = (indices[0] if indices else 0), len(indices), step
    n.set(n.graph.slice(n[0], starts, counts, strides))


@operator("Gather")
def gather(n: NodeContext) -> None:
    """Entries along an axis; constant neighbours are a cut."""
    dimensions = n.shape()
    axis = n.axis(n.integer("axis", 0), len(dimensions))
    if n.is_constant(1) and n.constant(1).size == 1:
        index = n.axis(n.scalar(1), dimensions[axis])
        starts = [index if a == axis else 0 for a in range(len(dimensions))]
        cut = n.graph.slice(n[0], starts, [1 if a == axis else d for a, d in enumerate(dimensions)])
        return n.set(n.graph.reshape(cut, dimensions[:axis] + n.shape(1) + dimensions[axis + 1 :]))
    return n.set(n.graph.take(n[0], n[1], axis))


@operator("DepthToSpace")
def depth_to_space(n: NodeContext) -> None:
    """Blocks of channels become blocks of pixels."""
    batch, channels, height, width = n.shape()
    block = n.integer("blocksize", 1)
    depth = channels // block**2
    if n.choice("mode", "DCR", "CRD") == "DCR":
        split, order = (batch, block, block, depth, height, width), (0, 3, 4, 1, 5, 2)
    else:
        split, order = (batch, depth, block, block, height, width), (0, 1, 4, 2, 5, 3)
    moved = n.graph.transpose(n.graph.reshape(n[0], split), order)
    n.set(n.graph.reshape(moved, (batch, depth, height * block, width * block)))


@operator("SpaceToDepth")
def space_to_depth(n: NodeContext) -> None:
    """Blocks of pixels become blocks of channels."""
    batch, channels, height, width = n.shape()
    block = n.integer("blocksize", 1)
    split = (batch, channels, height // block, block, width // block, block)
    order = (0, 3, 5, 1, 2, 4) if n.choice("mode", "DCR", "CRD") == "DCR" else (0, 1, 3, 5, 2, 4)
    moved = n.graph.transpose(n.graph.reshape(n[0], split), order)
    n.set(n.graph.reshape(moved, (batch, channels * block**2, height // block, width // block)))


@operator("Pad")
def pad(n: NodeContext) -> None:
    """Around the input: a number, or what is inside, mirrored, repeated or continued. Negative amounts cut."""
    dimensions, mode = n.shape(), n.attribute("mode", "constant")
    amounts = n.integers_or_input("pads", 1) or []
    axes = [n.axis(a, len(dimensions)) for a in n.constant_integers(3)] if n.has(3) else list(range(len(dimensions)))
    before, after = [0] * len(dimensions), [0] * len(dimensions)
    for position, axis in enumerate(axes):
        before[axis], after[axis] = amounts[position], amounts[position + len(axes)]
    if mode == "constant":
        value = n.number("value", 0.0) if n.opset < 11 else n.scalar(2) if n.has(2) and n.constant(2).size else 0
        kept = n.graph.slice(
            n[0],
            [max(-b, 0) for b in before],
            [d + min(b, 0) + min(a, 0) for d, b, a in zip(dimensions, before, after, strict=True)],
        )
        operation = ops.Pad(tuple(max(b, 0) for b in before), tuple(max(a, 0) for a in after), value)
        return n.set(n.graph.add(operation, kept) if any((*operation.before, *operation.after)) else kept)
    value_name = n[0]
    for axis, (length, b, a) in enumerate(zip(dimensions, before, after, strict=True)):
        if b or a:
            inside = np.arange(length)[max(-b, 0) : length - max(-a, 0)]
            indices = np.pad(inside, (max(b, 0), max(a, 0)), mode)
            value_name = n.graph.take(value_name, n.graph.constant(indices), axis)
    return n.set(value_name)


@operator("EyeLike")
def eye_like(n: NodeContext) -> None:
    """Ones on a diagonal."""
    rows, columns = n.shape()
    kind = n.dtype() if n.attribute("dtype") is None else ONNX_TYPES[n.integer("dtype", 0)]
    check_foldable(rows * columns, kind.item_bytes)
    n.set(n.graph.constant(np.eye(rows, columns, n.integer("k", 0), dtype=kind.numpy)))


@operator("Trilu")
def trilu(n: NodeContext) -> None:
    """The triangle above or below a diagonal."""
    diagonal = int(n.scalar(1)) if n.has(1) else 0
    is_upper = bool(n.integer("upper", 1))
    rows, columns = n.shape()[-2:]
    check_foldable(rows * columns, 1)
    mask = np.tri(rows, columns, diagonal - is_upper, dtype=bool) ^ is_upper
    zero = n.graph.number(n[0], 0)
    n.set(n.graph.apply("select", n.graph.constant(mask), n[0], zero))
