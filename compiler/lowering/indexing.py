"""Elements by computed places, running totals, and the search for extremes."""

import msgspec

from compiler.formula import Writer
from compiler.ir import Node
from compiler.ir import operations as ops
from compiler.loops.lookup import LookupKernel, write_lookup
from compiler.loops.sequential import (
    ExtremeKernel,
    RunningKernel,
    TopKernel,
    write_extreme,
    write_running,
    write_top,
)
from compiler.lowering.lowering import Lowering
from compiler.lowering.placement import Placement, broadcast
from compiler.lowering.step import Emitter


def lower_lookup(low: Lowering, node: Node, _: ops.Lookup) -> None:
    """Add the step that gathers."""
    data, *indices = (low.placement(name) for name in node.inputs)
    output = low.result(node.outputs[0])
    kernel, operands = _lookup(data, indices, output)

    def emit(e: Emitter) -> None:
        function = e.kernel(kernel, lambda f: write_lookup(f, kernel, low.target))
        e.do(function(*(e.address(p) for p in operands)))

    low.step([data, *indices], [output], emit)


def lower_scatter(low: Lowering, node: Node, operation: ops.Scatter) -> None:
    """Add a copy of the data, and the step that scatters into it."""
    source, updates, *indices = (low.placement(name) for name in node.inputs)
    output = low.result(node.outputs[0])
    low.move(source, output)
    kernel, operands = _lookup(output, indices, updates)
    kernel = msgspec.structs.replace(kernel, is_scatter=True, combine=operation.combine)

    def emit(e: Emitter) -> None:
        function = e.kernel(kernel, lambda f: write_lookup(f, kernel, low.target))
        e.do(function(*(e.address(p) for p in operands)))

    low.step([updates, output, *indices], [output], emit)


def _lookup(indexed: Placement, indices: list[Placement], plain: Placement) -> tuple[LookupKernel, list[Placement]]:
    """Return the kernel between a plain value and an indexed one, and its operands in their order."""
    rest = len(indexed.shape) - len(indices)
    own = msgspec.structs.replace(
        indexed, shape=indexed.shape[:rest], strides=indexed.strides[:rest], border=indexed.border[:rest]
    )
    spread = [broadcast(p, plain.shape) for p in (own, *indices)]
    dimensions = tuple(zip(indexed.shape[rest:], indexed.strides[rest:], strict=True))
    kernel = LookupKernel(
        plain.shape, plain.operand, spread[0].operand, tuple(p.operand for p in spread[1:]), dimensions
    )
    return kernel, [plain, *spread]


def lower_running(low: Lowering, node: Node, operation: ops.Running) -> None:
    """Add the step that sums up."""
    source, output = low.placement(node.inputs[0]), low.result(node.outputs[0])
    writer = Writer([source.dtype, source.dtype])
    formula = writer.formula(writer.apply(operation.combine, writer.arg(0), writer.arg(1)))
    kernel = RunningKernel(
        source.shape, source.operand, output.operand, operation.combine, formula, operation.is_exclusive
    )

    def emit(e: Emitter) -> None:
        function = e.kernel(kernel, lambda f: write_running(f, kernel, low.target))
        e.do(function(e.address(output), e.address(source)))

    low.step([source], [output], emit)


def lower_extreme(low: Lowering, node: Node, operation: ops.Extreme) -> None:
    """Add the step that searches."""
    source, output = low.placement(node.inputs[0]), low.result(node.outputs[0])
    kernel = ExtremeKernel(source.shape, source.operand, output.operand, operation.is_greatest, operation.is_last)

    def emit(e: Emitter) -> None:
        function = e.kernel(kernel, lambda f: write_extreme(f, kernel))
        e.do(function(e.address(output), e.address(source)))

    low.step([source], [output], emit)


def lower_top(low: Lowering, node: Node, operation: ops.Top) -> None:
    """Add the step that keeps the best."""
    source = low.placement(node.inputs[0])
    values, places = (low.result(name) for name in node.outputs)
    kernel = TopKernel(
        source.shape, operation.count, source.operand, values.operand, places.operand, operation.is_greatest
    )

    def emit(e: Emitter) -> None:
        function = e.kernel(kernel, lambda f: write_top(f, kernel))
        e.do(function(e.address(values), e.address(places), e.address(source)))

    low.step([source], [values, places], emit)
