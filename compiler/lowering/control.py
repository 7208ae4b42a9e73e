"""Branches and loops that are decided while the model runs.

Bodies are steps inside a step. States of a loop have places of their own; what a round gets of a larger value is copied
to a fixed place first, and what it gives for one is copied from there, so that the kernels of the body have constant
addresses like all others.
"""

from collections.abc import Sequence

from compiler.formula import identity
from compiler.ir import Node, TensorType
from compiler.ir import operations as ops
from compiler.loops.map import MapKernel, write_map
from compiler.lowering.layout import Layout
from compiler.lowering.lowering import Lowering
from compiler.lowering.placement import Placement, dense
from compiler.lowering.step import Emitter
from compiler.wasm import Function, I32Local, i32, i64


def lower_if(low: Lowering, node: Node, operation: ops.If) -> None:
    """Add a branch; both sides put their results into the same places."""
    condition, *captured = (low.placement(name) for name in node.inputs)
    results = [low.result(name) for name in node.outputs]
    blocks = []
    for graph in (operation.then, operation.otherwise):
        inner = low.inside(graph, captured)
        for source, target in zip(inner.outputs(), results, strict=True):
            inner.move(source, target)
        blocks.append(inner.steps)

    def emit(e: Emitter) -> None:
        body = e.body
        with body.if_(i32.load8_u(i32.const(e.address(condition)))) as branches:
            e.run(blocks[0])
            branches.otherwise()
            e.run(blocks[1])

    low.block([condition, *captured], results, blocks, emit, is_loop=False)


def lower_scan(low: Lowering, node: Node, operation: ops.Scan) -> None:
    """Add a loop that takes values apart and puts values together."""
    placements = [low.placement(name) for name in node.inputs]
    first = operation.states + len(operation.reversed_inputs)
    states = _states(low, placements[: operation.states], node.outputs)
    taken = [low.dense(p) for p in placements[operation.states : first]]
    entries = [_place(low, p, p.shape[1:]) for p in taken]
    stacked = [low.result(name) for name in node.outputs[operation.states :]]  # dense: nothing is tied to them
    inner = low.inside(operation.body, [*states, *entries, *placements[first:]])
    results = inner.outputs()
    inner.keep_states(results[: operation.states], states)
    given = [inner.dense(p) for p in results[operation.states :]]
    steps = inner.steps

    def emit(e: Emitter) -> None:
        body = e.body
        sources, targets = (
            [_cursor(e, p, operation.count, turned=t) for p, t in zip(values, turned, strict=True)]
            for values, turned in ((taken, operation.reversed_inputs), (stacked, operation.reversed_outputs))
        )
        with body.repeat(body.i32(), operation.count):
            for entry, (source, step) in zip(entries, sources, strict=True):
                e.do(_copying(e, entry)(e.address(entry), source))
                source.advance(step)
            e.run(steps)
            for entry, (target, step) in zip(given, targets, strict=True):
                e.do(_copying(e, entry)(target, e.address(entry)))
                target.advance(step)

    low.block([*placements, *taken, *states, *given], [*entries, *stacked], [steps], emit, is_loop=True)


def lower_while(low: Lowering, node: Node, operation: ops.While) -> None:
    """Add a loop that goes on while a truth holds."""
    count, condition, *rest = (low.placement(name) for name in node.inputs)
    states = _states(low, rest[: operation.states], node.outputs)
    number, holds = low.place_dense(count), low.place_dense(condition)
    low.move(condition, holds)
    inner = low.inside(operation.body, [number, holds, *states, *rest[operation.states :]])
    results = inner.outputs()
    inner.keep_states(results, [holds, *states])
    steps = inner.steps

    def emit(e: Emitter) -> None:
        body, address = e.body, i32.const(e.address(number))
        body.do(i64.store(address, i64.const(0)))
        with body.block() as done, body.loop() as again:
            body.branch(done, i64.ge_s(i64.load(address), i64.load(i32.const(e.address(count)))))
            body.branch(done, i32.eqz(i32.load8_u(i32.const(e.address(holds)))))
            e.run(steps)
            body.do(i64.store(address, i64.add(i64.load(address), i64.const(1))))
            body.branch(again)

    low.block([count, holds, *rest, *states], [number], [steps], emit, is_loop=True)


def _states(low: Lowering, initial: Sequence[Placement], names: Sequence[str]) -> list[Placement]:
    """Return places for the states of a loop, with what they begin with; they hold the results at its end."""
    states = []
    for source, name in zip(initial, names, strict=False):
        state = low.place_dense(source)
        low.move(source, state)
        low.alias(name, state)
        states.append(state)
    return states


def _place(low: Lowering, like: Placement, shape: tuple[int, ...]) -> Placement:
    return low.place(TensorType(like.dtype, shape), Layout.row_major(len(shape)))


def _cursor(e: Emitter, whole: Placement, count: int, *, turned: bool) -> tuple[I32Local, int]:
    """Return the address of the first entry of a value, and how far it is to the next."""
    step = whole.byte_stride(0)
    start = e.address(whole) + (step * (count - 1) if turned else 0)
    local: I32Local = e.body.variable(i32.const(start))
    return local, -step if turned else step


def _copying(e: Emitter, entry: Placement) -> Function:
    """Return the kernel that copies one entry."""
    whole = dense(0, entry.dtype, entry.shape).operand
    kernel = MapKernel(entry.shape, whole, (whole,), identity(entry.dtype)).simplified()
    return e.kernel(kernel, lambda f: write_map(f, kernel, e.target))
