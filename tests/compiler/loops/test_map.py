"""Elementwise kernels over random views, against numpy: nothing missed, nothing written beside the output."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.formula import Writer
from compiler.formula.reference import evaluate
from compiler.kernels.target import Target
from compiler.loops.box import Operand
from compiler.loops.map import MapKernel, write_map
from tests.compiler.kernel_runner import run_kernel
from tests.compiler.loops.views import fill, offset, operand, views

Array = NDArray[Any]
SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 5, 8, 13]), min_size=1, max_size=4).map(tuple)


@st.composite
def problems(draw: st.DrawFn) -> tuple[MapKernel, list[tuple[Array, Array]], Array, Array]:
    """Return a kernel that adds two operands of any types, its operands, its output and a view of that."""
    shape = draw(SHAPES)
    out_type = draw(st.sampled_from(DType))
    types = [draw(st.sampled_from([out_type, *DType])) for _ in range(2)]
    writer = Writer(types)
    left, right = (writer.cast(out_type, writer.arg(n)) for n in range(2))
    formula = writer.formula(writer.apply("xor" if out_type is DType.BOOL else "add", left, right))
    inputs = [draw(views(shape, dtype)) for dtype in types]
    order = draw(st.permutations(range(len(shape))))
    gap = [draw(st.sampled_from([0, 0, 2])) for _ in shape]
    out = fill(np.random.default_rng(0), out_type, [shape[n] + gap[n] for n in order])
    view = out.transpose(np.argsort(order))[tuple(slice(n) for n in shape)]
    operands = tuple(operand(v) for _, v in inputs)
    return MapKernel(shape, operand(view), operands, formula), inputs, out, view


@pytest.mark.property
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(problems())
def test_any_views(problem: tuple[MapKernel, list[tuple[Array, Array]], Array, Array]) -> None:
    """Transposed, cut, stepped, reversed, broadcast: each element is computed and put in its place."""
    kernel, inputs, out, view = problem
    got = run_kernel(
        lambda f: write_map(f, kernel.simplified(), Target.RELAXED),
        [base for base, _ in inputs],
        out,
        offsets=[offset(base, v) for base, v in inputs],
    )
    view[...] = evaluate(kernel.formula, [v for _, v in inputs])
    np.testing.assert_array_equal(got, out)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 15, 16, 17, 64, 67])
def test_rows_of_every_length(count: int) -> None:
    """Rounds of the loop, single vectors and the last few elements cover a row between them."""
    writer = Writer([DType.F32])
    formula = writer.formula(writer.apply("mul", writer.arg(0), writer.const(DType.F32, 2.0)))
    x = np.arange(count, dtype=np.float32)
    out = np.full(count + 8, 7, np.float32)
    kernel = MapKernel((count,), Operand(DType.F32, (1,)), (Operand(DType.F32, (1,)),), formula)
    got = run_kernel(lambda f: write_map(f, kernel, Target.SIMD128), [x], out)
    np.testing.assert_array_equal(got, np.concatenate([2 * x, np.full(8, 7, np.float32)]))


def test_equal_kernels_become_one() -> None:
    """Shapes that are walked in the same way have the same simplest form, and so share their code."""
    writer = Writer([DType.F32])
    formula = writer.formula(writer.apply("neg", writer.arg(0)))
    row = MapKernel((24,), Operand(DType.F32, (1,)), (Operand(DType.F32, (1,)),), formula)
    box = MapKernel((2, 3, 1, 4), Operand(DType.F32, (12, 4, 99, 1)), (Operand(DType.F32, (12, 4, 5, 1)),), formula)
    assert row == box.simplified()
    assert row != MapKernel((2, 12), row.output, row.inputs, formula)


def test_a_single_element() -> None:
    """A box without dimensions has one element."""
    writer = Writer([DType.I64])
    kernel = MapKernel(
        (), Operand(DType.I64, ()), (Operand(DType.I64, ()),), writer.formula(writer.apply("neg", writer.arg(0)))
    )
    got = run_kernel(lambda f: write_map(f, kernel, Target.SIMD128), [np.array([5])], np.zeros(1, np.int64))
    assert [-5] == got.tolist()
