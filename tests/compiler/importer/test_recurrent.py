"""Recurrent layers in all directions, with sequences of different lengths, against onnxruntime."""

import numpy as np
import pytest
from onnx import TensorProto

from compiler import compile_model
from compiler.errors import UnsupportedError
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import ModelWriter, run_onnxruntime

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
TIME, BATCH, WIDTH, HIDDEN = 6, 3, 5, 4


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", GATES)
def test_sequences_of_different_lengths(kind: str, direction: str) -> None:
    """Each ends, or begins from behind, where its own length says; behind it are zeros."""
    w = ModelWriter()
    directions, size = 1 + (direction == "bidirectional"), GATES[kind] * HIDDEN
    x, lengths = w.input("x", [TIME, BATCH, WIDTH]), w.input("lengths", [BATCH], TensorProto.INT32)
    weights = [w.weights(directions, size, WIDTH), w.weights(directions, size, HIDDEN), w.weights(directions, 2 * size)]
    first = w.weights(directions, BATCH, HIDDEN)
    y = w.node(kind, x, *weights, lengths, first, outputs=2, hidden_size=HIDDEN, direction=direction)
    model = w.model(y, f"{y}_1")
    inputs = {
        "x": w.rng.standard_normal((TIME, BATCH, WIDTH)).astype(np.float32),
        "lengths": np.array([4, 6, 1], np.int32),
    }
    assert_close(run_compiled(compile_model(model), inputs), run_onnxruntime(model, inputs))


@pytest.mark.parametrize("kind", GATES)
def test_numbers_of_activations(kind: str) -> None:
    """Each function that needs some takes the next of them, wherever it stands."""
    w = ModelWriter()
    names = {
        "RNN": ["Relu", "HardSigmoid"],
        "GRU": ["Sigmoid", "ScaledTanh", "HardSigmoid", "LeakyRelu"],
        "LSTM": ["Sigmoid", "HardSigmoid", "Softsign", "HardSigmoid", "Elu", "Affine"],
    }[kind]
    x, size = w.input("x", [TIME, BATCH, WIDTH]), GATES[kind] * HIDDEN
    weights = [w.weights(2, size, WIDTH), w.weights(2, size, HIDDEN), w.weights(2, 2 * size)]
    y = w.node(
        kind, x, *weights, hidden_size=HIDDEN, direction="bidirectional", activations=names,
        activation_alpha=[0.7, 0.3, 0.6, 0.8], activation_beta=[0.2, 0.4, 0.1],
    )  # fmt: skip
    model, inputs = w.model(y), {"x": w.rng.standard_normal((TIME, BATCH, WIDTH)).astype(np.float32)}
    assert_close(run_compiled(compile_model(model), inputs), run_onnxruntime(model, inputs))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["ScaledTanh"], "has no alpha or no beta"),
        (["Cosine"], "is not implemented"),
        (["Tanh", "Tanh"], "2 activations do not fit 1 directions"),
    ],
)
def test_activations_that_cannot_be(names: list[str], reason: str) -> None:
    """They are refused with the reason."""
    w = ModelWriter()
    x = w.input("x", [TIME, BATCH, WIDTH])
    y = w.node("RNN", x, w.weights(1, 4, WIDTH), w.weights(1, 4, 4), hidden_size=4, activations=names)
    with pytest.raises(UnsupportedError, match=reason):
        compile_model(w.model(y))
