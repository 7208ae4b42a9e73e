"""Elementary functions over their whole range, against the same in 64 bits."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from compiler.kernels import elementary, logarithm, trigonometry
from compiler.kernels.target import Target
from compiler.wasm import V128, Function, f32x4
from tests.compiler.elementwise import Floats, apply, ulps

TARGETS = list(Target)
Exact = NDArray[np.float64]


def spread(low: float, high: float, count: int = 400_000) -> Floats:
    """Return floats from `low` to `high`, evenly spread, and the neighbours of both ends and of 0."""
    ends = [np.float32(low), np.float32(high), np.float32(0), np.float32(-0.0), np.float32(1e-30), np.float32(-1e-30)]
    return np.concatenate([np.linspace(low, high, count, dtype=np.float32), np.array(ends, np.float32)])


@pytest.mark.parametrize("target", TARGETS)
def test_exp(target: Target) -> None:
    """At most 1 ULP off wherever the result is a normal number."""
    x = spread(-87.3, 88.72)
    got = apply(lambda f, v: elementary.exp(f, target, v), x)
    assert ulps(got, np.exp(x.astype(np.float64))).max() <= 1.0


@pytest.mark.parametrize("target", TARGETS)
def test_exp_beyond_normal_numbers(target: Target) -> None:
    """Too small becomes subnormal and then 0, too large becomes infinity, and NaN stays."""
    x = np.array([-88, -100, -103, -104, -1e9, -np.inf, 88.8, 1e9, np.inf, np.nan, 0.0, -0.0], np.float32)
    got = apply(lambda f, v: elementary.exp(f, target, v), x)
    with np.errstate(over="ignore", under="ignore"):
        want = np.exp(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-45)
    assert [1.0, 1.0] == got[-2:].tolist()


@pytest.mark.parametrize("target", TARGETS)
def test_exp_nonpositive(target: Target) -> None:
    """At most 1 ULP off, and next to nothing below the range of normal numbers."""
    x = spread(elementary.EXP_MIN, 0.0)
    got = apply(lambda f, v: elementary.exp_nonpositive(f, target, v), x)
    assert ulps(got, np.exp(x.astype(np.float64))).max() <= 1.0
    tiny = apply(lambda f, v: elementary.exp_nonpositive(f, target, v), np.array([-90, -1e30, -np.inf], np.float32))
    assert np.all((tiny >= 0) & (tiny < 1.2e-38))


Vectors = Callable[[Function, Target, V128], V128]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("function", "exact", "low", "high", "allowed_ulps", "allowed"),
    [
        (elementary.sigmoid, lambda x: 1 / (1 + np.exp(-x)), -87, 90, 3, 0),
        (elementary.sigmoid, lambda x: 1 / (1 + np.exp(-x)), -2, 2, 3, 0),
        (elementary.tanh, np.tanh, -12, 12, 3, 0),
        (elementary.tanh, np.tanh, -0.7, 0.7, 3, 0),
        (elementary.erf, special.erf, -5, 5, 3, 0),
        (elementary.erf, special.erf, -1, 1, 3, 0),
        (logarithm.log, np.log, 1e-30, 1e-20, 2, 0),
        (logarithm.log, np.log, 1e-6, 3, 2, 0),
        (logarithm.log, np.log, 0.9, 1.1, 2, 0),
        (logarithm.log, np.log, 1, 3e38, 2, 0),
        (trigonometry.sin, np.sin, -10, 10, 2, 1e-9),
        (trigonometry.sin, np.sin, -1e8, 1e8, 2, 1e-9),
        (trigonometry.cos, np.cos, -10, 10, 2, 1e-9),
        (trigonometry.cos, np.cos, -1e8, 1e8, 2, 1e-9),
        (trigonometry.tan, np.tan, -10, 10, 5, 1e-9),
        (trigonometry.atan, np.arctan, -10, 10, 3, 0),
        (trigonometry.atan, np.arctan, -1e30, 1e30, 3, 0),
        (trigonometry.asin, np.arcsin, -1, 1, 4, 0),
        (trigonometry.acos, np.arccos, -1, 1, 4, 0),
    ],
)
def test_functions(
    target: Target,
    function: Vectors,
    exact: Callable[[Exact], Exact],
    low: float,
    high: float,
    allowed_ulps: float,
    allowed: float,
) -> None:
    """No result is further off than the function's description says."""
    x = spread(low, high)[:-4]
    want = exact(x.astype(np.float64))
    got = apply(lambda f, v: function(f, target, v), x)
    far = np.abs(got.astype(np.float64) - want) > allowed
    assert far.any()
    assert ulps(got, want)[far].max() <= allowed_ulps


