"""Logarithms and powers on four floats at a time, with their greatest error beside each."""

from typing import Final

from compiler.kernels.elementary import horner
from compiler.kernels.target import Target
from compiler.wasm import V128, Function, V128Local, f32x4, f64x2, i8x16, i32, i32x4, i64x2, v128

_LN2_HIGH: Final = 0.693359375
_LN2_LOW: Final = -2.12194440e-4
# log(1 + t) = t - t**2 / 2 + t**3 * (…) from sqrt(1/2) to sqrt(2); the greatest relative error is 7.5e-10.
_LOG: Final = (
    0.06748566031455994,
    -0.11678946763277054,
    0.11889107525348663,
    -0.12405148893594742,
    0.1421937644481659,
    -0.16668012738227844,
    0.20002126693725586,
    -0.25000008940696716,
    0.3333331346511841,
)
# 2**r = 1 + r * (…) on |r| <= 1/2; the greatest relative error is 2.0e-9.
_EXP2: Final = (
    0.00015353309572674334,
    0.0013398939045146108,
    0.009618437848985195,
    0.055503323674201965,
    0.24022647738456726,
    0.6931471824645996,
)
_SQRT_HALF_BITS: Final = 0x3F3504F3
_SMALLEST_NORMAL: Final = 1.1754943508222875e-38
_NAN: Final = float("nan")
_INF: Final = float("inf")


def log(f: Function, target: Target, x: V128) -> V128:
    """Return the natural logarithm, at most 2 ULP off; minus infinity for 0, NaN for negative numbers."""
    kept, scaled, exponent, t, square = f.v128(), f.v128(), f.v128(), f.v128(), f.v128()
    kept.set(x)
    is_subnormal = f32x4.lt(kept, f32x4.const(_SMALLEST_NORMAL))
    scaled.set(v128.bitselect(f32x4.mul(kept, f32x4.const(2.0**23)), kept, is_subnormal))
    # The bits of sqrt(1/2) are taken off, so that the exponent is that of a factor from sqrt(1/2) to sqrt(2).
    exponent.set(i32x4.shr_s(i32x4.sub(scaled, i32x4.const(_SQRT_HALF_BITS)), i32.const(23)))
    t.set(f32x4.sub(i32x4.sub(scaled, i32x4.shl(exponent, i32.const(23))), f32x4.const(1.0)))
    exponent.set(
        f32x4.sub(
            f32x4.convert_i32x4_s(exponent),
            v128.and_(f32x4.lt(kept, f32x4.const(_SMALLEST_NORMAL)), f32x4.const(23.0)),
        )
    )
    square.set(f32x4.mul(t, t))
    low = target.madd(exponent, f32x4.const(_LN2_LOW), f32x4.mul(f32x4.mul(horner(target, t, _LOG), t), square))
    low = target.madd(square, f32x4.const(-0.5), low)
    result = f.v128()
    result.set(target.madd(exponent, f32x4.const(_LN2_HIGH), f32x4.add(low, t)))
    return _with_log_limits(result, kept)


def _with_log_limits(result: V128, x: V128Local) -> V128:
    """Return logarithms with those of 0, infinity, NaN and negative numbers put right."""
    at_zero = v128.bitselect(f32x4.const(-_INF), result, f32x4.eq(x, f32x4.const(0.0)))
    ordinary = v128.and_(f32x4.ge(x, f32x4.const(0.0)), f32x4.lt(x, f32x4.const(_INF)))
    at_end = v128.bitselect(x, f32x4.const(_NAN), f32x4.gt(x, f32x4.const(0.0)))
    return v128.bitselect(at_zero, at_end, ordinary)


