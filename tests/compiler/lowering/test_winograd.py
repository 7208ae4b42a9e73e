"""Convolutions of 3 x 3 by Winograd's scheme against onnxruntime: odd sides, bands, epilogues, batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler import CompileOptions, Target, compile_model
from compiler.dtypes import DType
from compiler.formula import identity
from compiler.ir import operations as ops
from compiler.kernels.walk import Floats
from compiler.lowering import winograd
from compiler.lowering.placement import dense
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
    ("rows", "step", "most", "expected"),
    [
        (7, 2, 9, (7, [0])),
        (7, 2, 3, (4, [0, 3])),
        (28, 2, 4, (8, [0, 8, 16, 20])),
        (29, 2, 1, (2, [*range(0, 28, 2), 27])),
        (28, 4, 3, (12, [0, 12, 16])),
        (4, 2, 0, (2, [0, 2])),
    ],
)
def test_an_image_is_cut_into_as_few_bands_as_fit(
    rows: int, step: int, most: int, expected: tuple[int, list[int]]
) -> None:
    """An odd row does not make a band of its own: all filters would be read once more for it."""
    assert expected == winograd.cut(rows, step, most)


def convolution(side: int, channels: int, taps: int = 3, step: int = 1, groups: int = 1) -> int | None:
    """Return how far apart windows are for a square image and as many filters as channels; None for a plain product."""
    out = -(-side // step)
    operation = ops.Conv((step, step), (1, 1), (taps // 2,) * 4, groups, identity(DType.F32))
    weights = np.zeros((channels, channels // groups, taps, taps), np.float32)
    return winograd.best_step(operation, weights, dense(0, DType.F32, (1, channels, out, out)))


@pytest.mark.parametrize(
    ("expected", "side", "channels", "why"),
    [
        (None, 4, 4, "to transform 4 channels takes as long as to multiply them"),
        (None, 3, 512, "an image with no side of 4 is mostly border"),
        (None, 56, 66, "channels go by four"),
        (4, 56, 64, "the image is large: a quarter of the products"),
        (4, 28, 128, "likewise"),
        (4, 7, 64, "4 windows in the place of 16, and filters that stay in a cache"),
        (2, 10, 64, "9 in the place of 25 are not worth the longer filters"),
        (2, 14, 256, "36 matrices of filters take longer to read from memory than 16"),
        (2, 7, 512, "likewise"),
        (4, 12, 512, "9 windows in the place of 36 are worth reading them"),
    ],
)
def test_the_scheme_that_takes_the_least_time_is_chosen(
    expected: int | None, side: int, channels: int, why: str
) -> None:
    """What transformations, products and reading filters take decides; docs/PERFORMANCE.md has layers measured."""
    assert expected == convolution(side, channels), why


@pytest.mark.parametrize("conv", [{"taps": 5}, {"taps": 1}, {"step": 2}, {"groups": 2}])
def test_it_is_for_plain_convolutions_of_3_x_3(conv: dict[str, int]) -> None:
    """Others are plain products, however large."""
    assert convolution(56, 64) is not None
    assert convolution(56, 64, **conv) is None


def test_the_module_has_the_filters_of_the_chosen_scheme() -> None:
    """Each filter is 9 numbers in the module, 16 or 36; what else there is takes much less."""
    for numbers, side, channels in ((9, 3, 32), (16, 5, 32), (36, 56, 32)):
        w = ModelWriter()
        x = w.input("image", (1, channels, side, side))
        weights = w.weights(channels, channels, 3, 3)
        compiled = compile_model(w.model(w.node("Conv", x, weights, pads=[1] * 4)))
        filter_bytes = numbers * channels * channels * 4
        assert filter_bytes <= compiled.constant_bytes < 1.04 * filter_bytes


def valid(filters: Floats, image: Floats) -> Floats:
    """Return a convolution without padding, as it is compiled, and hold it against onnxruntime unless NaN is in it."""
    w = ModelWriter()
    model = w.model(w.node("Conv", w.input("image", image.shape), w.constant(filters)))
    [got] = run_compiled(compile_model(model), {"image": image})
    if not np.isnan(got).any():
        assert_close([got], run_onnxruntime(model, {"image": image}))
    return got


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("step", "side"), [(4, 20), (2, 10)])
def test_what_is_not_finite_spoils_its_windows_alone(step: int, side: int, number: float) -> None:
    """A plain sum is spoiled next to it; here up to `step` pixels away, and no bit changes farther away."""
    channels, at, rng = 64, side // 2, np.random.default_rng(3)
    assert step == convolution(side, channels)
    filters = rng.standard_normal((channels, channels, 3, 3), np.float32)
    image = rng.standard_normal((1, channels, side + 2, side + 2), np.float32)
    whole = valid(filters, image)
    image[0, 5, at + 1, at + 1] = number
    spoiled = valid(filters, image)
    same = (whole == spoiled).all((0, 1))
    rows, columns = np.abs(np.indices((side, side)) - at)
    assert same[np.maximum(rows, columns) > step].all()
    assert not np.isfinite(spoiled[:, :, np.maximum(rows, columns) <= 1]).any()


@pytest.mark.parametrize(("pixel", "is_finite"), [(1e-30, True), (1e30, True), (1e37, True), (2e37, False)])
def test_numbers_get_so_great_on_the_way(pixel: float, is_finite: bool) -> None:
    """A window in which each sign is the worst, at the greatest weights that docs/COMPILER.md allows."""
    channels, side = 64, 7
    assert 4 == convolution(side, channels)
    weight = min(5e35 / channels / pixel, 1e30)
    signs = np.array([0, -1, -1, 1, 1, 0])
    image = np.zeros((1, channels, side + 2, side + 2), np.float32)
    image[..., :6, :6] = np.outer(signs, signs) * pixel
    filters = np.full((channels, channels, 3, 3), weight, np.float32)
    assert is_finite == np.isfinite(valid(filters, image)).all()


def test_filters_that_would_overflow_stay_as_they_are() -> None:
    """There is a greater float than any of them, but not than what the scheme makes of them."""
    filters = np.zeros((64, 64, 3, 3), np.float32)
    filters[5, 6] = 2e38
    image = np.random.default_rng(3).uniform(1e-9, 1e-8, (1, 64, 12, 12)).astype(np.float32)
    assert np.isfinite(valid(filters, image)).all()


def spread_out(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Return magnitudes from a thousandth to a thousand."""
    return np.asarray(10 ** rng.uniform(-3, 3, shape), np.float32)


