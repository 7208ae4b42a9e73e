"""Sine, cosine, tangent and their inverses on four floats at a time, with their greatest error beside each."""

import math
from typing import Final

from compiler.kernels.elementary import horner, with_sign
from compiler.kernels.target import Target
from compiler.wasm import V128, Function, V128Local, f32x4, f64x2, i8x16, i32, i32x4, v128

# sin(r) = r + r**3 * (…) and cos(r) = 1 - r**2 / 2 + r**4 * (…) on |r| <= pi / 4; errors below 4e-9.
_SIN: Final = (-0.0001951664307853207, 0.008332173340022564, -0.16666655242443085)
_COS: Final = (2.4437715183012187e-05, -0.001388736185617745, 0.04166664555668831)
# atan(t) = t + t**3 * (…) for t <= tan(pi / 8), asin(t) = t + t**3 * (…) for t <= 1/2; errors below 1e-9.
_ATAN: Final = (
    -0.060810454189777374,
    0.1059509813785553,
    -0.14243733882904053,
    0.1999848335981369,
    -0.33333316445350647,
)
_ASIN: Final = (
    0.03759894147515297,
    0.014379681088030338,
    0.03182336315512657,
    0.04451506957411766,
    0.07500514388084412,
    0.16666659712791443,
)
_HALF_PI: Final = math.pi / 2
MAX_ANGLE: Final = 1e8
"""Up to here the error is as stated beside each function; the result for larger angles is some number from -1 to 1."""


def sin(f: Function, target: Target, x: V128) -> V128:
    """Return the sine, at most 2 ULP off, or 1e-9 near its zeros."""
    rest, quadrant = _reduce(f, x)
    return _sin_or_cos(f, target, rest, quadrant)


def cos(f: Function, target: Target, x: V128) -> V128:
    """Return the cosine, at most 2 ULP off, or 1e-9 near its zeros."""
    rest, quadrant = _reduce(f, x)
    quadrant.set(i32x4.add(quadrant, i32x4.const(1)))
    return _sin_or_cos(f, target, rest, quadrant)


def tan(f: Function, target: Target, x: V128) -> V128:
    """Return the tangent, at most 5 ULP off, or 1e-9 near its zeros."""
    rest, quadrant = _reduce(f, x)
    sine = f.v128()
    sine.set(_sin_or_cos(f, target, rest, quadrant))
    quadrant.set(i32x4.add(quadrant, i32x4.const(1)))
    return f32x4.div(sine, _sin_or_cos(f, target, rest, quadrant))


def atan(f: Function, target: Target, x: V128) -> V128:
    """Return the inverse of the tangent, at most 3 ULP off. Ranges after Cephes."""
    kept, size, is_large, is_middle, t, square = (f.v128() for _ in range(6))
    one = f32x4.const(1.0)
    kept.set(x)
    size.set(f32x4.abs_(kept))
    is_large.set(f32x4.gt(size, f32x4.const(math.tan(3 * math.pi / 8))))
    is_middle.set(v128.andnot(f32x4.gt(size, f32x4.const(math.tan(math.pi / 8))), is_large))
    # -1 / size where it is large, (size - 1) / (size + 1) in the middle, size / 1 where it is small
    top = v128.bitselect(f32x4.const(-1.0), f32x4.sub(size, v128.and_(is_middle, one)), is_large)
    bottom = v128.bitselect(size, v128.bitselect(f32x4.add(size, one), one, is_middle), is_large)
    t.set(f32x4.div(top, bottom))
    square.set(f32x4.mul(t, t))
    angle = target.madd(f32x4.mul(horner(target, square, _ATAN), square), t, t)
    start = v128.or_(v128.and_(is_large, f32x4.const(_HALF_PI)), v128.and_(is_middle, f32x4.const(math.pi / 4)))
    return with_sign(f32x4.add(start, angle), kept)


def asin(f: Function, target: Target, x: V128) -> V128:
    """Return the inverse of the sine, at most 4 ULP off; NaN beyond 1."""
    kept = f.v128()
    kept.set(x)
    angle, is_large = _asin_of_size(f, target, kept)
    result = v128.bitselect(f32x4.sub(f32x4.const(_HALF_PI), angle), angle, is_large)
    return with_sign(result, kept)


