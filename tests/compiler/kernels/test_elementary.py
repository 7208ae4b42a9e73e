"""Elementary functions over their whole range, against the same in 64 bits."""

import numpy as np
import pytest

from compiler.kernels import elementary
from compiler.kernels.target import Target
from tests.compiler.elementwise import Floats, apply, ulps

TARGETS = list(Target)


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
