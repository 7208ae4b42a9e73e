"""The types that each operation gives, and what it demands of its inputs."""

from collections.abc import Sequence

import numpy as np

from compiler.dtypes import DType
from compiler.errors import InternalError
from compiler.formula import Formula
from compiler.ir import operations as ops
from compiler.ir.graph import TensorType


def output_types(operation: ops.Operation, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
    """Return the types of the results; raises InternalError when the inputs do not fit."""
    match operation:
        case ops.Map():
            _check_args(operation.formula, inputs)
            return (TensorType(operation.formula.dtype, broadcast(inputs)),)
        case ops.Reduce():
            return (_reduce(operation, inputs),)
        case ops.View():
            [one] = inputs
            return (TensorType(one.dtype, view_shape(operation, one.shape)),)
        case ops.MatMul():
            return (_matmul(operation, inputs),)
        case ops.Conv():
            return (_conv(operation, inputs),)
        case ops.Softmax():
            _require(inputs[0].rank > 0 and inputs[0].dtype is DType.F32, operation, inputs)
            return (inputs[0],)
        case ops.Concat(axis):
            shape = list(inputs[0].shape)
            shape[axis] = sum(i.shape[axis] for i in inputs)
            rest = {(i.dtype, i.shape[:axis], i.shape[axis + 1 :]) for i in inputs}
            _require(len(rest) == 1, operation, inputs)
            return (TensorType(inputs[0].dtype, tuple(shape)),)
        case ops.Pad(before, after, _):
            _require(min((*before, *after), default=0) >= 0, operation, inputs)
            shape = [a + n + b for a, n, b in zip(before, inputs[0].shape, after, strict=True)]
            return (TensorType(inputs[0].dtype, tuple(shape)),)
        case ops.Gather(axis):
            data, indices = inputs
            _require(indices.dtype in {DType.I32, DType.I64}, operation, inputs)
            return (TensorType(data.dtype, data.shape[:axis] + indices.shape + data.shape[axis + 1 :]),)
    raise InternalError(f"no types for {type(operation).__name__}")


def broadcast(inputs: Sequence[TensorType]) -> tuple[int, ...]:
    """Return the shape that the inputs have together."""
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


def _reduce(operation: ops.Reduce, inputs: Sequence[TensorType]) -> TensorType:
    count = len(operation.element.args)
    _check_args(operation.element, inputs[:count])
    box = broadcast(inputs[:count])
    kept = tuple(n for axis, n in enumerate(box) if axis not in operation.axes)
    result = TensorType(operation.element.dtype, kept)
    _check_args(operation.finish, [result, *inputs[count:]])
    _require(broadcast([result, *inputs[count:]]) == kept, operation, inputs)
    _require(all(0 <= axis < len(box) for axis in operation.axes), operation, inputs)
    return TensorType(operation.finish.dtype, kept)


def _matmul(operation: ops.MatMul, inputs: Sequence[TensorType]) -> TensorType:
    a, b, bias, *extras = inputs
    _require(a.rank >= 2 and b.rank >= 2 and a.shape[-1] == b.shape[-2], operation, inputs)
    _require(bias.shape == b.shape[-1:], operation, inputs)
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return _epilogue(operation.epilogue, (*batch, a.shape[-2], b.shape[-1]), extras)


def _conv(operation: ops.Conv, inputs: Sequence[TensorType]) -> TensorType:
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


def _epilogue(epilogue: Formula, shape: tuple[int, ...], extras: Sequence[TensorType]) -> TensorType:
    result = TensorType(DType.F32, shape)
    _check_args(epilogue, [result, *extras])
    if broadcast([result, *extras]) != shape:
        raise InternalError(f"operands of an epilogue of {shape}: {', '.join(map(str, extras))}")
    return TensorType(epilogue.dtype, shape)


def _check_args(formula: Formula, inputs: Sequence[TensorType]) -> None:
    if formula.args != tuple(i.dtype for i in inputs):
        raise InternalError(f"a formula of {[a.value for a in formula.args]} gets {', '.join(map(str, inputs))}")


def _require(condition: bool, operation: ops.Operation, inputs: Sequence[TensorType]) -> None:
    if not condition:
        raise InternalError(f"{operation} does not take {', '.join(map(str, inputs))}")
