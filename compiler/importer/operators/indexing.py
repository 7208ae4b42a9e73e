"""Operators that find elements, or put them somewhere, by indices."""

from collections.abc import Sequence

import numpy as np

from compiler.dtypes import DType
from compiler.formula import Formula, formula_of
from compiler.importer.context import NodeContext
from compiler.importer.registry import operator
from compiler.ir import operations as ops


def _axis_last(n: NodeContext, value: str, axis: int) -> str:
    """Return a value with an axis moved to the end."""
    rank = len(n.graph.shape(value))
    return n.graph.transpose(value, [*(a for a in range(rank) if a != axis), axis])


def _axis_back(n: NodeContext, value: str, axis: int) -> str:
    """Return a value with its last axis moved back to its place."""
    rank = len(n.graph.shape(value))
    order = list(range(rank - 1))
    return n.graph.transpose(value, [*order[:axis], rank - 1, *order[axis:]])


def _indexed_by_elements(n: NodeContext, axis: int) -> tuple[str, list[str]]:
    """Return data and indices for operators that replace one coordinate: the others are those of the element itself."""
    data, places = n.shape(), n.shape(1)
    indices = []
    for a, length in enumerate(places):
        if a == axis:
            indices.append(n[1])
        elif length != data[a]:  # the indices cover only the start of this axis
            indices.append(_own_coordinate(n, places, a))
    moved = [a for a in range(len(data)) if a == axis or places[a] != data[a]]
    plain = [a for a in range(len(data)) if a not in moved]
    ordered = n.graph.transpose(n[0], [*plain, *moved])
    shape = [data[a] if a in plain else 1 for a in range(len(data))] + [data[a] for a in moved]
    return n.graph.reshape(ordered, shape), indices


def _own_coordinate(n: NodeContext, shape: Sequence[int], axis: int) -> str:
    column = [shape[a] if a == axis else 1 for a in range(len(shape))]
    return n.graph.constant(np.arange(shape[axis]).reshape(column))


@operator("GatherElements")
def gather_elements(n: NodeContext) -> None:
    """One element for each index, along one axis."""
    axis = n.axis(n.integer("axis", 0), n.type().rank)
    data, indices = _indexed_by_elements(n, axis)
    n.set(n.graph.broadcast(n.graph.add(ops.Lookup(), data, *indices), n.shape(1)))


def _components(n: NodeContext, position: int) -> list[str]:
    """Return the parts of tuples of indices, which lie along the last axis."""
    shape = n.shape(position)
    parts = []
    for part in range(shape[-1]):
        cut = n.graph.slice(n[position], [*([0] * (len(shape) - 1)), part], [*shape[:-1], 1])
        parts.append(n.graph.reshape(cut, shape[:-1]))
    return parts


@operator("GatherND")
def gather_nd(n: NodeContext) -> None:
    """Cuts of the data, each named by a tuple of indices."""
    data, places, batch = n.shape(), n.shape(1), n.integer("batch_dims", 0)
    count = places[-1]
    tail = data[batch + count :]
    between = len(places) - 1 - batch
    order = [*range(batch), *range(batch + count, len(data)), *range(batch, batch + count)]
    spread = (*data[:batch], *([1] * between), *tail, *data[batch : batch + count])
    value = n.graph.reshape(n.graph.transpose(n[0], order), spread)
    parts = [n.graph.reshape(p, (*places[:-1], *([1] * len(tail)))) for p in _components(n, 1)]
    n.set(n.graph.add(ops.Lookup(), value, *parts))


_COMBINE = {"add": "add", "mul": "mul", "max": "max", "min": "min"}


def _combine(n: NodeContext) -> Formula | None:
    reduction = n.attribute("reduction", "none")
    if reduction == "none":
        return None
    dtype = n.dtype()
    return formula_of(lambda old, new: old.apply(_COMBINE[reduction], new), dtype, dtype)


@operator("ScatterND")
def scatter_nd(n: NodeContext) -> None:
    """Cuts of the data replaced, each named by a tuple of indices."""
    data, places = n.shape(), n.shape(1)
    count = places[-1]
    tail = data[count:]
    order = [*range(count, len(data)), *range(count)]
    # The scattered-to value has its own dimensions; those of the indices are repeated over it.
    spread = (*([1] * (len(places) - 1)), *tail, *data[:count])
    value = n.graph.reshape(n.graph.transpose(n[0], order), spread)
    parts = [n.graph.reshape(p, (*places[:-1], *([1] * len(tail)))) for p in _components(n, 1)]
    result = n.graph.add(ops.Scatter(_combine(n)), value, n[2], *parts)
    flat = n.graph.reshape(result, (*tail, *data[:count]))
    n.set(n.graph.transpose(flat, [order.index(a) for a in range(len(data))]))


@operator("ScatterElements", "Scatter")
def scatter_elements(n: NodeContext) -> None:
    """One element replaced for each index, along one axis."""
    data, places = n.shape(), n.shape(1)
    axis = n.axis(n.integer("axis", 0), len(data))
    moved = [a for a in range(len(data)) if a == axis or places[a] != data[a]]
    plain = [a for a in range(len(data)) if a not in moved]
    value, indices = _indexed_by_elements(n, axis)
    result = n.graph.add(ops.Scatter(_combine(n)), value, n[2], *indices)
    order = [*plain, *moved]
    flat = n.graph.reshape(result, [data[a] for a in order])
    n.set(n.graph.transpose(flat, [order.index(a) for a in range(len(data))]))


