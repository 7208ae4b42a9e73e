"""Branches and loops. What is decided by constants is decided here; the rest while the model runs."""

import numpy as np
from onnx import GraphProto

from compiler.dtypes import DType
from compiler.importer.context import Body, NodeContext, NotConvertibleError
from compiler.importer.registry import operator
from compiler.ir import TensorType
from compiler.ir import operations as ops


@operator("If")
def if_(n: NodeContext) -> None:
    """One of two bodies."""
    then, otherwise = n.subgraph("then_branch"), n.subgraph("else_branch")
    if n.is_constant(0):
        return n.set(*n.bodies.inline(then if n.scalar(0) else otherwise))
    sides = _both(n, then, otherwise)
    types = [[side.graph.type(name) for name in side.outputs] for side in sides]
    if types[0] != types[1]:
        raise n.refuse("its branches give values of different types or shapes, which are not fixed then")
    captured = list(dict.fromkeys(name for side in sides for name in side.captured))
    for side in sides:
        _see(n, side, captured)
    graphs = [side.graph.graph(side.outputs, inputs=side.inputs) for side in sides]
    condition = n.graph.reshape(n[0], ())
    return n.set(*n.graph.add_many(ops.If(graphs[0], graphs[1]), condition, *captured))


def _both(n: NodeContext, *graphs: GraphProto) -> list[Body]:
    """Convert each branch, whatever is wrong with the one before it: all of it is to be said at once."""
    sides, errors = [], []
    for graph in graphs:
        try:
            sides.append(n.bodies.convert(graph, ()))
        except NotConvertibleError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return sides


def _see(n: NodeContext, body: Body, captured: list[str]) -> None:
    """Let a body take exactly these values of the graph around it, in this order."""
    own = dict(zip(body.captured, body.graph.inputs[len(body.inputs) :], strict=True))
    body.inputs += [own.get(name) or body.graph.input(n.graph.type(name)) for name in captured]
    body.captured = captured


@operator("Loop")
def loop(n: NodeContext) -> None:
    """A number of rounds, or as long as a condition holds."""
    states = [n.graph.type(n[position]) for position in range(2, n.count)]
    number, truth = TensorType(DType.I64, ()), TensorType(DType.BOOL, ())
    graph = n.subgraph("body")
    body = n.bodies.convert(graph, [number, truth, *states])
    results = [body.graph.type(name) for name in body.outputs]
    if results[1 : 1 + len(states)] != states:
        raise n.refuse("a state changes its shape from round to round")
    stacked = len(body.outputs) - 1 - len(states)
    goes_on = body.outputs[0] == body.inputs[1] or _is_true(body, body.outputs[0])
    starts = not n.has(1) or (n.is_constant(1) and n.scalar(1))
    if n.is_constant(0) and goes_on and starts:
        return _counted(n, body, int(n.scalar(0)), stacked)
    if stacked:
        raise n.refuse("how often it runs is not known beforehand, so the size of what it collects is not either")
    count = n.graph.reshape(n[0], ()) if n.has(0) else n.graph.constant(np.asarray(np.iinfo(np.int64).max))
    condition = n.graph.reshape(n[1], ()) if n.has(1) else n.graph.constant(np.asarray(True))
    body.outputs[0] = body.graph.reshape(body.outputs[0], ())
    operation = ops.While(body.graph.graph(body.outputs), len(states))
    initial = [n[position] for position in range(2, n.count)]
    return n.set(*n.graph.add_many(operation, count, condition, *initial, *body.captured))


def _is_true(body: Body, name: str) -> bool:
    value = body.graph.value_of(name)
    return value is not None and bool(value.all())


def _counted(n: NodeContext, body: Body, count: int, stacked: int) -> None:
    """Add a loop of a fixed number of rounds; each gets its number as an entry of a value."""
    initial = [n[position] for position in range(2, n.count)]
    if count < 1:
        given = [body.graph.type(name) for name in body.outputs[len(body.outputs) - stacked :]]
        nothing = [n.graph.constant(np.empty((0, *kind.shape), kind.dtype.numpy)) for kind in given]
        return n.set(*initial, *nothing)
    captured = [*body.captured, n.graph.constant(np.asarray(True))]
    # In the order of a scan: states, the number of the round, what every round sees.
    number, truth, *states = body.inputs
    behind = body.graph.inputs[len(body.inputs) :]
    graph = body.graph.graph(body.outputs[1:], inputs=[*states, number, *behind, truth])
    operation = ops.Scan(graph, count, len(states), (False,), (False,) * stacked)
    numbers = n.graph.counting(count)
    return n.set(*n.graph.add_many(operation, *initial, numbers, *captured))


@operator("Scan")
def scan(n: NodeContext) -> None:
    """One round for each entry of some values."""
    if n.opset < 9:
        raise n.refuse("scans of opset 8 are not implemented")
    graph = n.subgraph("body")
    entries = n.integer("num_scan_inputs", 1)
    count_states = n.count - entries
    axes = n.integers("scan_input_axes", [0] * entries)
    taken = []
    for position, axis in enumerate(axes, count_states):
        rank = n.type(position).rank
        at = n.axis(axis, rank)
        taken.append(n.graph.transpose(n[position], [at, *(a for a in range(rank) if a != at)]))
    states = [n[position] for position in range(count_states)]
    formals = [n.graph.type(s) for s in states]
    formals += [TensorType(n.graph.type(t).dtype, n.graph.shape(t)[1:]) for t in taken]
    body = n.bodies.convert(graph, formals)
    stacked = len(body.outputs) - count_states
    operation = ops.Scan(
        body.graph.graph(body.outputs),
        n.graph.shape(taken[0])[0],
        count_states,
        tuple(bool(d) for d in n.integers("scan_input_directions", [0] * entries)),
        tuple(bool(d) for d in n.integers("scan_output_directions", [0] * stacked)),
    )
    results = list(n.graph.add_many(operation, *states, *taken, *body.captured))
    for number, axis in enumerate(n.integers("scan_output_axes", [0] * stacked)):
        value = results[count_states + number]
        rank = len(n.graph.shape(value))
        rest = list(range(1, rank))
        at = n.axis(axis, rank)
        results[count_states + number] = n.graph.transpose(value, [*rest[:at], 0, *rest[at:]])
    n.set(*results)
