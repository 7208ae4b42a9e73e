"""Views of values in memory: the same elements as numpy's views, without a copy whenever that can be."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.ir import operations as ops
from compiler.ir.reference import evaluate
from compiler.lowering.placement import Placement, dense, no_border, reshaped, row_major, view

Array = NDArray[Any]
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


def read(memory: Array, placement: Placement) -> Array:
    """Return the elements of a placement."""
    strides = [stride * memory.itemsize for stride in placement.strides]
    return as_strided(memory[placement.offset :], placement.shape, strides)


@st.composite
def view_operations(draw: st.DrawFn, shape: tuple[int, ...]) -> ops.View:
    """Return a view operation that a value of this shape takes."""
    rank = len(shape)
    kind = draw(st.sampled_from(["transpose", "broadcast", "slice", "unfold"]))
    if kind == "transpose":
        return ops.Transpose(tuple(draw(st.permutations(range(rank)))))
    if kind == "broadcast":
        return ops.Broadcast((draw(st.integers(1, 3)), *(draw(st.integers(1, 3)) if n == 1 else n for n in shape)))
    if kind == "slice":
        starts = [draw(st.integers(0, n - 1)) for n in shape]
        counts = [draw(st.integers(1, n - s)) for n, s in zip(shape, starts, strict=True)]
        turned = [draw(st.booleans()) for _ in shape]
        ends = [s + c - 1 for s, c in zip(starts, counts, strict=True)]
        return ops.Slice(
            tuple(e if t else s for s, e, t in zip(starts, ends, turned, strict=True)),
            tuple(-1 if t else 1 for t in turned),
            tuple(counts),
        )
    axis = draw(st.integers(0, rank - 1))
    size = draw(st.integers(1, shape[axis]))
    return ops.Unfold(axis, shape[axis] - size + 1, 1, size, 1)


@pytest.mark.property
@given(st.data(), SHAPES)
def test_views_of_views(data: st.DataObject, shape: tuple[int, ...]) -> None:
    """However views are chained, the placement reads what numpy's views show."""
    memory = np.arange(int(np.prod(shape)), dtype=np.float32)
    placement, array = dense(0, DType.F32, shape), memory.reshape(shape)
    for _ in range(3):
        operation = data.draw(view_operations(array.shape))
        [array] = evaluate(operation, [array])
        changed = view(operation, placement)
        assert changed is not None
        placement = changed
        np.testing.assert_array_equal(read(memory, placement), array)
        if len(array.shape) > 5:
            break


@pytest.mark.property
@given(st.data(), SHAPES)
def test_reshapes(data: st.DataObject, shape: tuple[int, ...]) -> None:
    """A reshape is a placement exactly when numpy needs no copy for it."""
    memory = np.arange(int(np.prod(shape)), dtype=np.float32)
    order = tuple(data.draw(st.permutations(range(len(shape)))))
    array = memory.reshape(shape).transpose(order)
    placement = view(ops.Transpose(order), dense(0, DType.F32, shape))
    assert placement is not None
    factors = data.draw(st.permutations([n for n in array.shape if n > 1] or [1]))
    new = tuple(factors) if data.draw(st.booleans()) else (int(np.prod(factors[:2])), *factors[2:])
    result = reshaped(placement, new)
    wanted = array.reshape(new)
    if result is not None:
        np.testing.assert_array_equal(read(memory, result), wanted)
    assert (result is not None) == np.shares_memory(wanted, memory)


def test_borders_follow_views() -> None:
    """A border stays with the dimensions that are not cut."""
    border = ((0, 0), (0, 0), (1, 2), (3, 4))
    placement = Placement(0, DType.F32, (1, 8, 5, 5), row_major((1, 8, 5, 5)), 0, border)
    turned = view(ops.Transpose((0, 2, 3, 1)), placement)
    assert turned is not None
    assert ((0, 0), (1, 2), (3, 4), (0, 0)) == turned.border
    channels = view(ops.Slice((0, 4, 0, 0), (1, 1, 1, 1), (1, 4, 5, 5)), placement)
    assert channels is not None
    assert border == channels.border
    rows = view(ops.Slice((0, 0, 1, 0), (1, 1, 1, 1), (1, 8, 4, 5)), placement)
    assert rows is not None
    assert ((0, 0), (0, 0), (0, 0), (3, 4)) == rows.border
    flat = reshaped(placement, (8, 5, 5))
    assert flat is not None
    assert border[1:] == flat.border
    assert no_border(2) == reshaped(dense(0, DType.F32, (4, 5)), (5, 4)).border  # type: ignore[union-attr]