@operator("ArgMax", "ArgMin")
def extreme(n: NodeContext) -> None:
    """The place of an extreme along an axis."""
    shape = n.shape()
    axis = n.axis(n.integer("axis", 0), len(shape))
    operation = ops.Extreme(n.node.op_type == "ArgMax", bool(n.integer("select_last_index", 0)))
    result = n.graph.add(operation, _axis_last(n, n[0], axis))
    if n.integer("keepdims", 1):
        result = n.graph.reshape(result, [1 if a == axis else d for a, d in enumerate(shape)])
    n.set(result)


@operator("TopK")
def top(n: NodeContext) -> None:
    """The first few along an axis, in order, and their places."""
    shape = n.shape()
    axis = n.axis(n.integer("axis", -1), len(shape))
    count = n.integer("k", 0) if n.opset < 10 else int(n.scalar(1))
    operation = ops.Top(count, bool(n.integer("largest", 1)))
    results = n.graph.add_many(operation, _axis_last(n, n[0], axis))
    n.set(*(_axis_back(n, result, axis) for result in results))


@operator("CumSum", "CumProd")
def running(n: NodeContext) -> None:
    """Totals up to each element, from one end or from the other."""
    shape = n.shape()
    axis = n.axis(int(n.scalar(1)), len(shape))
    operation = ops.Running("add" if n.node.op_type == "CumSum" else "mul", bool(n.integer("exclusive", 0)))
    value = _axis_last(n, n[0], axis)
    is_reverse = n.integer("reverse", 0)
    result = n.graph.add(operation, _reversed(n, value) if is_reverse else value)
    n.set(_axis_back(n, _reversed(n, result) if is_reverse else result, axis))


def _reversed(n: NodeContext, value: str) -> str:
    """Return a value with its last axis read backwards."""
    shape = n.graph.shape(value)
    rank = len(shape)
    return n.graph.slice(value, [*([0] * (rank - 1)), shape[-1] - 1], shape, [*([1] * (rank - 1)), -1])


@operator("OneHot")
def one_hot(n: NodeContext) -> None:
    """One value where an index says, another elsewhere."""
    depth = int(n.scalar(1))
    shape = n.shape()
    axis = n.axis(n.integer("axis", -1), len(shape) + 1)
    off, on = (n.graph.reshape(n.graph.slice(n[2], [p], [1]), ()) for p in range(2))
    places = n.graph.cast(DType.I64, n[0])
    wrapped = n.map(lambda i: (i < 0).choose(i + depth, i), places)
    column = n.graph.reshape(wrapped, (*shape[:axis], 1, *shape[axis:]))
    numbers = [depth if a == axis else 1 for a in range(len(shape) + 1)]
    is_on = n.graph.apply("eq", column, n.graph.reshape(n.graph.counting(depth), numbers))
    n.set(n.graph.apply("select", is_on, on, off))


@operator("Hardmax")
def hardmax(n: NodeContext) -> None:
    """One at the first greatest element along an axis, zero elsewhere."""
    shape = n.shape()
    if n.opset < 13:
        axis = n.axis(n.integer("axis", 1), len(shape))
        rows = n.graph.reshape(n[0], (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))))
        return n.set(n.graph.reshape(_hardmax_of_rows(n, rows), shape))
    axis = n.axis(n.integer("axis", -1), len(shape))
    return n.set(_axis_back(n, _hardmax_of_rows(n, _axis_last(n, n[0], axis)), axis))


def _hardmax_of_rows(n: NodeContext, rows: str) -> str:
    shape = n.graph.shape(rows)
    place = n.graph.add(ops.Extreme(is_greatest=True, is_last=False), rows)
    is_there = n.graph.apply("eq", n.graph.reshape(place, (*shape[:-1], 1)), n.graph.constant(np.arange(shape[-1])))
    return n.graph.cast(n.dtype(), is_there)


@operator("ReverseSequence")
def reverse_sequence(n: NodeContext) -> None:
    """The start of each sequence backwards, as much of it as its length says."""
    n.set(reversed_starts(n, n[0], n[1], n.integer("time_axis", 0), n.integer("batch_axis", 1)))


def reversed_starts(n: NodeContext, value: str, lengths: str, time: int, batch: int) -> str:
    """Return sequences whose starts, of the given length for each entry of the batch, are read backwards."""
    shape = n.graph.shape(value)
    rank = len(shape)
    steps = n.graph.constant(np.arange(shape[time]).reshape([shape[time] if a == time else 1 for a in range(rank)]))
    spread = [shape[batch] if a == batch else 1 for a in range(rank)]
    ends = n.graph.reshape(n.graph.cast(DType.I64, lengths), spread)
    places = n.map(lambda t, length: (t < length).choose(length - 1 - t, t), steps, ends)
    order = [*(a for a in range(rank) if a != time), time]
    rows = [1 if a == time else d for a, d in enumerate(shape)] + [shape[time]]
    return n.graph.add(ops.Lookup(), n.graph.reshape(n.graph.transpose(value, order), rows), places)
