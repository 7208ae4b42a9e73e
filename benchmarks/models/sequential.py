"""Recurrent networks."""

import numpy as np

from tests.compiler.onnx_models import ModelWriter

STEPS, WIDTH, HIDDEN = 100, 64, 128


def lstm() -> bytes:
    """Return two LSTM layers over a hundred steps."""
    w = ModelWriter()
    x, before = w.input("input", [STEPS, 1, WIDTH]), WIDTH
    for _ in range(2):
        weights = w.weights(1, 4 * HIDDEN, before, scale=before**-0.5)
        recurrent = w.weights(1, 4 * HIDDEN, HIDDEN, scale=HIDDEN**-0.5)
        x = w.node("LSTM", x, weights, recurrent, w.weights(1, 8 * HIDDEN, scale=0.1), hidden_size=HIDDEN)
        x = w.node("Squeeze", x, w.constant(np.array([1])))
        before = HIDDEN
    return w.model(x)
