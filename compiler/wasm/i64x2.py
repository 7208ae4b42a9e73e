"""Instructions on two 64-bit integers, by the names of the WebAssembly text format."""

import struct

from compiler.wasm.expr import I32, I64, V128
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

abs_ = vector_unary("i64x2.abs")
neg = vector_unary("i64x2.neg")
extend_low_i32x4_s = vector_unary("i64x2.extend_low_i32x4_s")
extend_high_i32x4_s = vector_unary("i64x2.extend_high_i32x4_s")
extend_low_i32x4_u = vector_unary("i64x2.extend_low_i32x4_u")
extend_high_i32x4_u = vector_unary("i64x2.extend_high_i32x4_u")
eq = vector_binary("i64x2.eq")
ne = vector_binary("i64x2.ne")
lt_s = vector_binary("i64x2.lt_s")
gt_s = vector_binary("i64x2.gt_s")
le_s = vector_binary("i64x2.le_s")
ge_s = vector_binary("i64x2.ge_s")
add = vector_binary("i64x2.add")
sub = vector_binary("i64x2.sub")
mul = vector_binary("i64x2.mul")
extmul_low_i32x4_s = vector_binary("i64x2.extmul_low_i32x4_s")
extmul_high_i32x4_s = vector_binary("i64x2.extmul_high_i32x4_s")
extmul_low_i32x4_u = vector_binary("i64x2.extmul_low_i32x4_u")
extmul_high_i32x4_u = vector_binary("i64x2.extmul_high_i32x4_u")
relaxed_laneselect = vector_ternary("i64x2.relaxed_laneselect")
shl = vector_shift("i64x2.shl")
shr_s = vector_shift("i64x2.shr_s")
shr_u = vector_shift("i64x2.shr_u")
all_true = unary("i64x2.all_true", V128, I32)
bitmask = unary("i64x2.bitmask", V128, I32)
splat = unary("i64x2.splat", I64, V128)
extract_lane = ExtractLane("i64x2.extract_lane", I64)
replace_lane = ReplaceLane("i64x2.replace_lane", I64)


def const(*lanes: int) -> V128:
    """Return a constant: 2 lanes, or one for all of them."""
    mask = (1 << 64) - 1
    return V128(VECTOR_CONST + struct.pack("<2Q", *(lane & mask for lane in (lanes * 2 if len(lanes) == 1 else lanes))))