SAMPLE: Floats = np.arange(0, 1 << 32, 32_771, dtype=np.uint64).astype(np.uint32).view(np.float32)
"""Floats of every sign and magnitude."""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("function", "exact", "allowed_ulps", "allowed", "largest"),
    [
        (elementary.exp, np.exp, 1, 0, np.inf),
        (elementary.sigmoid, special.expit, 3, 0, np.inf),
        (elementary.tanh, np.tanh, 3, 0, np.inf),
        (elementary.erf, special.erf, 3, 0, np.inf),
        (logarithm.log, np.log, 2, 0, np.inf),
        (trigonometry.sin, np.sin, 2, 1e-9, trigonometry.MAX_ANGLE),
        (trigonometry.cos, np.cos, 2, 1e-9, trigonometry.MAX_ANGLE),
        (trigonometry.tan, np.tan, 5, 1e-9, trigonometry.MAX_ANGLE),
        (trigonometry.atan, np.arctan, 3, 0, np.inf),
        (trigonometry.asin, np.arcsin, 4, 0, 1),
        (trigonometry.acos, np.arccos, 4, 0, 1),
    ],
)
def test_every_magnitude(
    target: Target,
    function: Vectors,
    exact: Callable[[Exact], Exact],
    allowed_ulps: float,
    allowed: float,
    largest: float,
) -> None:
    """Wherever the exact result is a normal number, no result is further off than the function's description says."""
    x = SAMPLE[np.abs(SAMPLE) <= largest]
    with np.errstate(all="ignore"):
        want = exact(x.astype(np.float64))
        is_normal = (np.abs(want) >= np.finfo(np.float32).tiny) & (np.abs(want) <= np.finfo(np.float32).max)
        got = apply(lambda f, v: function(f, target, v), x)
        judged = is_normal & ~(np.abs(got.astype(np.float64) - want) <= allowed)
        assert judged.sum() > 10_000
        assert ulps(got, want)[judged].max() <= allowed_ulps


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("exponent", [-10, -1 / 3, 0.01, 0.5, 1.1, 2.0, 5.0, 30.0, 1e4])
def test_power_of_every_magnitude(target: Target, exponent: float) -> None:
    """And close to 1, where great exponents enlarge what a logarithm is wrong by."""
    x = np.concatenate([SAMPLE[SAMPLE > 0], np.linspace(0.99, 1.01, 20_000, dtype=np.float32)])
    with np.errstate(all="ignore"):
        want = x.astype(np.float64) ** np.float64(np.float32(exponent))
    keep = (want < 3e38) & (want > 1.2e-38)
    got = apply(lambda f, v: logarithm.power(f, target, v, f32x4.const(exponent)), x[keep])
    assert ulps(got, want[keep]).max() <= 2


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("function", "reference"),
    [
        (elementary.tanh, np.tanh),
        (elementary.erf, special.erf),
        (elementary.sigmoid, special.expit),
        (logarithm.log, np.log),
        (trigonometry.atan, np.arctan),
        (trigonometry.asin, np.arcsin),
        (trigonometry.acos, np.arccos),
        (trigonometry.sin, np.sin),
    ],
)
def test_special_values(target: Target, function: Vectors, reference: Callable[[Exact], Exact]) -> None:
    """Zeros, infinities, NaN, subnormal and very large numbers are what numpy makes of them."""
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3e38, -3e38, 1.0, -1.0, 2.0], np.float32)
    if function is trigonometry.sin:
        x = x[np.abs(x) < 1e30]
    with np.errstate(all="ignore"):
        want = reference(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(apply(lambda f, v: function(f, target, v), x), want, rtol=1e-6, atol=2e-38)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("function", [trigonometry.sin, trigonometry.cos])
def test_angles_that_are_too_large(target: Target, function: Vectors) -> None:
    """What comes of them is some number from -1 to 1; of infinity and NaN, none."""
    sizes = np.geomspace(1e8, 3.4e38, 4000).astype(np.float32)
    x = np.concatenate([sizes, -sizes])
    assert np.abs(apply(lambda f, v: function(f, target, v), x)).max() <= 1
    nothing = np.array([np.inf, -np.inf, np.nan, np.nan], np.float32)
    assert np.isnan(apply(lambda f, v: function(f, target, v), nothing)).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("exponent", [-3.5, -2.0, -0.5, 0.5, 1.0, 2.0, 3.0, 7.25, 30.0])
def test_power(target: Target, exponent: float) -> None:
    """At most 2 ULP off wherever the result is normal."""
    x = np.concatenate([spread(1e-3, 3.0, 60_000), spread(3.0, 1e3, 60_000)])
    x = x[x > 0]
    want = x.astype(np.float64) ** exponent
    keep = (want < 3e38) & (want > 1.2e-38)
    got = apply(lambda f, v: logarithm.power(f, target, v, f32x4.const(exponent)), x)
    assert ulps(got[keep], want[keep]).max() <= 2


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("exponent", [-np.inf, -3.0, -2.5, -2.0, -0.0, 0.0, 0.75, 1.0, 2.0, 3.0, 1e10, np.inf, np.nan])
def test_power_of_special_values(target: Target, exponent: float) -> None:
    """Signs, zeros, infinities and NaN as in C."""
    x = np.array([0, -0.0, 1, -1, 2, -2, 0.5, -0.5, np.inf, -np.inf, np.nan, 1e-40, -3], np.float32)
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), exponent).astype(np.float32)
    got = apply(lambda f, v: logarithm.power(f, target, v, f32x4.const(exponent)), x)
    np.testing.assert_allclose(got, want, rtol=1e-6)
