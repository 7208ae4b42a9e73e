"""What every operation means, in numpy: the definition that kernels are held against, and how constants are folded."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from compiler.errors import InternalError
from compiler.formula.reference import evaluate as evaluate_formula
from compiler.ir import operations as ops
from compiler.ir.graph import Graph, Operation

Array = NDArray[Any]

_COMBINE: dict[str, Any] = {
    "add": np.sum,
    "mul": np.prod,
    "min": np.min,
    "max": np.max,
    "at_least": np.nanmax,
    "at_most": np.nanmin,
    "and": np.all,
    "or": np.any,
}


def run(graph: Graph, inputs: Sequence[Array]) -> list[Array]:
    """Return the outputs of a graph."""
    values = dict(graph.constants)
    values.update(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        results = evaluate(node.operation, [values[name] for name in node.inputs])
        values.update(zip(node.outputs, results, strict=True))
    return [values[name] for name in graph.outputs]


@np.errstate(all="ignore")
def evaluate(operation: Operation, inputs: Sequence[Array]) -> tuple[Array, ...]:
    """Return the results of one operation."""
    if isinstance(operation, ops.View):
        return (_view(operation, inputs[0]),)
    results = _DEFINITIONS[type(operation)](operation, inputs)
    return results if isinstance(results, tuple) else (np.asarray(results),)


def _map(operation: ops.Map, inputs: Sequence[Array]) -> Array:
    shape = np.broadcast_shapes(*(i.shape for i in inputs))
    return np.broadcast_to(evaluate_formula(operation.formula, inputs), shape)


def _matmul(operation: ops.MatMul, inputs: Sequence[Array]) -> Array:
    a, b, bias, *extras = inputs
    return evaluate_formula(operation.epilogue, [np.matmul(a, b) + bias, *extras])


def _attention(operation: ops.Attention, inputs: Sequence[Array]) -> Array:
    q, k, k_bias, v, bias, *more = inputs
    masks, extras = more[: operation.masks], more[operation.masks :]
    scores = _matmul(ops.MatMul(operation.scores), [q, k, k_bias, *masks])
    shares = _softmax(ops.Softmax(is_log=False), [scores])
    return _matmul(ops.MatMul(operation.epilogue), [shares, v, bias, *extras])


def _softmax(operation: ops.Softmax, inputs: Sequence[Array]) -> Array:
    shifted = inputs[0] - inputs[0].max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(total) if operation.is_log else np.exp(shifted) / total)


def _layer_norm(operation: ops.LayerNorm, inputs: Sequence[Array]) -> Array:
    x, *extras = inputs
    axes = tuple(range(-operation.axes, 0))
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    return evaluate_formula(operation.epilogue, [centred / np.sqrt(variance + np.float32(operation.epsilon)), *extras])


def _pad(operation: ops.Pad, inputs: Sequence[Array]) -> Array:
    widths = list(zip(operation.before, operation.after, strict=True))
    return np.pad(inputs[0], widths, constant_values=operation.value)


def _lookup(_: ops.Lookup, inputs: Sequence[Array]) -> Array:
    data, *indices = inputs
    shape = np.broadcast_shapes(data.shape[: data.ndim - len(indices)], *(i.shape for i in indices))
    return np.asarray(data[_places(data, indices, shape)])


def _reduce(operation: ops.Reduce, inputs: Sequence[Array]) -> Array:
    count = len(operation.element.args)
    shape = np.broadcast_shapes(*(i.shape for i in inputs[:count]))
    elements = np.broadcast_to(evaluate_formula(operation.element, inputs[:count]), shape)
    combined = _COMBINE[operation.combine](elements, axis=operation.axes)
    return evaluate_formula(operation.finish, [np.asarray(combined, elements.dtype), *inputs[count:]])


def _places(data: Array, indices: Sequence[Array], shape: tuple[int, ...]) -> tuple[Array, ...]:
    """Return the indices of every element: those of the shape itself, then those that are given."""
    rest = data.shape[: data.ndim - len(indices)]
    own = np.indices(shape, sparse=True)[len(shape) - len(rest) :]
    # A dimension of 1 is repeated.
    plain = [np.zeros_like(i) if length == 1 else i for i, length in zip(own, rest, strict=True)]
    return tuple(np.broadcast_to(i, shape) for i in (*plain, *indices))


def _scatter(operation: ops.Scatter, inputs: Sequence[Array]) -> Array:
    data, updates, *indices = inputs
    result = data.copy()
    for place in np.ndindex(updates.shape):
        at = tuple(int(i[place]) for i in _places(data, indices, updates.shape))
        new = updates[place]
        result[at] = new if operation.combine is None else evaluate_formula(operation.combine, [result[at], new])
    return result


def _running(operation: ops.Running, inputs: Sequence[Array]) -> Array:
    [array] = inputs
    is_sum = operation.combine == "add"
    totals = (np.cumsum if is_sum else np.cumprod)(array, axis=-1, dtype=array.dtype)
    if not operation.is_exclusive:
        return totals
    start = np.full((*array.shape[:-1], 1), 0 if is_sum else 1, array.dtype)
    return np.concatenate([start, totals[..., :-1]], axis=-1)


def _extreme(operation: ops.Extreme, inputs: Sequence[Array]) -> Array:
    [array] = inputs
    turned = array[..., ::-1] if operation.is_last else array
    places = (np.argmax if operation.is_greatest else np.argmin)(turned, axis=-1)
    return np.asarray(array.shape[-1] - 1 - places if operation.is_last else places, np.int64)


def _top(operation: ops.Top, inputs: Sequence[Array]) -> tuple[Array, Array]:
    [array] = inputs
    keys = -array.astype(np.float64) if operation.is_greatest else array
    places = np.argsort(keys, axis=-1, kind="stable")[..., : operation.count].astype(np.int64)
    return np.take_along_axis(array, places, axis=-1), places


def _view(view: ops.View, array: Array) -> Array:
    match view:
        case ops.Reshape(shape):
            return array.reshape(shape)
        case ops.Transpose(order):
            return array.transpose(order)
        case ops.Broadcast(shape):
            return np.broadcast_to(array, shape)
        case ops.Slice(starts, steps, counts):
            places = [start + step * np.arange(count) for start, step, count in zip(starts, steps, counts, strict=True)]
            return array[np.ix_(*places)]
        case ops.Unfold(axis, windows, step, size, dilation):
            stride = array.strides[axis]
            return as_strided(
                array,
                (*array.shape[:axis], windows, size, *array.shape[axis + 1 :]),
                (*array.strides[:axis], stride * step, stride * dilation, *array.strides[axis + 1 :]),
            )
    raise InternalError(f"no definition of {type(view).__name__}")


def _conv(operation: ops.Conv, inputs: Sequence[Array]) -> Array:
    x, w, bias, *extras = inputs
    top, left, bottom, right = operation.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    for axis, extent in ((2, w.shape[2]), (4, w.shape[3])):
        n = 0 if axis == 2 else 1
        step, dilation = operation.strides[n], operation.dilations[n]
        windows = (padded.shape[axis] - (extent - 1) * dilation - 1) // step + 1
        padded = _view(ops.Unfold(axis, windows, step, extent, dilation), padded)
    batch, channels, height, rows, width, columns = padded.shape
    grouped = padded.reshape(batch, operation.groups, channels // operation.groups, height, rows, width, columns)
    filters = w.reshape(operation.groups, -1, *w.shape[1:])
    result = np.einsum("ngchrwk,gocrk->ngohw", grouped, filters, optimize=True)
    result = result.reshape(batch, -1, height, width) + bias[:, None, None]
    return evaluate_formula(operation.epilogue, [result, *extras])


def _if(operation: ops.If, inputs: Sequence[Array]) -> tuple[Array, ...]:
    condition, *captured = inputs
    return tuple(run(operation.then if condition else operation.otherwise, captured))


def _scan(operation: ops.Scan, inputs: Sequence[Array]) -> tuple[Array, ...]:
    first = operation.states + len(operation.reversed_inputs)
    states, taken, captured = list(inputs[: operation.states]), inputs[operation.states : first], inputs[first:]
    taken = [t[::-1] if turned else t for t, turned in zip(taken, operation.reversed_inputs, strict=True)]
    stacked: list[list[Array]] = [[] for _ in operation.reversed_outputs]
    for number in range(operation.count):
        results = run(operation.body, [*states, *(np.asarray(t[number]) for t in taken), *captured])
        states = results[: operation.states]
        for entries, entry in zip(stacked, results[operation.states :], strict=True):
            entries.append(entry)
    turned_outputs = zip(stacked, operation.reversed_outputs, strict=True)
    return (*states, *(np.stack(entries[::-1] if turned else entries) for entries, turned in turned_outputs))


def _while(operation: ops.While, inputs: Sequence[Array]) -> tuple[Array, ...]:
    count, condition, *rest = inputs
    states, captured = rest[: operation.states], rest[operation.states :]
    number = 0
    while number < count and condition:
        condition, *states = run(operation.body, [np.asarray(number), np.asarray(condition), *states, *captured])
        number += 1
    return tuple(states)


_DEFINITIONS: dict[type[Operation], Callable[[Any, Sequence[Array]], Array | tuple[Array, ...]]] = {
    ops.Map: _map,
    ops.Reduce: _reduce,
    ops.Concat: lambda operation, inputs: np.concatenate(inputs, operation.axis),
    ops.Pad: _pad,
    ops.Lookup: _lookup,
    ops.Scatter: _scatter,
    ops.Running: _running,
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
