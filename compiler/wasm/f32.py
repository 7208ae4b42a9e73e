"""Instructions on 32-bit floats, by the names of the WebAssembly text format."""

import struct

from compiler.wasm.expr import F32, F64, I32, I64
from compiler.wasm.instruction import Load, Store, binary, unary

add = binary("f32.add", F32, F32, F32)
sub = binary("f32.sub", F32, F32, F32)
mul = binary("f32.mul", F32, F32, F32)
div = binary("f32.div", F32, F32, F32)
min_ = binary("f32.min", F32, F32, F32)
max_ = binary("f32.max", F32, F32, F32)
copysign = binary("f32.copysign", F32, F32, F32)
abs_ = unary("f32.abs", F32, F32)
neg = unary("f32.neg", F32, F32)
ceil = unary("f32.ceil", F32, F32)
floor = unary("f32.floor", F32, F32)
trunc = unary("f32.trunc", F32, F32)
nearest = unary("f32.nearest", F32, F32)
sqrt = unary("f32.sqrt", F32, F32)
eq = binary("f32.eq", F32, F32, I32)
ne = binary("f32.ne", F32, F32, I32)
lt = binary("f32.lt", F32, F32, I32)
gt = binary("f32.gt", F32, F32, I32)
le = binary("f32.le", F32, F32, I32)
ge = binary("f32.ge", F32, F32, I32)
convert_i32_s = unary("f32.convert_i32_s", I32, F32)
convert_i32_u = unary("f32.convert_i32_u", I32, F32)
convert_i64_s = unary("f32.convert_i64_s", I64, F32)
convert_i64_u = unary("f32.convert_i64_u", I64, F32)
demote_f64 = unary("f32.demote_f64", F64, F32)
reinterpret_i32 = unary("f32.reinterpret_i32", I32, F32)
load = Load("f32.load", F32, 4)
store = Store("f32.store", F32, 4)


def const(value: float) -> F32:
    """Return the constant that is nearest to `value`; OverflowError when there is none."""
    return F32(b"\x43" + struct.pack("<f", value))
