"""The exponential function and its relatives on four floats at a time, with their greatest error beside each.

The error is in units in the last place (ULP) of the exact result, found by the tests over the whole range.
"""

from collections.abc import Sequence
from typing import Final

from compiler.kernels.target import Target
from compiler.wasm import V128, Function, V128Local, f32x4, i32, i32x4, v128

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
# tanh(x) = x + x**3 * (…) for |x| < 0.625 (Cephes).
_TANH: Final = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
_TANH_SMALL: Final = 0.625
_ERF_SMALL: Final = (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1)
_ERF_LARGE: Final = (
    -1.72853470e-5,
    3.83197126e-4,
    -3.88396438e-3,
    2.42546219e-2,
    -1.06777877e-1,
    -6.34846687e-1,
    -1.28717512e-1,
)
_ERF_BORDER: Final = 0.927734375
_ERF_ONE: Final = 4.0
"""From here on the result is 1."""
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
    polynomial = horner(target, r, _EXP)
    polynomial = target.madd(f32x4.mul(polynomial, r), r, r)
    return f32x4.add(polynomial, f32x4.const(1.0)), exponent


def horner(target: Target, x: V128, coefficients: Sequence[float]) -> V128:
    """Return a polynomial in `x`; the coefficient of the highest power comes first."""
    result = f32x4.const(coefficients[0])
    for coefficient in coefficients[1:]:
        result = target.madd(result, x, f32x4.const(coefficient))
    return result


def with_sign(magnitude: V128, sign: V128) -> V128:
    """Return numbers that are not negative with the signs of others."""
    return v128.or_(magnitude, v128.and_(sign, f32x4.const(-0.0)))


def _power_of_two(exponent: V128) -> V128:
    """Return 2.0**exponent for whole numbers from -126 to 127."""
    return i32x4.shl(i32x4.add(exponent, i32x4.const(_EXPONENT_BIAS)), i32.const(_MANTISSA_BITS))


def sigmoid(f: Function, target: Target, x: V128) -> V128:
    """Return 1 / (1 + e**-x), at most 3 ULP off; results below 1.2e-38 are 1.2e-38."""
    kept, power = f.v128(), f.v128()
    kept.set(x)
    power.set(exp_nonpositive(f, target, v128.or_(kept, f32x4.const(-0.0))))
    # e**x / (1 + e**x) where x is negative: the power of the smaller number keeps its digits.
    top = v128.bitselect(power, f32x4.const(1.0), f32x4.lt(kept, f32x4.const(0.0)))
    return f32x4.div(top, f32x4.add(power, f32x4.const(1.0)))


def tanh(f: Function, target: Target, x: V128) -> V128:
    """Return the hyperbolic tangent, at most 3 ULP off."""
    kept, square, power, large = f.v128(), f.v128(), f.v128(), f.v128()
    kept.set(x)
    power.set(exp_nonpositive(f, target, f32x4.mul(v128.or_(kept, f32x4.const(-0.0)), f32x4.const(2.0))))
    large.set(f32x4.div(f32x4.sub(f32x4.const(1.0), power), f32x4.add(f32x4.const(1.0), power)))
    square.set(f32x4.mul(kept, kept))
    small = target.madd(f32x4.mul(horner(target, square, _TANH), square), kept, kept)
    is_small = f32x4.lt(square, f32x4.const(_TANH_SMALL**2))
    return v128.bitselect(small, with_sign(large, kept), is_small)


def erf(f: Function, target: Target, x: V128) -> V128:
    """Return the error function, at most 3 ULP off. After N. Juffa's `erff`."""
    kept, square, size, tail = f.v128(), f.v128(), f.v128(), f.v128()
    kept.set(x)
    square.set(f32x4.mul(kept, kept))
    size.set(f32x4.pmin(f32x4.abs_(kept), f32x4.const(_ERF_ONE)))
    # 1 - e**(polynomial - size), the polynomial in size.
    exponent = f32x4.sub(f32x4.mul(horner(target, size, _ERF_LARGE), size), size)
    tail.set(f32x4.sub(f32x4.const(1.0), exp_nonpositive(f, target, exponent)))
    small = target.madd(horner(target, square, _ERF_SMALL), kept, kept)
    is_small = f32x4.lt(square, f32x4.const(_ERF_BORDER**2))
    return v128.bitselect(small, with_sign(tail, kept), is_small)
