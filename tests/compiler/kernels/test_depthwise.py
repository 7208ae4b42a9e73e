"""Depthwise convolutions against onnxruntime: steps, dilations, filters of any size, epilogues, both targets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler import CompileOptions, Target, compile_model
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import ModelWriter, run_onnxruntime


@pytest.mark.property
@given(
    st.sampled_from(Target),
    st.tuples(st.integers(2, 13), st.integers(7, 20), st.integers(7, 31)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(1, 3),
    st.integers(1, 2),
)
def test_any_shape(
    target: Target, shape: tuple[int, int, int], taps: tuple[int, int], step: int, dilation: int
) -> None:
    """Each pixel is a sum of at most 25 products of numbers around 1, rounded: 1e-5 of the greatest value."""
    w = ModelWriter(seed=shape[0])
    reach = [(n - 1) * dilation + 1 for n in taps]
    if reach[0] > shape[1] or reach[1] > shape[2]:
        return
    pads = [reach[0] // 2, reach[1] // 2, reach[0] // 2, reach[1] // 2]
    x = w.input("image", (1, *shape))
    weights = w.weights(shape[0], 1, *taps)
    y = w.node(
        "Conv", x, weights, w.weights(shape[0]), group=shape[0], strides=[step] * 2, dilations=[dilation] * 2, pads=pads
    )
    model = w.model(w.node("Relu", y))
    image = np.random.default_rng(1).standard_normal((1, *shape), dtype=np.float32)
    got = run_compiled(compile_model(model, CompileOptions(target=target)), {"image": image})
    assert_close(got, run_onnxruntime(model, {"image": image}), relative=1e-5, absolute=1e-6)
