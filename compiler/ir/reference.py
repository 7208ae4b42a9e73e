"""What every operation means, in numpy: the definition that kernels are held against, and how constants are folded."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from compiler.errors import InternalError
from compiler.formula.reference import evaluate as evaluate_formula
from compiler.ir import operations as ops
from compiler.ir.graph import Graph

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


def evaluate(operation: ops.Operation, inputs: Sequence[Array]) -> tuple[Array, ...]:
    """Return the results of one operation."""
    return (np.asarray(_evaluate(operation, inputs)),)


def _evaluate(operation: ops.Operation, inputs: Sequence[Array]) -> Array:
    match operation:
        case ops.Map(formula):
            shape = np.broadcast_shapes(*(i.shape for i in inputs))
            return np.broadcast_to(evaluate_formula(formula, inputs), shape)
        case ops.Reduce():
            return _reduce(operation, inputs)
        case ops.View():
            return _view(operation, inputs[0])
        case ops.MatMul(epilogue):
            a, b, bias, *extras = inputs
            return evaluate_formula(epilogue, [np.matmul(a, b) + bias, *extras])
        case ops.Conv():
            return _conv(operation, inputs)
        case ops.Softmax(is_log):
            shifted = inputs[0] - inputs[0].max(axis=-1, keepdims=True)
            total = np.exp(shifted).sum(axis=-1, keepdims=True)
            return np.asarray(shifted - np.log(total) if is_log else np.exp(shifted) / total)
        case ops.Concat(axis):
            return np.concatenate(inputs, axis)
        case ops.Pad(before, after, value):
            return np.pad(inputs[0], list(zip(before, after, strict=True)), constant_values=value)
        case ops.Gather(axis):
            return np.take(inputs[0], inputs[1], axis)
    raise InternalError(f"no definition of {type(operation).__name__}")


def _reduce(operation: ops.Reduce, inputs: Sequence[Array]) -> Array:
    count = len(operation.element.args)
    shape = np.broadcast_shapes(*(i.shape for i in inputs[:count]))
    elements = np.broadcast_to(evaluate_formula(operation.element, inputs[:count]), shape)
    combined = _COMBINE[operation.combine](elements, axis=operation.axes)
    return evaluate_formula(operation.finish, [np.asarray(combined, elements.dtype), *inputs[count:]])


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
