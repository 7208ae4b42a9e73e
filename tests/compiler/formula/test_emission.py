"""Every operation of a formula, for every type that it takes, as vectors and as scalars: the same as its definition."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.formula import Formula, Writer
from compiler.formula.reference import evaluate
from compiler.formula.scalar import unsupported, write_scalars
from compiler.formula.vector import is_vectorizable
from compiler.kernels.target import Target
from compiler.loops.box import Operand
from compiler.loops.elements import load, store
from compiler.loops.map import MapKernel, write_map
from compiler.wasm import Function
from tests.compiler.kernel_runner import run_kernel

Array = NDArray[Any]
FLOATS = [DType.F32, DType.F64]
INTEGERS = [dtype for dtype in DType if dtype.is_integer]
ANY_FLOAT = "neg abs sign sqrt floor ceil trunc round is_nan is_inf"
ELEMENTARY = "exp log sigmoid tanh erf sin cos tan asin acos atan"
NUMBERS = "add sub mul div min max at_least at_most eq lt le"
BITS = "bit_and bit_or bit_xor shift_left shift_right"

CASES = [
    *((name, dtype) for name in ANY_FLOAT.split() for dtype in FLOATS),
    *((name, DType.F32) for name in [*ELEMENTARY.split(), "pow"]),
    *((name, dtype) for name in [*NUMBERS.split(), "fmod"] for dtype in FLOATS),
    *((name, dtype) for name in ["neg", "abs"] for dtype in INTEGERS if dtype.is_signed),
    *((name, dtype) for name in ["sign", "bit_not"] for dtype in INTEGERS),
    *((name, dtype) for name in [*NUMBERS.split(), *BITS.split(), "fmod", "mod", "pow"] for dtype in INTEGERS),
    *((name, DType.BOOL) for name in ["not", "and", "or", "xor", "eq"]),
]
UNARY = {*ANY_FLOAT.split(), *ELEMENTARY.split(), "bit_not", "not"}


def samples(dtype: DType, operation: str, position: int) -> Array:
    """Return operands that meet every branch, without those for which an operation has no answer."""
    rng = np.random.default_rng(position)
    if dtype is DType.BOOL:
        return rng.random(37) < 0.5
    if dtype.is_float:
        special = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 1e-6, 300.25]
        return np.concatenate([np.roll(special, 3 * position), rng.normal(0, 2, 24)]).astype(dtype.numpy)
    if operation == "pow":
        return rng.integers(0, 5, 37).astype(dtype.numpy)
    if operation.startswith("shift") and position:
        return rng.integers(0, dtype.bits, 37).astype(dtype.numpy)
    limits = np.iinfo(dtype.value)
    edges = np.array([limits.max, limits.max - 1, 1, 7, limits.min + 1, 3, 0], dtype.numpy)
    numbers = np.concatenate([edges, rng.integers(limits.min, limits.max, 30, dtype.numpy)])
    numbers = np.roll(numbers, 5 * position)
    return np.where(numbers == 0, 1, numbers).astype(dtype.numpy) if position else numbers


def one_operation(operation: str, dtype: DType) -> tuple[Formula, list[Array]]:
    """Return a formula of one operation, and operands for it."""
    count = 1 if operation in UNARY or (operation in {"neg", "abs", "sign"}) else 2
    writer = Writer([dtype] * count)
    formula = writer.formula(writer.apply(operation, *(writer.arg(n) for n in range(count))))
    return formula, [samples(dtype, operation, n) for n in range(count)]


def compute(formula: Formula, args: list[Array], target: Target, *, is_scalar: bool) -> Array:
    """Return what the emitted code makes of arrays of one size."""
    output = np.zeros(args[0].size, formula.dtype.numpy)
    kernel = MapKernel(
        (output.size,), Operand(formula.dtype, (1,)), tuple(Operand(d, (1,)) for d in formula.args), formula
    )

    def one_by_one(f: Function) -> None:
        target_address, sources, n = f.param_i32(), [f.param_i32() for _ in args], f.i32()
        with f.repeat(n, output.size):
            values = [f.keep(load(d, s)) for d, s in zip(formula.args, sources, strict=True)]
            f.do(store(formula.dtype, target_address, write_scalars(f, target, formula, values)))
            target_address.advance(formula.dtype.item_bytes)
            for source, dtype in zip(sources, formula.args, strict=True):
                source.advance(dtype.item_bytes)

    def as_kernel(f: Function) -> None:
        write_map(f, kernel, target)

    write: Callable[[Function], None] = one_by_one if is_scalar else as_kernel
    return run_kernel(write, args, output)


def check(formula: Formula, args: list[Array], *, rtol: float = 1e-6) -> None:
    """Compare vectors, where there are any, and scalars with the definition."""
    want = evaluate(formula, args)
    for target in Target:
        for is_scalar in (True, False) if is_vectorizable(formula) else (True,):
            got = compute(formula, args, target, is_scalar=is_scalar)
            if formula.dtype.is_float:
                np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-9)
            else:
                np.testing.assert_array_equal(got, want)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("operation", "dtype"), CASES)
def test_operation(operation: str, dtype: DType) -> None:
    """One operation on numbers that meet its edges."""
    formula, args = one_operation(operation, dtype)
    assert [] == unsupported(formula)
    check(formula, args)


@pytest.mark.parametrize("dtype", [dtype for dtype in INTEGERS if dtype.is_signed])
def test_negative_power_of_whole_numbers(dtype: DType) -> None:
    """Only 1 and -1 are not rounded to 0; the square of the greatest number wraps around to 1, and is none of them."""
    limits = np.iinfo(dtype.value)
    bases = np.array([1, -1, -1, -1, 2, -2, 0, limits.max, limits.min + 1, limits.min], dtype.numpy)
    exponents = np.array([-1, -1, -2, limits.min, -1, -3, -1, -1, -1, -1], dtype.numpy)
    writer = Writer([dtype, dtype])
    formula = writer.formula(writer.apply("pow", writer.arg(0), writer.arg(1)))
    assert [1, -1, 1, 1, 0, 0, 0, 0, 0, 0] == list(evaluate(formula, [bases, exponents]))
    check(formula, [bases, exponents])


@pytest.mark.parametrize("old", DType)
@pytest.mark.parametrize("new", DType)
def test_cast(old: DType, new: DType) -> None:
    """Every type into every other."""
    writer = Writer([old])
    args = [samples(old, "cast", 0)]
    if old.is_float:
        args = [np.concatenate([args[0], np.array([-1e30, 1e30, 255.5, -129.0, 65536.0, 3e9], old.numpy)])]
    check(writer.formula(writer.cast(new, writer.arg(0))), args)


@pytest.mark.parametrize("dtype", DType)
def test_select_and_constants(dtype: DType) -> None:
    """A condition chooses between an operand and a number, and every type has numbers."""
    writer = Writer([DType.BOOL, dtype])
    answer = writer.apply("select", writer.arg(0), writer.arg(1), writer.const(dtype, 1))
    check(writer.formula(answer), [samples(DType.BOOL, "select", 0), samples(dtype, "select", 1)])


def test_products_are_fused_into_sums() -> None:
    """A product that is used once is added in one instruction; one that is used again is not computed twice."""
    writer = Writer([DType.F32] * 3)
    a, b, c = (writer.arg(n) for n in range(3))
    product = writer.apply("mul", a, b)
    once = writer.apply("sub", c, writer.apply("mul", a, a))
    answer = writer.apply(
        "mul", writer.apply("add", product, c), writer.apply("add", writer.apply("sub", product, once), b)
    )
    rng = np.random.default_rng(0)
    check(writer.formula(answer), [rng.normal(size=19).astype(np.float32) for _ in range(3)], rtol=1e-4)


def test_elementary_functions_of_wide_floats_are_named() -> None:
    """There are none, and the importer has to know."""
    writer = Writer([DType.F64])
    assert ["exp of float64"] == unsupported(writer.formula(writer.apply("exp", writer.arg(0))))
