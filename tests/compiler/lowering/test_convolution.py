"""Convolutions of many images at once, by each of the kernels."""

import numpy as np
import pytest

from compiler import compile_model
from compiler.pipeline import CompiledModel
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import ModelWriter, run_onnxruntime

KINDS = {"depthwise": (4, 4, 4, 4), "groups": (6, 9, 4, 3), "windows": (16, 16, 8, 1)}
"""Channels, filters, sides of the image and groups; the last kind goes by Winograd's scheme."""


def convolution(kind: str, batch: int) -> tuple[bytes, CompiledModel]:
    """Return a convolution with a residual sum, as a file and compiled."""
    w = ModelWriter()
    channels, out, side, groups = KINDS[kind]
    filters = w.weights(out, channels // groups, 3, 3)
    y = w.node("Conv", w.input("image", (batch, channels, side, side)), filters, pads=[1] * 4, group=groups)
    model = w.model(w.node("Add", y, w.input("other", (batch, out, side, side))))
    return model, compile_model(model)


@pytest.mark.parametrize("kind", KINDS)
def test_code_does_not_grow_with_the_batch(kind: str) -> None:
    """It is a loop over the images: engines take no function of more than 7,654,321 bytes."""
    few, many = (len(convolution(kind, batch)[1].wasm) for batch in (2, 500))
    assert many - few < 498  # addresses get longer, but there are no calls of its own for each image


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_every_image_of_a_batch(kind: str, batch: int) -> None:
    """Each is computed from its own pixels, and added to its own."""
    model, compiled = convolution(kind, batch)
    rng = np.random.default_rng(batch)
    inputs = {t.name: rng.standard_normal(t.shape, np.float32) for t in compiled.spec.inputs}
    assert_close(run_compiled(compiled, inputs), run_onnxruntime(model, inputs))
