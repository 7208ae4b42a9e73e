"""The vector instructions: fixed-width SIMD, and relaxed SIMD from opcode 0x100 on.

Source: WebAssembly Core Specification, section 5.4.8 (vector instructions), and the relaxed SIMD proposal.
"""

from collections.abc import Iterator
from typing import Final

from compiler.wasm.opcode import FIRST_RELAXED, SIMD_PREFIX, Immediate, Opcode, opcodes, suffixed

_INTEGER_COMPARE = "eq ne lt_s lt_u gt_s gt_u le_s le_u ge_s ge_u"
_FLOAT_COMPARE = "eq ne lt gt le ge"
_FLOAT_BINARY = "add sub mul div min max pmin pmax"


def _simd(
    first: int, signature: str, names: str, shape: str = "", immediate: Immediate = Immediate.NONE
) -> Iterator[Opcode]:
    return opcodes(SIMD_PREFIX, first, signature, suffixed(shape, names) if shape else names, immediate)


def _memory() -> Iterator[Opcode]:
    extending = "load load8x8_s load8x8_u load16x4_s load16x4_u load32x2_s load32x2_u"
    yield from _simd(0, "i:v", extending, "v128", Immediate.MEMORY)
    yield from _simd(7, "i:v", "load8_splat load16_splat load32_splat load64_splat", "v128", Immediate.MEMORY)
    yield from _simd(11, "iv:", "store", "v128", Immediate.MEMORY)
    yield from _simd(84, "iv:v", "load8_lane load16_lane load32_lane load64_lane", "v128", Immediate.MEMORY_LANE)
    yield from _simd(88, "iv:", "store8_lane store16_lane store32_lane store64_lane", "v128", Immediate.MEMORY_LANE)
    yield from _simd(92, "i:v", "load32_zero load64_zero", "v128", Immediate.MEMORY)


def _lanes() -> Iterator[Opcode]:
    yield from _simd(12, ":v", "const", "v128", Immediate.BYTES_16)
    yield from _simd(13, "vv:v", "shuffle", "i8x16", Immediate.BYTES_16)
    yield from _simd(14, "vv:v", "swizzle", "i8x16")
    yield from _simd(15, "i:v", "i8x16.splat i16x8.splat i32x4.splat")
    yield from _simd(18, "l:v", "i64x2.splat")
    yield from _simd(19, "f:v", "f32x4.splat")
    yield from _simd(20, "d:v", "f64x2.splat")
    for number, letter, shape, signs in (
        (21, "i", "i8x16", ("_s", "_u")),
        (24, "i", "i16x8", ("_s", "_u")),
        (27, "i", "i32x4", ("",)),
        (29, "l", "i64x2", ("",)),
        (31, "f", "f32x4", ("",)),
        (33, "d", "f64x2", ("",)),
    ):
        extract = " ".join(f"extract_lane{sign}" for sign in signs)
        yield from _simd(number, f"v:{letter}", extract, shape, Immediate.LANE)
        yield from _simd(number + len(signs), f"v{letter}:v", "replace_lane", shape, Immediate.LANE)


def _compare_and_bits() -> Iterator[Opcode]:
    yield from _simd(35, "vv:v", _INTEGER_COMPARE, "i8x16")
    yield from _simd(45, "vv:v", _INTEGER_COMPARE, "i16x8")
    yield from _simd(55, "vv:v", _INTEGER_COMPARE, "i32x4")
    yield from _simd(65, "vv:v", _FLOAT_COMPARE, "f32x4")
    yield from _simd(71, "vv:v", _FLOAT_COMPARE, "f64x2")
    yield from _simd(214, "vv:v", "eq ne lt_s gt_s le_s ge_s", "i64x2")
    yield from _simd(77, "v:v", "not", "v128")
    yield from _simd(78, "vv:v", "and andnot or xor", "v128")
    yield from _simd(82, "vvv:v", "bitselect", "v128")
    yield from _simd(83, "v:i", "any_true", "v128")


def _narrow_integers() -> Iterator[Opcode]:
    """Lanes of 8 and 16 bits."""
    yield from _simd(96, "v:v", "abs neg popcnt", "i8x16")
    yield from _simd(99, "v:i", "all_true bitmask", "i8x16")
    yield from _simd(101, "vv:v", "narrow_i16x8_s narrow_i16x8_u", "i8x16")
    yield from _simd(107, "vi:v", "shl shr_s shr_u", "i8x16")
    yield from _simd(110, "vv:v", "add add_sat_s add_sat_u sub sub_sat_s sub_sat_u", "i8x16")
    yield from _simd(118, "vv:v", "min_s min_u max_s max_u", "i8x16")
    yield from _simd(123, "vv:v", "avgr_u", "i8x16")
    yield from _simd(124, "v:v", "extadd_pairwise_i8x16_s extadd_pairwise_i8x16_u", "i16x8")
    yield from _simd(128, "v:v", "abs neg", "i16x8")
    yield from _simd(130, "vv:v", "q15mulr_sat_s", "i16x8")
    yield from _simd(131, "v:i", "all_true bitmask", "i16x8")
    yield from _simd(133, "vv:v", "narrow_i32x4_s narrow_i32x4_u", "i16x8")
    yield from _simd(135, "v:v", _extend("i8x16"), "i16x8")
    yield from _simd(139, "vi:v", "shl shr_s shr_u", "i16x8")
    yield from _simd(142, "vv:v", "add add_sat_s add_sat_u sub sub_sat_s sub_sat_u", "i16x8")
    yield from _simd(149, "vv:v", "mul min_s min_u max_s max_u", "i16x8")
    yield from _simd(155, "vv:v", f"avgr_u {_extmul('i8x16')}", "i16x8")


