"""Softmax and layer normalisation of rows of every length, against numpy in double precision."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.formula import Writer
from compiler.kernels.target import Target
from compiler.loops.box import Operand
from compiler.loops.rows import LayerNormKernel, SoftmaxKernel, write_layer_norm, write_softmax
from tests.compiler.kernel_runner import run_kernel

LENGTHS = [1, 2, 4, 5, 8, 11, 15, 16, 17, 20, 30, 32, 37, 64, 79]
ROWS = 3


def values(length: int) -> NDArray[Any]:
    return np.random.default_rng(length).normal(2, 3, (ROWS, length)).astype(np.float32)


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("shift", [0, 30_000, -3e7])
def test_softmax(length: int, is_log: bool, target: Target, shift: float) -> None:
    """Each row on its own, whatever is left behind the vectors and the groups of them; differences alone count."""
    x = values(length) + np.float32(shift)
    kernel = SoftmaxKernel((ROWS,), length, (4 * length,), (4 * length,), is_log)
    got = run_kernel(lambda f: write_softmax(f, kernel, target), [x], np.zeros_like(x))
    shifted = x.astype(float) - x.max(axis=1, keepdims=True)
    logarithm = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(got, logarithm if is_log else np.exp(logarithm), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("length", LENGTHS)
def test_layer_norm(length: int, target: Target) -> None:
    """Scaled by numbers along the row and shifted by one number for all."""
    x, scale, shift = values(length), np.linspace(1, 2, length, dtype=np.float32), np.array([0.5], np.float32)
    writer = Writer([DType.F32] * 3)
    epilogue = writer.formula(writer.apply("add", writer.apply("mul", writer.arg(0), writer.arg(1)), writer.arg(2)))
    kernel = LayerNormKernel(
        rows=(ROWS,),
        length=length,
        input_bytes=(4 * length,),
        output_bytes=(4 * length,),
        extras=(Operand(DType.F32, (0, 1)), Operand(DType.F32, (0, 0))),
        epsilon=1e-5,
        epilogue=epilogue,
    )
    got = run_kernel(lambda f: write_layer_norm(f, kernel, target), [x, scale, shift], np.zeros_like(x))
    centred = x.astype(float) - x.astype(float).mean(axis=1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(got, normal * scale + 0.5, rtol=1e-4, atol=1e-5)