def acos(f: Function, target: Target, x: V128) -> V128:
    """Return the inverse of the cosine, at most 4 ULP off; NaN beyond 1."""
    kept, signed = f.v128(), f.v128()
    kept.set(x)
    angle, is_large = _asin_of_size(f, target, kept)
    signed.set(with_sign(angle, kept))
    # Where |x| is large, the angle is that of its distance from 1 already.
    from_pi = f32x4.sub(f32x4.const(math.pi), angle)
    near_one = v128.bitselect(from_pi, angle, f32x4.lt(kept, f32x4.const(0.0)))
    return v128.bitselect(near_one, f32x4.sub(f32x4.const(_HALF_PI), signed), is_large)


def _asin_of_size(f: Function, target: Target, x: V128Local) -> tuple[V128Local, V128Local]:
    """Return asin(|x|) where |x| <= 1/2, elsewhere pi/2 - asin(|x|), and where that is."""
    size, is_large, square, t, angle = (f.v128() for _ in range(5))
    size.set(f32x4.abs_(x))
    is_large.set(f32x4.gt(size, f32x4.const(0.5)))
    distance = f32x4.mul(f32x4.sub(f32x4.const(1.0), size), f32x4.const(0.5))
    square.set(v128.bitselect(distance, f32x4.mul(size, size), is_large))
    t.set(v128.bitselect(f32x4.sqrt(square), size, is_large))
    angle.set(target.madd(f32x4.mul(horner(target, square, _ASIN), square), t, t))
    # asin(|x|) = pi/2 - 2 asin(sqrt((1 - |x|) / 2))
    angle.set(v128.bitselect(f32x4.add(angle, angle), angle, is_large))
    return angle, is_large


def _reduce(f: Function, x: V128) -> tuple[V128Local, V128Local]:
    """Return r and n, where x = r + n * pi/2 and |r| <= pi/4. Computed in 64 bits, so that nothing cancels."""
    kept, rests, numbers = f.v128(), [], []
    kept.set(x)
    for lanes in ((0, 1, 0, 1), (2, 3, 2, 3)):
        wide, multiple = f.v128(), f.v128()
        wide.set(f64x2.promote_low_f32x4(i8x16.shuffle_words(kept, kept, lanes)))
        multiple.set(f64x2.nearest(f64x2.mul(wide, f64x2.const(1 / _HALF_PI))))
        rest = f64x2.sub(f64x2.sub(wide, f64x2.mul(multiple, f64x2.const(_HALF_PI_HIGH))), _low_part(multiple))
        rests.append(f32x4.demote_f64x2_zero(rest))
        numbers.append(i32x4.trunc_sat_f64x2_s_zero(multiple))
    rest, number = f.v128(), f.v128()
    shuffled = i8x16.shuffle_words(rests[0], rests[1], (0, 1, 4, 5))
    # Of angles that are too large nothing is left of the rest: it must not leave the range of the polynomials.
    rest.set(f32x4.max_(f32x4.min_(shuffled, f32x4.const(_MOST)), f32x4.const(-_MOST)))
    number.set(i8x16.shuffle_words(numbers[0], numbers[1], (0, 1, 4, 5)))
    return rest, number


_HALF_PI_HIGH: Final = 1.5707963109016418
"""pi/2 with 26 bits, so that its product with a number of 27 bits is exact."""
_MOST: Final = 0.79
"""A little more than pi/4, for roundings."""
_HALF_PI_LOW: Final = 1.5893254773528196e-08


def _low_part(multiple: V128) -> V128:
    return f64x2.mul(multiple, f64x2.const(_HALF_PI_LOW))


def _sin_or_cos(f: Function, target: Target, rest: V128Local, quadrant: V128Local) -> V128:
    """Return the sine of rest + quadrant * pi/2."""
    square, is_odd, result = f.v128(), f.v128(), f.v128()
    square.set(f32x4.mul(rest, rest))
    sine = target.madd(f32x4.mul(horner(target, square, _SIN), square), rest, rest)
    cosine = f32x4.mul(f32x4.mul(horner(target, square, _COS), square), square)
    cosine = f32x4.add(f32x4.const(1.0), target.madd(square, f32x4.const(-0.5), cosine))
    is_odd.set(i32x4.eq(v128.and_(quadrant, i32x4.const(1)), i32x4.const(1)))
    result.set(v128.bitselect(cosine, sine, is_odd))
    is_negative = i32x4.shl(v128.and_(quadrant, i32x4.const(2)), i32.const(30))
    return v128.xor(result, is_negative)