def _wide_integers() -> Iterator[Opcode]:
    """Lanes of 32 and 64 bits."""
    yield from _simd(126, "v:v", "extadd_pairwise_i16x8_s extadd_pairwise_i16x8_u", "i32x4")
    for first, shape, narrow in ((160, "i32x4", "i16x8"), (192, "i64x2", "i32x4")):
        yield from _simd(first, "v:v", "abs neg", shape)
        yield from _simd(first + 3, "v:i", "all_true bitmask", shape)
        yield from _simd(first + 7, "v:v", _extend(narrow), shape)
        yield from _simd(first + 11, "vi:v", "shl shr_s shr_u", shape)
        yield from _simd(first + 14, "vv:v", "add", shape)
        yield from _simd(first + 17, "vv:v", "sub", shape)
        yield from _simd(first + 21, "vv:v", "mul", shape)
        yield from _simd(first + 28, "vv:v", _extmul(narrow), shape)
    yield from _simd(182, "vv:v", "min_s min_u max_s max_u dot_i16x8_s", "i32x4")


def _floats() -> Iterator[Opcode]:
    yield from _simd(103, "v:v", "ceil floor trunc nearest", "f32x4")
    yield from _simd(116, "v:v", "ceil floor", "f64x2")
    yield from _simd(122, "v:v", "trunc", "f64x2")
    yield from _simd(148, "v:v", "nearest", "f64x2")
    for first, shape in ((224, "f32x4"), (236, "f64x2")):
        yield from _simd(first, "v:v", "abs neg", shape)
        yield from _simd(first + 3, "v:v", "sqrt", shape)
        yield from _simd(first + 4, "vv:v", _FLOAT_BINARY, shape)
    yield from _simd(94, "v:v", "f32x4.demote_f64x2_zero f64x2.promote_low_f32x4")
    yield from _simd(248, "v:v", "i32x4.trunc_sat_f32x4_s i32x4.trunc_sat_f32x4_u")
    yield from _simd(250, "v:v", "f32x4.convert_i32x4_s f32x4.convert_i32x4_u")
    yield from _simd(252, "v:v", "i32x4.trunc_sat_f64x2_s_zero i32x4.trunc_sat_f64x2_u_zero")
    yield from _simd(254, "v:v", "f64x2.convert_low_i32x4_s f64x2.convert_low_i32x4_u")


def _relaxed() -> Iterator[Opcode]:
    first = FIRST_RELAXED
    yield from _simd(first, "vv:v", "relaxed_swizzle", "i8x16")
    yield from _simd(first + 1, "v:v", "relaxed_trunc_f32x4_s relaxed_trunc_f32x4_u", "i32x4")
    yield from _simd(first + 3, "v:v", "relaxed_trunc_f64x2_s_zero relaxed_trunc_f64x2_u_zero", "i32x4")
    yield from _simd(first + 5, "vvv:v", "relaxed_madd relaxed_nmadd", "f32x4")
    yield from _simd(first + 7, "vvv:v", "relaxed_madd relaxed_nmadd", "f64x2")
    for number, shape in enumerate(("i8x16", "i16x8", "i32x4", "i64x2"), first + 9):
        yield from _simd(number, "vvv:v", "relaxed_laneselect", shape)
    yield from _simd(first + 13, "vv:v", "relaxed_min relaxed_max", "f32x4")
    yield from _simd(first + 15, "vv:v", "relaxed_min relaxed_max", "f64x2")
    yield from _simd(first + 17, "vv:v", "relaxed_q15mulr_s relaxed_dot_i8x16_i7x16_s", "i16x8")
    yield from _simd(first + 19, "vvv:v", "relaxed_dot_i8x16_i7x16_add_s", "i32x4")


def _extend(narrow: str) -> str:
    return f"extend_low_{narrow}_s extend_high_{narrow}_s extend_low_{narrow}_u extend_high_{narrow}_u"


def _extmul(narrow: str) -> str:
    return f"extmul_low_{narrow}_s extmul_high_{narrow}_s extmul_low_{narrow}_u extmul_high_{narrow}_u"


SIMD: Final = (
    *_memory(),
    *_lanes(),
    *_compare_and_bits(),
    *_narrow_integers(),
    *_wide_integers(),
    *_floats(),
    *_relaxed(),
)
