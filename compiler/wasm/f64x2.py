"""Instructions on two 64-bit floats, by the names of the WebAssembly text format."""

import struct

from compiler.wasm.expr import F64, V128
from compiler.wasm.instruction import (
    VECTOR_CONST,
    ExtractLane,
    ReplaceLane,
    unary,
    vector_binary,
    vector_ternary,
    vector_unary,
)

abs_ = vector_unary("f64x2.abs")
neg = vector_unary("f64x2.neg")
sqrt = vector_unary("f64x2.sqrt")
ceil = vector_unary("f64x2.ceil")
floor = vector_unary("f64x2.floor")
trunc = vector_unary("f64x2.trunc")
nearest = vector_unary("f64x2.nearest")
convert_low_i32x4_s = vector_unary("f64x2.convert_low_i32x4_s")
convert_low_i32x4_u = vector_unary("f64x2.convert_low_i32x4_u")
promote_low_f32x4 = vector_unary("f64x2.promote_low_f32x4")
eq = vector_binary("f64x2.eq")
ne = vector_binary("f64x2.ne")
lt = vector_binary("f64x2.lt")
gt = vector_binary("f64x2.gt")
le = vector_binary("f64x2.le")
ge = vector_binary("f64x2.ge")
add = vector_binary("f64x2.add")
sub = vector_binary("f64x2.sub")
mul = vector_binary("f64x2.mul")
div = vector_binary("f64x2.div")
min_ = vector_binary("f64x2.min")
max_ = vector_binary("f64x2.max")
pmin = vector_binary("f64x2.pmin")
pmax = vector_binary("f64x2.pmax")
relaxed_min = vector_binary("f64x2.relaxed_min")
relaxed_max = vector_binary("f64x2.relaxed_max")
relaxed_madd = vector_ternary("f64x2.relaxed_madd")
relaxed_nmadd = vector_ternary("f64x2.relaxed_nmadd")
splat = unary("f64x2.splat", F64, V128)
extract_lane = ExtractLane("f64x2.extract_lane", F64)
replace_lane = ReplaceLane("f64x2.replace_lane", F64)


def const(*lanes: float) -> V128:
    """Return a constant: 2 lanes, or one for all of them."""
    return V128(VECTOR_CONST + struct.pack("<2d", *(lanes * 2 if len(lanes) == 1 else lanes)))
