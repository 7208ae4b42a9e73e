"""Convolutions of 3 x 3 by Winograd's scheme against onnxruntime: odd sides, bands, epilogues, batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler import CompileOptions, Target, compile_model
from compiler.lowering import winograd
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import ModelWriter, run_onnxruntime


def compare(target: Target, shape: tuple[int, int, int, int], out: int, *, pad: int, is_residual: bool) -> None:
    """Compare one convolution; 1e-5 of the greatest value is ten times what the scheme is off at the most."""
    w = ModelWriter(seed=out)
    before = w.node("Relu", w.input("image", shape))
    y = w.node("Conv", before, w.weights(out, shape[1], 3, 3), w.weights(out), pads=[pad] * 4)
    if is_residual:
        rows, columns = (n + 2 * pad - 2 for n in shape[2:])
        y = w.node("Relu", w.node("Add", y, w.input("other", (shape[0], out, rows, columns))))
    model = w.model(y)
    compiled = compile_model(model, CompileOptions(target=target))
    rng = np.random.default_rng(1)
    inputs = {t.name: rng.standard_normal(t.shape, dtype=np.float32) for t in compiled.spec.inputs}
    assert_close(run_compiled(compiled, inputs), run_onnxruntime(model, inputs), relative=1e-5, absolute=1e-6)


@pytest.mark.property
@given(
    st.sampled_from(Target),
    st.tuples(st.integers(1, 2), st.sampled_from([16, 20, 36]), st.integers(6, 13), st.integers(6, 13)),
    st.sampled_from([16, 24, 44]),
    st.integers(0, 1),
    st.booleans(),
)
def test_any_shape(target: Target, shape: tuple[int, int, int, int], out: int, pad: int, is_residual: bool) -> None:
    """Sides may be odd, then the last windows overlap others."""
    compare(target, shape, out, pad=pad, is_residual=is_residual)


@pytest.mark.parametrize("band_bytes", [1, 40_000, 100_000])
def test_bands(monkeypatch: pytest.MonkeyPatch, band_bytes: int) -> None:
    """An image that is cut into bands is the same as one that is not, also where they do not fit."""
    monkeypatch.setattr(winograd, "_BAND_BYTES", band_bytes)
    compare(Target.RELAXED, (1, 16, 29, 11), 16, pad=1, is_residual=True)


@pytest.mark.parametrize(
    ("rows", "most", "expected"),
    [
        (7, 9, (7, [0])),
        (7, 3, (4, [0, 3])),
        (28, 4, (8, [0, 8, 16, 20])),
        (29, 1, (2, [*range(0, 28, 2), 27])),
        (4, 0, (2, [0, 2])),
    ],
)
def test_an_image_is_cut_into_as_few_bands_as_fit(rows: int, most: int, expected: tuple[int, list[int]]) -> None:
    """An odd row does not make a band of its own: all filters would be read once more for it."""
    assert expected == winograd.cut(rows, most)


def test_it_is_chosen_where_it_pays() -> None:
    """For many channels; the 16 matrices of the filters are in the module then."""
    sizes = []
    for channels in (8, 32):
        w = ModelWriter()
        x = w.input("image", (1, channels, 8, 8))
        weights = w.weights(channels, channels, 3, 3)
        sizes.append(compile_model(w.model(w.node("Conv", x, weights, pads=[1] * 4))).constant_bytes)
    assert sizes[0] < 8 * 8 * 4 * 16 < 32 * 32 * 4 * 16 <= sizes[1]
