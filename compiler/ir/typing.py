"""The types that each operation gives, and what it demands of its inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compiler.dtypes import DType
from compiler.errors import InternalError
from compiler.formula import Formula
from compiler.ir import operations as ops
from compiler.ir.graph import Graph, Operation, TensorType

Inputs = Sequence[TensorType]
Types = tuple[TensorType, ...]


def output_types(operation: Operation, inputs: Inputs) -> Types:
    """Return the types of the results; raises InternalError when the inputs do not fit."""
    if isinstance(operation, ops.View):
        [one] = inputs
        return (TensorType(one.dtype, view_shape(operation, one.shape)),)
    return _RULES[type(operation)](operation, inputs)


def broadcast(inputs: Inputs) -> tuple[int, ...]:
    """Return the shape that the inputs have together."""
    shapes = {i.shape for i in inputs}
    if len(shapes) == 1:  # of any size, while numpy has a limit
        return shapes.pop()
    try:
        return tuple(np.broadcast_shapes(*(i.shape for i in inputs)))
    except ValueError as error:
        raise InternalError(f"cannot broadcast {', '.join(map(str, inputs))}") from error


def view_shape(view: ops.View, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a view of a value."""
    match view:
        case ops.Reshape(new):
            if np.prod(new, dtype=np.int64) != np.prod(shape, dtype=np.int64):
                raise InternalError(f"cannot reshape {shape} to {new}")
            return new
        case ops.Transpose(order):
            if sorted(order) != list(range(len(shape))):
                raise InternalError(f"{order} is no order of {len(shape)} dimensions")
            return tuple(shape[n] for n in order)
        case ops.Broadcast(new):
            if np.broadcast_shapes(shape, new) != new:
                raise InternalError(f"cannot broadcast {shape} to {new}")
            return new
        case ops.Slice(starts, steps, counts):
            for size, start, step, count in zip(shape, starts, steps, counts, strict=True):
                if count and not (0 <= start < size and 0 <= start + (count - 1) * step < size and step):
                    raise InternalError(f"slice {starts}, {steps}, {counts} leaves {shape}")
            return counts
        case ops.Unfold(axis, windows, step, size, dilation):
            if (windows - 1) * step + (size - 1) * dilation >= shape[axis]:
                raise InternalError(f"{windows} windows of {size} leave dimension {axis} of {shape}")
            return (*shape[:axis], windows, size, *shape[axis + 1 :])
    raise InternalError(f"no shape for {type(view).__name__}")


def _map(operation: ops.Map, inputs: Inputs) -> Types:
    _check_args(operation.formula, inputs)
    return (TensorType(operation.formula.dtype, broadcast(inputs)),)


def _reduce(operation: ops.Reduce, inputs: Inputs) -> Types:
    count = len(operation.element.args)
    _check_args(operation.element, inputs[:count])
    box = broadcast(inputs[:count])
    kept = tuple(n for axis, n in enumerate(box) if axis not in operation.axes)
    result = TensorType(operation.element.dtype, kept)
    _check_args(operation.finish, [result, *inputs[count:]])
    _require(broadcast([result, *inputs[count:]]) == kept, operation, inputs)
    _require(all(0 <= axis < len(box) for axis in operation.axes), operation, inputs)
    return (TensorType(operation.finish.dtype, kept),)


def _concat(operation: ops.Concat, inputs: Inputs) -> Types:
    axis = operation.axis
    rest = {(i.dtype, i.shape[:axis], i.shape[axis + 1 :]) for i in inputs}
    _require(len(rest) == 1, operation, inputs)
    length = sum(i.shape[axis] for i in inputs)
    return (TensorType(inputs[0].dtype, (*inputs[0].shape[:axis], length, *inputs[0].shape[axis + 1 :])),)


def _pad(operation: ops.Pad, inputs: Inputs) -> Types:
    _require(min((*operation.before, *operation.after), default=0) >= 0, operation, inputs)
    sides = zip(operation.before, inputs[0].shape, operation.after, strict=True)
    return (TensorType(inputs[0].dtype, tuple(before + n + after for before, n, after in sides)),)


def _lookup(operation: Operation, inputs: Inputs) -> Types:
    data, *indices = inputs
    _require(0 < len(indices) <= data.rank, operation, inputs)
    _require(all(i.dtype in {DType.I32, DType.I64} for i in indices), operation, inputs)
    rest = TensorType(data.dtype, data.shape[: data.rank - len(indices)])
    return (TensorType(data.dtype, broadcast([rest, *indices])),)


def _scatter(operation: ops.Scatter, inputs: Inputs) -> Types:
    data, updates, *indices = inputs
    _require(0 < len(indices) <= data.rank and data.dtype is updates.dtype, operation, inputs)
    rest = TensorType(data.dtype, data.shape[: data.rank - len(indices)])
    _require(broadcast([rest, *indices, updates]) == updates.shape, operation, inputs)
    return (data,)


def _like_first(operation: Operation, inputs: Inputs) -> Types:
    _require(inputs[0].rank > 0, operation, inputs)
    return (inputs[0],)


def _softmax(operation: ops.Softmax, inputs: Inputs) -> Types:
    _require(inputs[0].dtype is DType.F32, operation, inputs)
    return _like_first(operation, inputs)


def _layer_norm(operation: ops.LayerNorm, inputs: Inputs) -> Types:
    x, *extras = inputs
    _require(0 < operation.axes <= x.rank and x.dtype is DType.F32, operation, inputs)
    _require(0 not in x.shape[-operation.axes :], operation, inputs)
    return _epilogue(operation.epilogue, x.shape, extras)


