"""Recurrent layers in all directions, with sequences of different lengths, against onnxruntime."""

import numpy as np
import pytest
from onnx import TensorProto

from compiler import compile_model
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
