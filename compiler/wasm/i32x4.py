"""Instructions on four 32-bit integers, by the names of the WebAssembly text format."""

import struct

from compiler.wasm.expr import I32, V128
from compiler.wasm.instruction import (
    VECTOR_CONST,
    ExtractLane,
    ReplaceLane,
    unary,
    vector_binary,
    vector_shift,
    vector_ternary,
    vector_unary,
)

abs_ = vector_unary("i32x4.abs")
neg = vector_unary("i32x4.neg")
extadd_pairwise_i16x8_s = vector_unary("i32x4.extadd_pairwise_i16x8_s")
extadd_pairwise_i16x8_u = vector_unary("i32x4.extadd_pairwise_i16x8_u")
extend_low_i16x8_s = vector_unary("i32x4.extend_low_i16x8_s")
extend_high_i16x8_s = vector_unary("i32x4.extend_high_i16x8_s")
extend_low_i16x8_u = vector_unary("i32x4.extend_low_i16x8_u")
extend_high_i16x8_u = vector_unary("i32x4.extend_high_i16x8_u")
trunc_sat_f32x4_s = vector_unary("i32x4.trunc_sat_f32x4_s")
trunc_sat_f32x4_u = vector_unary("i32x4.trunc_sat_f32x4_u")
relaxed_trunc_f32x4_s = vector_unary("i32x4.relaxed_trunc_f32x4_s")
relaxed_trunc_f32x4_u = vector_unary("i32x4.relaxed_trunc_f32x4_u")
trunc_sat_f64x2_s_zero = vector_unary("i32x4.trunc_sat_f64x2_s_zero")
trunc_sat_f64x2_u_zero = vector_unary("i32x4.trunc_sat_f64x2_u_zero")
relaxed_trunc_f64x2_s_zero = vector_unary("i32x4.relaxed_trunc_f64x2_s_zero")
relaxed_trunc_f64x2_u_zero = vector_unary("i32x4.relaxed_trunc_f64x2_u_zero")
eq = vector_binary("i32x4.eq")
ne = vector_binary("i32x4.ne")
lt_s = vector_binary("i32x4.lt_s")
lt_u = vector_binary("i32x4.lt_u")
gt_s = vector_binary("i32x4.gt_s")
gt_u = vector_binary("i32x4.gt_u")
le_s = vector_binary("i32x4.le_s")
le_u = vector_binary("i32x4.le_u")
ge_s = vector_binary("i32x4.ge_s")
ge_u = vector_binary("i32x4.ge_u")
add = vector_binary("i32x4.add")
sub = vector_binary("i32x4.sub")
mul = vector_binary("i32x4.mul")
min_s = vector_binary("i32x4.min_s")
min_u = vector_binary("i32x4.min_u")
max_s = vector_binary("i32x4.max_s")
max_u = vector_binary("i32x4.max_u")
dot_i16x8_s = vector_binary("i32x4.dot_i16x8_s")
extmul_low_i16x8_s = vector_binary("i32x4.extmul_low_i16x8_s")
extmul_high_i16x8_s = vector_binary("i32x4.extmul_high_i16x8_s")
extmul_low_i16x8_u = vector_binary("i32x4.extmul_low_i16x8_u")
extmul_high_i16x8_u = vector_binary("i32x4.extmul_high_i16x8_u")
relaxed_laneselect = vector_ternary("i32x4.relaxed_laneselect")
relaxed_dot_i8x16_i7x16_add_s = vector_ternary("i32x4.relaxed_dot_i8x16_i7x16_add_s")
shl = vector_shift("i32x4.shl")
shr_s = vector_shift("i32x4.shr_s")
shr_u = vector_shift("i32x4.shr_u")
all_true = unary("i32x4.all_true", V128, I32)
bitmask = unary("i32x4.bitmask", V128, I32)
splat = unary("i32x4.splat", I32, V128)
extract_lane = ExtractLane("i32x4.extract_lane", I32)
replace_lane = ReplaceLane("i32x4.replace_lane", I32)


def const(*lanes: int) -> V128:
    """Return a constant: 4 lanes, or one for all of them."""
    mask = (1 << 32) - 1
    return V128(VECTOR_CONST + struct.pack("<4I", *(lane & mask for lane in (lanes * 4 if len(lanes) == 1 else lanes))))