def _extreme(operation: ops.Extreme, inputs: Inputs) -> Types:
    _require(inputs[0].rank > 0, operation, inputs)
    return (TensorType(DType.I64, inputs[0].shape[:-1]),)


def _top(operation: ops.Top, inputs: Inputs) -> Types:
    _require(0 < operation.count <= inputs[0].shape[-1], operation, inputs)
    shape = (*inputs[0].shape[:-1], operation.count)
    return TensorType(inputs[0].dtype, shape), TensorType(DType.I64, shape)


def _if(operation: ops.If, inputs: Inputs) -> Types:
    condition, *captured = inputs
    _require(condition == TensorType(DType.BOOL, ()), operation, inputs[:1])
    for graph in (operation.then, operation.otherwise):
        _require(_input_types(graph) == captured, operation, captured)
    _require(_result_types(operation.then) == _result_types(operation.otherwise), operation, captured)
    return tuple(_result_types(operation.then))


def _scan(operation: ops.Scan, inputs: Inputs) -> Types:
    first = operation.states + len(operation.reversed_inputs)
    states, taken, captured = inputs[: operation.states], inputs[operation.states : first], inputs[first:]
    entries = [TensorType(t.dtype, t.shape[1:]) for t in taken]
    _require(_input_types(operation.body) == [*states, *entries, *captured], operation, inputs)
    _require(all(t.shape[0] == operation.count for t in taken), operation, taken)
    results = _result_types(operation.body)
    _require(results[: operation.states] == list(states), operation, results)
    stacked = [TensorType(t.dtype, (operation.count, *t.shape)) for t in results[operation.states :]]
    _require(len(stacked) == len(operation.reversed_outputs), operation, results)
    return (*states, *stacked)


def _while(operation: ops.While, inputs: Inputs) -> Types:
    number, condition, *rest = inputs
    states = rest[: operation.states]
    expected = [TensorType(DType.I64, ()), TensorType(DType.BOOL, ())]
    _require([number, condition] == expected, operation, inputs[:2])
    _require(_input_types(operation.body) == [*expected, *rest], operation, inputs)
    _require(_result_types(operation.body) == [expected[1], *states], operation, _result_types(operation.body))
    return tuple(states)


def _input_types(graph: Graph) -> list[TensorType]:
    return [graph.types[name] for name in graph.inputs]


def _result_types(graph: Graph) -> list[TensorType]:
    return [graph.types[name] for name in graph.outputs]


def _matmul(operation: ops.MatMul, inputs: Inputs) -> Types:
    a, b, bias, *extras = inputs
    _require(a.rank >= 2 and b.rank >= 2 and a.shape[-1] == b.shape[-2], operation, inputs)
    _require(bias.shape == b.shape[-1:], operation, inputs)
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return _epilogue(operation.epilogue, (*batch, a.shape[-2], b.shape[-1]), extras)


def _attention(operation: ops.Attention, inputs: Inputs) -> Types:
    q, k, k_bias, v, bias, *more = inputs
    masks, extras = more[: operation.masks], more[operation.masks :]
    scores = _matmul(ops.MatMul(operation.scores), [q, k, k_bias, *masks])
    return _matmul(ops.MatMul(operation.epilogue), [*scores, v, bias, *extras])


def _conv(operation: ops.Conv, inputs: Inputs) -> Types:
    x, w, bias, *extras = inputs
    _require(x.rank == w.rank == 4 and bias.shape == w.shape[:1], operation, inputs)
    _require(x.shape[1] == w.shape[1] * operation.groups and w.shape[0] % operation.groups == 0, operation, inputs)
    top, left, bottom, right = operation.pads
    size = []
    for n, before, after in ((0, top, bottom), (1, left, right)):
        reach = (w.shape[2 + n] - 1) * operation.dilations[n] + 1
        size.append((x.shape[2 + n] + before + after - reach) // operation.strides[n] + 1)
    _require(min(size) > 0, operation, inputs)
    return _epilogue(operation.epilogue, (x.shape[0], w.shape[0], *size), extras)


def _epilogue(epilogue: Formula, shape: tuple[int, ...], extras: Inputs) -> Types:
    result = TensorType(DType.F32, shape)
    _check_args(epilogue, [result, *extras])
    if broadcast([result, *extras]) != shape:
        raise InternalError(f"operands of an epilogue of {shape}: {', '.join(map(str, extras))}")
    return (TensorType(epilogue.dtype, shape),)


def _check_args(formula: Formula, inputs: Inputs) -> None:
    if formula.args != tuple(i.dtype for i in inputs):
        raise InternalError(f"a formula of {[a.value for a in formula.args]} gets {', '.join(map(str, inputs))}")


def _require(condition: bool, operation: Operation, inputs: Inputs) -> None:
    if not condition:
        raise InternalError(f"{type(operation).__name__} does not take {', '.join(map(str, inputs))}")


_RULES: dict[type[Operation], Callable[[Any, Inputs], Types]] = {
    ops.Map: _map,
    ops.Reduce: _reduce,
    ops.Concat: _concat,
    ops.Pad: _pad,
    ops.Lookup: _lookup,
    ops.Scatter: _scatter,
    ops.Running: _like_first,
    ops.Extreme: _extreme,
    ops.Top: _top,
    ops.MatMul: _matmul,
    ops.Conv: _conv,
    ops.Softmax: _softmax,
    ops.Attention: _attention,
    ops.LayerNorm: _layer_norm,
    ops.If: _if,
    ops.Scan: _scan,
    ops.While: _while,
}
