"""Which steps each operation becomes."""

from compiler.errors import InternalError
from compiler.formula import Writer
from compiler.ir import Node
from compiler.ir import operations as ops
from compiler.loops.gather import GatherKernel, write_gather
from compiler.loops.reduce import ReduceKernel, write_reduce
from compiler.loops.rows import SoftmaxKernel, write_softmax
from compiler.lowering.convolution import lower_conv
from compiler.lowering.lowering import Lowering, elements
from compiler.lowering.matrix import lower_matmul
from compiler.lowering.placement import Placement, broadcast, view
from compiler.lowering.step import Emitter


def lower_node(low: Lowering, node: Node) -> None:
    """Add the steps of a node."""
    match node.operation:
        case ops.Map(formula):
            low.map(formula, low.result(node.outputs[0]), [low.placement(name) for name in node.inputs])
        case ops.Reduce():
            _lower_reduce(low, node, node.operation)
        case ops.MatMul():
            lower_matmul(low, node, node.operation)
        case ops.Conv():
            lower_conv(low, node, node.operation)
        case ops.Softmax():
            _lower_softmax(low, node, node.operation)
        case ops.Concat(axis):
            _lower_concat(low, node, axis)
        case ops.Pad():
            _lower_pad(low, node, node.operation)
        case ops.Gather(axis):
            _lower_gather(low, node, axis)
        case operation:
            raise InternalError(f"no steps for {type(operation).__name__}")


def _lower_reduce(low: Lowering, node: Node, operation: ops.Reduce) -> None:
    count = len(operation.element.args)
    placements = [low.placement(name) for name in node.inputs]
    rank = max(len(p.shape) for p in placements[:count])
    output = low.result(node.outputs[0])
    kept = [axis for axis in range(rank) if axis not in operation.axes]
    sizes = _box_sizes([p.shape for p in placements[:count]], rank)
    inputs = [broadcast(p, sizes) for p in placements[:count]]
    extras = [broadcast(p, output.shape) for p in placements[count:]]
    kernel = ReduceKernel(
        kept=output.shape,
        reduced=tuple(sizes[axis] for axis in operation.axes),
        output=output.operand,
        inputs=tuple(_ordered(p, [*kept, *operation.axes]).operand for p in inputs),
        extras=tuple(p.operand for p in extras),
        element=operation.element,
        combine=operation.combine,
        finish=operation.finish,
    ).simplified()

    def emit(e: Emitter) -> None:
        function = e.kernel(kernel, lambda f: write_reduce(f, kernel, low.target))
        e.do(function(*(e.address(p) for p in (output, *inputs, *extras))))

    low.step([*inputs, *extras], [output], emit, multiply_adds=elements(sizes))


def _box_sizes(shapes: list[tuple[int, ...]], rank: int) -> tuple[int, ...]:
    sizes = [1] * rank
    for shape in shapes:
        for n, length in enumerate(shape, rank - len(shape)):
            sizes[n] = max(sizes[n], length)
    return tuple(sizes)


def _ordered(placement: Placement, order: list[int]) -> Placement:
    ordered = view(ops.Transpose(tuple(order)), placement)
    assert ordered is not None
    return ordered


def _lower_softmax(low: Lowering, node: Node, operation: ops.Softmax) -> None:
    source, output = low.placement(node.inputs[0]), low.result(node.outputs[0])
    source = source if source.strides[-1] == 1 else low.dense(source)
    target = output if output.strides[-1] == 1 else low.place_dense(output)
    kernel = SoftmaxKernel(
        source.shape[:-1],
        source.shape[-1],
        tuple(source.byte_stride(n) for n in range(len(source.shape) - 1)),
        tuple(target.byte_stride(n) for n in range(len(source.shape) - 1)),
        operation.is_log,
    )

    def emit(e: Emitter) -> None:
        function = e.kernel(kernel, lambda f: write_softmax(f, kernel, low.target))
        e.do(function(e.address(target), e.address(source)))

    low.step([source], [target], emit)
    low.move(target, output)


def _lower_concat(low: Lowering, node: Node, axis: int) -> None:
    output = low.result(node.outputs[0])
    start = 0
    for name in node.inputs:
        source = low.placement(name)
        starts = tuple(start if n == axis else 0 for n in range(len(source.shape)))
        low.move(source, _part(output, starts, source.shape))
        start += source.shape[axis]


def _part(output: Placement, starts: tuple[int, ...], counts: tuple[int, ...]) -> Placement:
    part = view(ops.Slice(starts, (1,) * len(starts), counts), output)
    assert part is not None
    return part


def _lower_pad(low: Lowering, node: Node, operation: ops.Pad) -> None:
    source, output = low.placement(node.inputs[0]), low.result(node.outputs[0])
    writer = Writer([])
    number = writer.formula(writer.const(source.dtype, operation.value))
    starts, counts = [0] * len(output.shape), list(output.shape)
    for axis, (before, after) in enumerate(zip(operation.before, operation.after, strict=True)):
        for start, count in ((0, before), (output.shape[axis] - after, after)):
            if count:
                starts[axis], counts[axis] = start, count
                low.map(number, _part(output, tuple(starts), tuple(counts)), [])
        starts[axis], counts[axis] = before, source.shape[axis]
    low.move(source, _part(output, tuple(starts), tuple(counts)))


def _lower_gather(low: Lowering, node: Node, axis: int) -> None:
    data, indices = (low.placement(name) for name in node.inputs)
    output = low.result(node.outputs[0])
    inner = data.shape[axis + 1 :]
    kernel = GatherKernel(
        dtype=data.dtype,
        index_dtype=indices.dtype,
        outer=data.shape[:axis],
        indices=indices.shape,
        inner=inner,
        length=data.shape[axis],
        axis_stride=data.strides[axis],
        data_strides=data.strides[:axis] + data.strides[axis + 1 :],
        index_strides=indices.strides,
        output_strides=output.strides,
    )

    def emit(e: Emitter) -> None:
        function = e.kernel(kernel, lambda f: write_gather(f, kernel))
        e.do(function(e.address(output), e.address(data), e.address(indices)))

    low.step([data, indices], [output], emit)
