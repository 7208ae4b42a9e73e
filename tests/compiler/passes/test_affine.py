"""Scales and shifts in weights, unless those would not be finite any more."""

import numpy as np
import pytest

from compiler import compile_model
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import ModelWriter, run_onnxruntime


def compare(w: ModelWriter, y: str, number: float) -> None:
    """Hold a model of one input against onnxruntime, for inputs of some magnitude."""
    model = w.model(y)
    compiled = compile_model(model)
    [x] = compiled.spec.inputs
    inputs = {x.name: w.rng.standard_normal(x.shape, np.float32) * np.float32(number)}
    got, want = run_compiled(compiled, inputs), run_onnxruntime(model, inputs)
    assert np.isfinite(want[0]).all()
    assert_close(got, want)


@pytest.mark.parametrize(("weight", "scale", "number"), [(1, 0.5, 1), (1e20, 1e30, 1e-20), (1e20, 1e20, 1e-35)])
def test_weights_that_a_scale_makes_infinite(weight: float, scale: float, number: float) -> None:
    """They stay as they are; what the input makes of them is finite first, and is scaled then."""
    w = ModelWriter()
    y = w.node("MatMul", w.input("x", [3, 5]), w.weights(5, 8, scale=weight))
    compare(w, w.node("Mul", y, w.constant(np.full(8, scale, np.float32))), number)


@pytest.mark.parametrize(("weight", "alpha", "number"), [(1, 0.5, 1), (1e20, 1e30, 1e-20), (1e20, 1e20, 1e-35)])
def test_an_alpha_that_makes_weights_infinite(weight: float, alpha: float, number: float) -> None:
    """Likewise; otherwise it is in the weights, and costs nothing."""
    w = ModelWriter()
    x, bias = w.input("x", [3, 5]), w.weights(8, scale=weight * alpha * number)
    compare(w, w.node("Gemm", x, w.weights(5, 8, scale=weight), bias, alpha=alpha), number)


def test_constants_that_overflow() -> None:
    """A product of constants is what it would be in the module, and says nothing."""
    w = ModelWriter()
    large = [w.constant(np.full(shape, 1e30, np.float32)) for shape in ((2, 3), (3, 4))]
    [got] = run_compiled(
        compile_model(w.model(w.node("Add", w.node("MatMul", *large), w.input("x", [2, 4])))),
        {"x": np.zeros((2, 4), np.float32)},
    )
    assert np.isinf(got).all()
