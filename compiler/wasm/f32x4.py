"""Instructions on four 32-bit floats, by the names of the WebAssembly text format."""

import struct

from compiler.wasm.expr import F32, V128
from compiler.wasm.instruction import (
    VECTOR_CONST,
    ExtractLane,
    ReplaceLane,
    unary,
    vector_binary,
    vector_ternary,
    vector_unary,
)

abs_ = vector_unary("f32x4.abs")
neg = vector_unary("f32x4.neg")
sqrt = vector_unary("f32x4.sqrt")
ceil = vector_unary("f32x4.ceil")
floor = vector_unary("f32x4.floor")
trunc = vector_unary("f32x4.trunc")
nearest = vector_unary("f32x4.nearest")
convert_i32x4_s = vector_unary("f32x4.convert_i32x4_s")
convert_i32x4_u = vector_unary("f32x4.convert_i32x4_u")
demote_f64x2_zero = vector_unary("f32x4.demote_f64x2_zero")
eq = vector_binary("f32x4.eq")
ne = vector_binary("f32x4.ne")
lt = vector_binary("f32x4.lt")
gt = vector_binary("f32x4.gt")
le = vector_binary("f32x4.le")
ge = vector_binary("f32x4.ge")
add = vector_binary("f32x4.add")
sub = vector_binary("f32x4.sub")
mul = vector_binary("f32x4.mul")
div = vector_binary("f32x4.div")
min_ = vector_binary("f32x4.min")
max_ = vector_binary("f32x4.max")
pmin = vector_binary("f32x4.pmin")
pmax = vector_binary("f32x4.pmax")
relaxed_min = vector_binary("f32x4.relaxed_min")
relaxed_max = vector_binary("f32x4.relaxed_max")
relaxed_madd = vector_ternary("f32x4.relaxed_madd")
relaxed_nmadd = vector_ternary("f32x4.relaxed_nmadd")
splat = unary("f32x4.splat", F32, V128)
extract_lane = ExtractLane("f32x4.extract_lane", F32)
replace_lane = ReplaceLane("f32x4.replace_lane", F32)


def const(*lanes: float) -> V128:
    """Return a constant: 4 lanes, or one for all of them."""
    return V128(VECTOR_CONST + struct.pack("<4f", *(lanes * 4 if len(lanes) == 1 else lanes)))
