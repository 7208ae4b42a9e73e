"""Samples of images at computed places, and spectra, against onnxruntime."""

from itertools import product

import numpy as np
import pytest

from compiler import compile_model
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import ModelWriter, run_onnxruntime


@pytest.mark.parametrize(
    ("mode", "padding", "align"),
    list(product(["linear", "nearest", "cubic"], ["zeros", "border", "reflection"], [0, 1])),
)
def test_samples_of_an_image(mode: str, padding: str, align: int) -> None:
    """Inside and far outside of it."""
    w = ModelWriter()
    x, grid = w.input("x", [2, 3, 5, 7]), w.input("grid", [2, 4, 6, 2])
    y = w.node("GridSample", x, grid, mode=mode, padding_mode=padding, align_corners=align)
    model = w.model(y, opset=20)
    inputs = {
        "x": w.rng.standard_normal((2, 3, 5, 7)).astype(np.float32),
        "grid": w.rng.uniform(-2.5, 2.5, (2, 4, 6, 2)).astype(np.float32),
    }
    assert_close(run_compiled(compile_model(model), inputs), run_onnxruntime(model, inputs))


@pytest.mark.parametrize("is_known", [True, False])
def test_spectra_of_windows(*, is_known: bool) -> None:
    """The shape of the window is part of the matrix where it is known."""
    w = ModelWriter()
    size = 32
    window = np.hanning(size).astype(np.float32)
    name = w.constant(window) if is_known else w.input("window", [size])
    step, length = (w.constant(np.asarray(n)) for n in (12, size))
    model = w.model(w.node("STFT", w.input("x", [2, 100, 1]), step, name, length))
    inputs = {"x": w.rng.standard_normal((2, 100, 1)).astype(np.float32)} | ({} if is_known else {"window": window})
    assert_close(run_compiled(compile_model(model), inputs), run_onnxruntime(model, inputs))