def power(f: Function, target: Target, x: V128, y: V128) -> V128:
    """Return x**y, at most 2 ULP off where the result is normal; as C's `pow` for every special value.

    The logarithm is computed in 64 bits, because its error is multiplied by `y`.
    """
    base, exponent, halves = f.v128(), f.v128(), []
    base.set(x)
    exponent.set(y)
    for lanes in ((0, 1, 0, 1), (2, 3, 2, 3)):
        half = f.v128()
        size = f64x2.promote_low_f32x4(i8x16.shuffle_words(f32x4.abs_(base), f32x4.const(0.0), lanes))
        factor = f64x2.promote_low_f32x4(i8x16.shuffle_words(exponent, exponent, lanes))
        half.set(f64x2.mul(_log2(f, size), factor))
        # Beyond these bounds the result is 0 or infinity; NaN stays, as the first operand.
        half.set(f64x2.pmin(f64x2.pmax(half, f64x2.const(-200.0)), f64x2.const(200.0)))
        halves.append(half)
    multiples = [f.v128() for _ in halves]
    for multiple, half in zip(multiples, halves, strict=True):
        multiple.set(f64x2.nearest(half))
    rest, whole, shift = f.v128(), f.v128(), f.v128()
    rest.set(_join([f32x4.demote_f64x2_zero(f64x2.sub(h, m)) for h, m in zip(halves, multiples, strict=True)]))
    whole.set(_join([i32x4.trunc_sat_f64x2_s_zero(multiple) for multiple in multiples]))
    shift.set(i32x4.shr_s(whole, i32.const(1)))
    result = f.v128()
    result.set(target.madd(horner(target, rest, _EXP2), rest, f32x4.const(1.0)))
    result.set(f32x4.mul(f32x4.mul(result, _scale(shift)), _scale(i32x4.sub(whole, shift))))
    return _with_power_limits(f, result, base, exponent)


def _join(halves: list[V128]) -> V128:
    return i8x16.shuffle_words(halves[0], halves[1], (0, 1, 4, 5))


def _scale(exponent: V128) -> V128:
    return i32x4.shl(i32x4.add(exponent, i32x4.const(127)), i32.const(23))


def _log2(f: Function, x: V128) -> V128:
    """Return the logarithm to base 2 of two numbers in 64 bits that are 0 or more; its error is below 1e-10.

    By the series of the area hyperbolic tangent: log m = 2 (s + s**3 / 3 + …), s = (m - 1) / (m + 1).
    """
    kept, exponent, s, square = f.v128(), f.v128(), f.v128(), f.v128()
    kept.set(x)
    sqrt_half = i64x2.const(0x3FE6A09E667F3BCD)
    exponent.set(i64x2.shr_s(i64x2.sub(kept, sqrt_half), i32.const(52)))
    mantissa = f.v128()
    mantissa.set(i64x2.sub(kept, i64x2.shl(exponent, i32.const(52))))
    s.set(f64x2.div(f64x2.sub(mantissa, f64x2.const(1.0)), f64x2.add(mantissa, f64x2.const(1.0))))
    square.set(f64x2.mul(s, s))
    series = f64x2.const(1 / 13)
    for odd in (11, 9, 7, 5, 3, 1):
        series = f64x2.add(f64x2.mul(series, square), f64x2.const(1 / odd))
    whole = f64x2.convert_low_i32x4_s(i8x16.shuffle_words(exponent, exponent, (0, 2, 0, 2)))
    result = f.v128()
    result.set(f64x2.add(whole, f64x2.mul(f64x2.mul(series, s), f64x2.const(2 / 0.6931471805599453))))
    result.set(v128.bitselect(f64x2.const(-_INF), result, f64x2.eq(kept, f64x2.const(0.0))))
    is_finite = f64x2.lt(kept, f64x2.const(_INF))
    return v128.bitselect(result, kept, is_finite)


def _with_power_limits(f: Function, result: V128Local, x: V128Local, y: V128Local) -> V128:
    """Return powers with the signs of negative bases and the cases put right that no arithmetic gives."""
    is_odd, is_whole, one = f.v128(), f.v128(), f32x4.const(1.0)
    is_whole.set(f32x4.eq(f32x4.trunc(y), y))
    half = f32x4.mul(y, f32x4.const(0.5))
    is_odd.set(v128.andnot(is_whole, f32x4.eq(f32x4.trunc(half), half)))
    result.set(v128.xor(result, v128.and_(v128.and_(x, is_odd), f32x4.const(-0.0))))
    is_lost = v128.andnot(v128.and_(f32x4.lt(x, f32x4.const(0.0)), f32x4.gt(x, f32x4.const(-_INF))), is_whole)
    result.set(v128.bitselect(f32x4.const(_NAN), result, is_lost))
    is_one = v128.or_(f32x4.eq(x, one), f32x4.eq(y, f32x4.const(0.0)))
    # (-1)**infinity is 1 as well; arithmetic gives 0 * infinity.
    is_one = v128.or_(is_one, v128.and_(f32x4.eq(f32x4.abs_(x), one), f32x4.eq(f32x4.abs_(y), f32x4.const(_INF))))
    return v128.bitselect(one, result, is_one)
