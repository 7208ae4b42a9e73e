"""Reducing kernels over random views, against numpy: in every direction, for every way to combine."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.formula import Writer, identity
from compiler.formula.reference import evaluate
from compiler.kernels.target import Target
from compiler.loops.box import Operand
from compiler.loops.reduce import ReduceKernel, neutral, write_reduce
from tests.compiler.kernel_runner import run_kernel
from tests.compiler.loops.views import fill, offset, operand, views

Array = NDArray[Any]
SIZES = st.sampled_from([1, 2, 3, 4, 5, 9, 16, 19, 33])


def total(combine: str, values: Array, axes: tuple[int, ...]) -> Array:
    """Return what numpy makes of it."""
    functions = {
        "add": np.sum,
        "mul": np.prod,
        "min": np.min,
        "max": np.max,
        "at_least": np.max,
        "at_most": np.min,
        "and": np.all,
        "or": np.any,
    }
    return np.asarray(functions[combine](values, axis=axes), values.dtype)


@st.composite
def problems(draw: st.DrawFn) -> tuple[ReduceKernel, list[tuple[Array, Array]], Array, Array, Array]:
    """Return a kernel that reduces the sum of two operands and adds a third, with all of its arrays."""
    kept = tuple(draw(st.lists(SIZES, max_size=2)))
    reduced = tuple(draw(st.lists(SIZES, min_size=1, max_size=2)))
    dtype = draw(st.sampled_from([DType.F32, DType.F32, DType.I32, DType.U8, DType.I64, DType.F64, DType.BOOL]))
    arithmetic = ["and", "or"] if dtype is DType.BOOL else ["add", "min", "max", "at_least", "at_most"]
    combine = draw(st.sampled_from(arithmetic))
    writer = Writer([dtype, dtype])
    element = writer.formula(writer.apply("or" if dtype is DType.BOOL else "max", writer.arg(0), writer.arg(1)))
    finish = writer.formula(writer.apply("xor" if dtype is DType.BOOL else "sub", writer.arg(0), writer.arg(1)))
    inputs = [draw(views((*kept, *reduced), dtype)) for _ in range(2)]
    extra = draw(views(kept, dtype)) if kept else (np.ones(1, dtype.numpy),) * 2
    order = draw(st.permutations(range(len(kept))))
    out = fill(np.random.default_rng(0), dtype, [kept[n] for n in order] or [1])
    view = out.transpose(np.argsort(order)) if kept else out
    extras = (operand(extra[1]) if kept else Operand(dtype, ()),)
    output = operand(view) if kept else Operand(dtype, ())
    operands = tuple(operand(v) for _, v in inputs)
    kernel = ReduceKernel(kept, reduced, output, operands, extras, element, combine, finish)
    return kernel, [*inputs, extra], out, view, extra[1]


@pytest.mark.property
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(problems(), st.sampled_from(Target))
def test_any_views(
    problem: tuple[ReduceKernel, list[tuple[Array, Array]], Array, Array, Array], target: Target
) -> None:
    """Rows, columns, everything at once: each output is what numpy makes of its elements."""
    kernel, inputs, out, view, extra = problem
    got = run_kernel(
        lambda f: write_reduce(f, kernel.simplified(), target),
        [base for base, _ in inputs],
        out,
        offsets=[offset(base, v) for base, v in inputs],
    )
    axes = tuple(range(len(kernel.kept), len(kernel.kept) + len(kernel.reduced)))
    elements = evaluate(kernel.element, [v for _, v in inputs[:-1]])
    view[...] = evaluate(kernel.finish, [total(kernel.combine, elements, axes), extra])
    if out.dtype.kind == "f":
        np.testing.assert_allclose(got, out, rtol=1e-5, atol=1e-3)
    else:
        np.testing.assert_array_equal(got, out)


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize(("rows", "depth", "columns"), [(3, 37, 21), (1, 64, 1), (5, 1, 7), (2, 100, 4)])
def test_sums_of_products(target: Target, rows: int, depth: int, columns: int) -> None:
    """A matrix product is a reduction of a box with three dimensions."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(rows, depth)).astype(np.float32), rng.normal(size=(depth, columns)).astype(np.float32)
    writer = Writer([DType.F32, DType.F32])
    kernel = ReduceKernel(
        (rows, columns),
        (depth,),
        Operand(DType.F32, (columns, 1)),
        (Operand(DType.F32, (depth, 0, 1)), Operand(DType.F32, (0, 1, columns))),
        (),
        writer.formula(writer.apply("mul", writer.arg(0), writer.arg(1))),
        "add",
        identity(DType.F32),
    )
    got = run_kernel(
        lambda f: write_reduce(f, kernel.simplified(), target), [a, b], np.zeros((rows, columns), np.float32)
    )
    np.testing.assert_allclose(got, a @ b, rtol=1e-5, atol=1e-5)


def test_windows_may_overlap() -> None:
    """Sums over a sliding window read every element several times."""
    x = np.arange(20, dtype=np.float32)
    kernel = ReduceKernel(
        (16,),
        (5,),
        Operand(DType.F32, (1,)),
        (Operand(DType.F32, (1, 1)),),
        (),
        identity(DType.F32),
        "add",
        identity(DType.F32),
    )
    got = run_kernel(lambda f: write_reduce(f, kernel.simplified(), Target.SIMD128), [x], np.zeros(16, np.float32))
    np.testing.assert_array_equal(got, np.convolve(x, np.ones(5), "valid"))


@pytest.mark.parametrize("dtype", DType)
def test_neutral_numbers_change_nothing(dtype: DType) -> None:
    """Whatever is combined with them stays as it is."""
    values = fill(np.random.default_rng(0), dtype, [9])
    for combine in ("and", "or") if dtype is DType.BOOL else ("add", "mul", "min", "max", "at_least", "at_most"):
        start = np.array(neutral(combine, dtype), dtype.numpy)
        writer = Writer([dtype, dtype])
        formula = writer.formula(writer.apply(combine, writer.arg(0), writer.arg(1)))
        for value in values:
            assert value == evaluate(formula, [start, np.asarray(value)])
