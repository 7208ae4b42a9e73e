"""Recurrent layers in all directions, with sequences of different lengths, against onnxruntime."""

import re
from typing import Any

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


SHAPES = {
    "W": [1, 4 * HIDDEN, WIDTH],
    "R": [1, 4 * HIDDEN, HIDDEN],
    "B": [1, 8 * HIDDEN],
    "sequence_lens": [BATCH],
    "initial_h": [1, BATCH, HIDDEN],
    "initial_c": [1, BATCH, HIDDEN],
    "P": [1, 3 * HIDDEN],
}


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("name", SHAPES)
def test_inputs_of_other_shapes(name: str, axis: int) -> None:
    """They are refused: what is too large would be cut, to the first direction or the first of a batch."""
    w, shapes = ModelWriter(), {n: list(shape) for n, shape in SHAPES.items()}
    shapes[name][axis] += 1
    inputs = [
        w.input(n, shape, TensorProto.INT32 if n == "sequence_lens" else TensorProto.FLOAT)
        for n, shape in {"X": [TIME, BATCH, WIDTH], **shapes}.items()
    ]
    y = w.node("LSTM", *inputs, hidden_size=HIDDEN)
    model = w.model(y, types={y: (TensorProto.FLOAT, [TIME, 1, BATCH, HIDDEN])})
    expected = re.escape(f"expected {name} to be {SHAPES[name]}, got {shapes[name]}")
    with pytest.raises(UnsupportedError, match=expected):
        compile_model(model)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"hidden_size": 5}, r"expected W to be \[1, 5, 5\], got \[1, 4, 5\]"),
        ({"direction": "backward"}, "expected direction to be one of forward, reverse, bidirectional, got 'backward'"),
        ({"clip": -1.0}, r"expected clip of at least 0, got -1\.0"),
        ({"clip": float("nan")}, "expected clip of at least 0, got nan"),
    ],
)
def test_attributes_that_cannot_be(attributes: dict[str, Any], reason: str) -> None:
    """They are refused, not read as something else."""
    w = ModelWriter()
    x = w.input("x", [TIME, BATCH, WIDTH])
    attributes = {"hidden_size": HIDDEN, **attributes}
    y = w.node("RNN", x, w.weights(1, HIDDEN, WIDTH), w.weights(1, HIDDEN, HIDDEN), **attributes)
    model = w.model(y, types={y: (TensorProto.FLOAT, [TIME, 1, BATCH, HIDDEN])})
    with pytest.raises(UnsupportedError, match=reason):
        compile_model(model)


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
