"""Instructions on eight 16-bit integers, by the names of the WebAssembly text format."""

from compiler.wasm.expr import I32, V128
from compiler.wasm.instruction import (
    ExtractLane,
    ReplaceLane,
    unary,
    vector_binary,
    vector_shift,
    vector_ternary,
    vector_unary,
)

abs_ = vector_unary("i16x8.abs")
neg = vector_unary("i16x8.neg")
extadd_pairwise_i8x16_s = vector_unary("i16x8.extadd_pairwise_i8x16_s")
extadd_pairwise_i8x16_u = vector_unary("i16x8.extadd_pairwise_i8x16_u")
extend_low_i8x16_s = vector_unary("i16x8.extend_low_i8x16_s")
extend_high_i8x16_s = vector_unary("i16x8.extend_high_i8x16_s")
extend_low_i8x16_u = vector_unary("i16x8.extend_low_i8x16_u")
extend_high_i8x16_u = vector_unary("i16x8.extend_high_i8x16_u")
q15mulr_sat_s = vector_binary("i16x8.q15mulr_sat_s")
relaxed_q15mulr_s = vector_binary("i16x8.relaxed_q15mulr_s")
relaxed_dot_i8x16_i7x16_s = vector_binary("i16x8.relaxed_dot_i8x16_i7x16_s")
eq = vector_binary("i16x8.eq")
ne = vector_binary("i16x8.ne")
lt_s = vector_binary("i16x8.lt_s")
lt_u = vector_binary("i16x8.lt_u")
gt_s = vector_binary("i16x8.gt_s")
gt_u = vector_binary("i16x8.gt_u")
le_s = vector_binary("i16x8.le_s")
le_u = vector_binary("i16x8.le_u")
ge_s = vector_binary("i16x8.ge_s")
ge_u = vector_binary("i16x8.ge_u")
narrow_i32x4_s = vector_binary("i16x8.narrow_i32x4_s")
narrow_i32x4_u = vector_binary("i16x8.narrow_i32x4_u")
add = vector_binary("i16x8.add")
add_sat_s = vector_binary("i16x8.add_sat_s")
add_sat_u = vector_binary("i16x8.add_sat_u")
sub = vector_binary("i16x8.sub")
sub_sat_s = vector_binary("i16x8.sub_sat_s")
sub_sat_u = vector_binary("i16x8.sub_sat_u")
mul = vector_binary("i16x8.mul")
min_s = vector_binary("i16x8.min_s")
min_u = vector_binary("i16x8.min_u")
max_s = vector_binary("i16x8.max_s")
max_u = vector_binary("i16x8.max_u")
avgr_u = vector_binary("i16x8.avgr_u")
extmul_low_i8x16_s = vector_binary("i16x8.extmul_low_i8x16_s")
extmul_high_i8x16_s = vector_binary("i16x8.extmul_high_i8x16_s")
extmul_low_i8x16_u = vector_binary("i16x8.extmul_low_i8x16_u")
extmul_high_i8x16_u = vector_binary("i16x8.extmul_high_i8x16_u")
relaxed_laneselect = vector_ternary("i16x8.relaxed_laneselect")
shl = vector_shift("i16x8.shl")
shr_s = vector_shift("i16x8.shr_s")
shr_u = vector_shift("i16x8.shr_u")
all_true = unary("i16x8.all_true", V128, I32)
bitmask = unary("i16x8.bitmask", V128, I32)
splat = unary("i16x8.splat", I32, V128)
extract_lane_s = ExtractLane("i16x8.extract_lane_s", I32)
extract_lane_u = ExtractLane("i16x8.extract_lane_u", I32)
replace_lane = ReplaceLane("i16x8.replace_lane", I32)
