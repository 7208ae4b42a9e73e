"""Instructions on 64-bit floats, by the names of the WebAssembly text format."""

import struct

from compiler.wasm.expr import F32, F64, I32, I64
from compiler.wasm.instruction import Load, Store, binary, unary

add = binary("f64.add", F64, F64, F64)
sub = binary("f64.sub", F64, F64, F64)
mul = binary("f64.mul", F64, F64, F64)
div = binary("f64.div", F64, F64, F64)
min_ = binary("f64.min", F64, F64, F64)
max_ = binary("f64.max", F64, F64, F64)
copysign = binary("f64.copysign", F64, F64, F64)
abs_ = unary("f64.abs", F64, F64)
neg = unary("f64.neg", F64, F64)
ceil = unary("f64.ceil", F64, F64)
floor = unary("f64.floor", F64, F64)
trunc = unary("f64.trunc", F64, F64)
nearest = unary("f64.nearest", F64, F64)
sqrt = unary("f64.sqrt", F64, F64)
eq = binary("f64.eq", F64, F64, I32)
ne = binary("f64.ne", F64, F64, I32)
lt = binary("f64.lt", F64, F64, I32)
gt = binary("f64.gt", F64, F64, I32)
le = binary("f64.le", F64, F64, I32)
ge = binary("f64.ge", F64, F64, I32)
convert_i32_s = unary("f64.convert_i32_s", I32, F64)
convert_i32_u = unary("f64.convert_i32_u", I32, F64)
convert_i64_s = unary("f64.convert_i64_s", I64, F64)
convert_i64_u = unary("f64.convert_i64_u", I64, F64)
promote_f32 = unary("f64.promote_f32", F32, F64)
reinterpret_i64 = unary("f64.reinterpret_i64", I64, F64)
load = Load("f64.load", F64, 8)
store = Store("f64.store", F64, 8)


def const(value: float) -> F64:
    """Return a constant."""
    return F64(b"\x44" + struct.pack("<d", value))
