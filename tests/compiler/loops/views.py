"""Random views of random arrays: what operands of loop kernels may look like."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.loops.box import Operand

Array = NDArray[Any]


@st.composite
def views(draw: st.DrawFn, shape: tuple[int, ...], dtype: DType) -> tuple[Array, Array]:
    """Return an array and a view of it with a given shape: transposed, cut, stepped, reversed or broadcast."""
    order = draw(st.permutations(range(len(shape))))
    spread = [draw(st.booleans()) and draw(st.booleans()) for _ in shape]
    steps = [draw(st.sampled_from([1, 1, 1, 2, -1, -2])) for _ in shape]
    before = [draw(st.sampled_from([0, 0, 1, 3])) for _ in shape]
    sizes = [1 if s else n * abs(step) + b for n, s, step, b in zip(shape, spread, steps, before, strict=True)]
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    base = fill(rng, dtype, [sizes[n] for n in order])
    view = base.transpose(np.argsort(order))
    cuts = []
    for n, s, step, b in zip(shape, spread, steps, before, strict=True):
        if s:
            cuts.append(slice(None))
        elif step > 0:
            cuts.append(slice(b, b + (n - 1) * step + 1, step))
        else:
            first = (n - 1) * -step + b
            cuts.append(slice(first, b - 1 if b else None, step))
    return base, np.broadcast_to(view[tuple(cuts)], shape)


def fill(rng: np.random.Generator, dtype: DType, shape: list[int]) -> Array:
    """Return small random numbers."""
    if dtype is DType.BOOL:
        return rng.random(shape) < 0.5
    if dtype.is_float:
        return rng.integers(-40, 40, shape).astype(dtype.numpy) / 4
    return rng.integers(0, 100, shape).astype(dtype.numpy)


def operand(view: Array) -> Operand:
    """Return how a view lies in memory."""
    return Operand(DType(view.dtype.name), tuple(s // view.itemsize for s in view.strides))


def offset(base: Array, view: Array) -> int:
    """Return how many bytes behind the start of its array a view starts."""
    return int(view.__array_interface__["data"][0] - base.__array_interface__["data"][0])