@pytest.mark.parametrize("kind", ["channels", "pixels", "taps", "everything", "cancelling"])
@pytest.mark.parametrize(("step", "side"), [(2, 7), (4, 12)])
def test_512_channels_of_mixed_magnitudes(step: int, side: int, kind: str) -> None:
    """2e-5 of the greatest value, a fifth of what is promised, is three times the worst that was seen (6.2e-6)."""
    channels, rng = 512, np.random.default_rng(7)
    assert step == convolution(side, channels)
    image = rng.standard_normal((1, channels, side, side), np.float32)
    filters = rng.standard_normal((channels, channels, 3, 3), np.float32)
    if kind == "cancelling":  # results are small beside what they are sums of
        image, filters = image + 100, filters - filters.mean((1, 2, 3), keepdims=True)
    else:
        image *= spread_out(
            rng, {"channels": (channels, 1, 1), "pixels": (side, side), "taps": (1,)}.get(kind, image.shape)
        )
        filters *= spread_out(rng, {"taps": (3, 3), "everything": filters.shape}.get(kind, (1,)))
    w = ModelWriter()
    y = w.node("Conv", w.input("image", image.shape), w.constant(filters), w.weights(channels), pads=[1] * 4)
    model = w.model(y)
    got = run_compiled(compile_model(model), {"image": image})
    assert_close(got, run_onnxruntime(model, {"image": image}), relative=2e-5, absolute=1e-6)
