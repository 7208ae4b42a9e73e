"""Elementary functions on four floats at a time, with their greatest error beside each.

The error is in units in the last place (ULP) of the exact result, found by the tests over the whole range.
"""

from typing import Final

from compiler.kernels.target import Target
from compiler.wasm import V128, Function, V128Local, f32x4, i32, i32x4

_LOG2_E: Final = 1.4426950408889634
# ln 2 in two parts; the first has 16 bits, so that its product with any exponent is exact (Cody and Waite, 1980).
_LN2_HIGH: Final = 0.693145751953125
_LN2_LOW: Final = 1.428606765330187e-06
# exp(r) = 1 + r + r**2 * (…) on |r| <= ln(2) / 2; the greatest relative error of the polynomial is 3.1e-9.
_EXP: Final = (
    0.0013814539415761828,
    0.00836874544620514,
    0.04166838899254799,
    0.1666652113199234,
    0.4999999403953552,
)
_EXPONENT_BIAS: Final = 127
_MANTISSA_BITS: Final = 23

EXP_MIN: Final = -87.33654
"""The natural logarithm of the smallest normal number."""


def exp(f: Function, target: Target, x: V128) -> V128:
    """Return e**x of any four floats, at most 1 ULP off where the result is normal.

    0 and infinity where it is too small or too large, NaN for NaN.
    """
    clamped = f.v128()
    # pmin and pmax return their first operand when one is NaN. Beyond these bounds the result is 0 or infinity.
    clamped.set(f32x4.pmin(f32x4.pmax(x, f32x4.const(-104.0)), f32x4.const(89.0)))
    power, exponent = _reduced_exp(f, target, clamped)
    # 2**exponent in two factors, because the exponent alone may not fit a float while the product does.
    half = f.v128()
    half.set(i32x4.shr_s(exponent, i32.const(1)))
    return f32x4.mul(f32x4.mul(power, _power_of_two(half)), _power_of_two(i32x4.sub(exponent, half)))


def exp_nonpositive(f: Function, target: Target, x: V128) -> V128:
    """Return e**x of four floats that are 0 or less, at most 1 ULP off from EXP_MIN on, below it 1.2e-38."""
    clamped = f.v128()
    clamped.set(f32x4.pmax(x, f32x4.const(EXP_MIN)))
    power, exponent = _reduced_exp(f, target, clamped)
    return f32x4.mul(power, _power_of_two(exponent))


def _reduced_exp(f: Function, target: Target, x: V128Local) -> tuple[V128, V128Local]:
    """Return e**r and n, where x = r + n * ln 2 and |r| is at most half of ln 2."""
    multiple, exponent, r = f.v128(), f.v128(), f.v128()
    multiple.set(f32x4.nearest(f32x4.mul(x, f32x4.const(_LOG2_E))))
    r.set(target.nmadd(multiple, f32x4.const(_LN2_HIGH), x))
    r.set(target.nmadd(multiple, f32x4.const(_LN2_LOW), r))
    exponent.set(target.truncate(multiple))
    polynomial = f32x4.const(_EXP[0])
    for coefficient in _EXP[1:]:
        polynomial = target.madd(polynomial, r, f32x4.const(coefficient))
    polynomial = target.madd(f32x4.mul(polynomial, r), r, r)
    return f32x4.add(polynomial, f32x4.const(1.0)), exponent


def _power_of_two(exponent: V128) -> V128:
    """Return 2.0**exponent for whole numbers from -126 to 127."""
    return i32x4.shl(i32x4.add(exponent, i32x4.const(_EXPONENT_BIAS)), i32.const(_MANTISSA_BITS))
