"""Which steps each operation becomes."""

from compiler.formula import Writer
from compiler.ir import Graph, Node
from compiler.ir import operations as ops
from compiler.loops.reduce import ReduceKernel, write_reduce
from compiler.loops.rows import LayerNormKernel, SoftmaxKernel, write_layer_norm, write_softmax
from compiler.lowering.attention import lower_attention
from compiler.lowering.control import lower_if, lower_scan, lower_while
from compiler.lowering.convolution import lower_conv
from compiler.lowering.epilogue import spread_extras
from compiler.lowering.indexing import lower_extreme, lower_lookup, lower_running, lower_scatter, lower_top
from compiler.lowering.lowering import RULES, Lowered, Lowering, Memory, elements
from compiler.lowering.matrix import lower_matmul
from compiler.lowering.placement import Placement, broadcast, reshaped, view
from compiler.lowering.step import Emitter
from compiler.options import CompileOptions


def _lower_map(low: Lowering, node: Node, operation: ops.Map) -> None:
    low.map(operation.formula, low.result(node.outputs[0]), [low.placement(name) for name in node.inputs])


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


def _rows(low: Lowering, placement: Placement) -> Placement:
    """Return a place of a value whose rows have their elements next to each other."""
    return placement if placement.strides[-1] == 1 else low.dense(placement)


def _row_bytes(placement: Placement) -> tuple[int, ...]:
    """Return the distances between rows, along each dimension but the last."""
    return tuple(placement.byte_stride(n) for n in range(len(placement.shape) - 1))


def _with_joined_rows(low: Lowering, placement: Placement, axes: int) -> Placement:
    """Return a place of a value with its last dimensions as one."""
    if axes == 1:
        return placement
    shape = (*placement.shape[:-axes], elements(placement.shape[-axes:]))
    result = reshaped(placement, shape) or reshaped(low.dense(placement), shape)
    assert result is not None
    return result


def _lower_softmax(low: Lowering, node: Node, operation: ops.Softmax) -> None:
    source, output = _rows(low, low.placement(node.inputs[0])), low.result(node.outputs[0])
    kernel = SoftmaxKernel(
        source.shape[:-1], source.shape[-1], _row_bytes(source), _row_bytes(output), operation.is_log
    )

    def emit(e: Emitter) -> None:
        function = e.kernel(kernel, lambda f: write_softmax(f, kernel, low.target))
        e.do(function(e.address(output), e.address(source)))

    low.step([source], [output], emit)


def _lower_layer_norm(low: Lowering, node: Node, operation: ops.LayerNorm) -> None:
    shape = low.type(node.inputs[0]).shape
    x, output, *more = low.placement(node.inputs[0]), low.result(node.outputs[0]), *map(low.placement, node.inputs[1:])
    if operation.axes > 1:
        more = [_with_joined_rows(low, broadcast(p, shape), operation.axes) for p in more]
    source, output = (_with_joined_rows(low, p, operation.axes) for p in (_rows(low, x), output))
    extras = spread_extras(low, more, source.shape, len(source.shape) - 1)
    kernel = LayerNormKernel(
        rows=source.shape[:-1],
        length=source.shape[-1],
        input_bytes=_row_bytes(source),
        output_bytes=_row_bytes(output),
        extras=tuple(e.operand for e in extras),
        epsilon=operation.epsilon,
        epilogue=operation.epilogue,
    )

    def emit(e: Emitter) -> None:
        function = e.kernel(kernel, lambda f: write_layer_norm(f, kernel, low.target))
        e.do(function(*(e.address(p) for p in (output, source, *extras))))

    low.step([source, *extras], [output], emit)


def _lower_concat(low: Lowering, node: Node, operation: ops.Concat) -> None:
    output = low.result(node.outputs[0])
    start = 0
    for name in node.inputs:
        source = low.placement(name)
        starts = tuple(start if n == operation.axis else 0 for n in range(len(source.shape)))
        low.move(source, _part(output, starts, source.shape))
        start += source.shape[operation.axis]


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


RULES.update(
    {
        ops.Map: _lower_map,
        ops.Reduce: _lower_reduce,
        ops.Concat: _lower_concat,
        ops.Pad: _lower_pad,
        ops.Lookup: lower_lookup,
        ops.Scatter: lower_scatter,
        ops.Running: lower_running,
        ops.Extreme: lower_extreme,
        ops.Top: lower_top,
        ops.MatMul: lower_matmul,
        ops.Conv: lower_conv,
        ops.Softmax: _lower_softmax,
        ops.Attention: lower_attention,
        ops.LayerNorm: _lower_layer_norm,
        ops.If: lower_if,
        ops.Scan: lower_scan,
        ops.While: lower_while,
    }
)


def lower(graph: Graph, options: CompileOptions, state_count: int = 0) -> Lowered:
    """Return a graph as steps; its last inputs are states, which its last outputs are kept in for the next call."""
    return Lowering(graph, options.target, Memory(options.weights)).run(state_count)
