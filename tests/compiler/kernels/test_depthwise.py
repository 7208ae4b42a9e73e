"""Depthwise convolutions against onnxruntime: steps, dilations, filters of any size, epilogues, both targets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler import CompileOptions, Target, compile_model
from compiler.pipeline import CompiledModel
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


def large_filter(taps: tuple[int, int], step: int = 1) -> tuple[ModelWriter, bytes, CompiledModel]:
    """Return six channels under filters of a size, with as much padding."""
    w = ModelWriter(seed=step)
    x, pads = w.input("image", (1, 6, 9, 10)), [n // 2 for n in taps] * 2
    y = w.node("Conv", x, w.weights(6, 1, *taps), w.weights(6), group=6, pads=pads, strides=[step] * 2)
    model = w.model(w.node("Relu", y))
    return w, model, compile_model(model)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("taps", [(2, 5), (1, 16), (1, 33), (33, 1), (13, 8), (7, 24), (17, 19)])
def test_large_filters(taps: tuple[int, int], step: int) -> None:
    """Sums of up to 323 products, in rows of taps that fill rounds of a loop or do not."""
    w, model, compiled = large_filter(taps, step)
    image = w.rng.standard_normal((1, 6, 9, 10), np.float32)
    assert_close(run_compiled(compiled, {"image": image}), run_onnxruntime(model, {"image": image}), relative=1e-5)


def test_code_does_not_grow_with_the_filter() -> None:
    """A module grows by the filter alone: engines take minutes for a function with code for each of 10,000 taps."""
    small, large = (large_filter(taps)[2] for taps in ((11, 11), (101, 101)))
    assert len(large.wasm) - len(small.wasm) < large.stored_bytes - small.stored_bytes + 1000
