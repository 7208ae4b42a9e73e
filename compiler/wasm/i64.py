"""Instructions on 64-bit integers, by the names of the WebAssembly text format."""

from compiler.wasm import leb
from compiler.wasm.expr import F32, F64, I32, I64
from compiler.wasm.instruction import Load, Store, binary, unary
from compiler.wasm.types import EncodeError

add = binary("i64.add", I64, I64, I64)
sub = binary("i64.sub", I64, I64, I64)
mul = binary("i64.mul", I64, I64, I64)
div_s = binary("i64.div_s", I64, I64, I64)
div_u = binary("i64.div_u", I64, I64, I64)
rem_s = binary("i64.rem_s", I64, I64, I64)
rem_u = binary("i64.rem_u", I64, I64, I64)
and_ = binary("i64.and", I64, I64, I64)
or_ = binary("i64.or", I64, I64, I64)
xor = binary("i64.xor", I64, I64, I64)
shl = binary("i64.shl", I64, I64, I64)
shr_s = binary("i64.shr_s", I64, I64, I64)
shr_u = binary("i64.shr_u", I64, I64, I64)
rotl = binary("i64.rotl", I64, I64, I64)
rotr = binary("i64.rotr", I64, I64, I64)
eqz = unary("i64.eqz", I64, I32)
eq = binary("i64.eq", I64, I64, I32)
ne = binary("i64.ne", I64, I64, I32)
lt_s = binary("i64.lt_s", I64, I64, I32)
lt_u = binary("i64.lt_u", I64, I64, I32)
gt_s = binary("i64.gt_s", I64, I64, I32)
gt_u = binary("i64.gt_u", I64, I64, I32)
le_s = binary("i64.le_s", I64, I64, I32)
le_u = binary("i64.le_u", I64, I64, I32)
ge_s = binary("i64.ge_s", I64, I64, I32)
ge_u = binary("i64.ge_u", I64, I64, I32)
clz = unary("i64.clz", I64, I64)
ctz = unary("i64.ctz", I64, I64)
popcnt = unary("i64.popcnt", I64, I64)
extend8_s = unary("i64.extend8_s", I64, I64)
extend16_s = unary("i64.extend16_s", I64, I64)
extend32_s = unary("i64.extend32_s", I64, I64)
extend_i32_s = unary("i64.extend_i32_s", I32, I64)
extend_i32_u = unary("i64.extend_i32_u", I32, I64)
trunc_sat_f32_s = unary("i64.trunc_sat_f32_s", F32, I64)
trunc_sat_f32_u = unary("i64.trunc_sat_f32_u", F32, I64)
trunc_sat_f64_s = unary("i64.trunc_sat_f64_s", F64, I64)
trunc_sat_f64_u = unary("i64.trunc_sat_f64_u", F64, I64)
reinterpret_f64 = unary("i64.reinterpret_f64", F64, I64)
load = Load("i64.load", I64, 8)
load8_s = Load("i64.load8_s", I64, 1)
load8_u = Load("i64.load8_u", I64, 1)
load16_s = Load("i64.load16_s", I64, 2)
load16_u = Load("i64.load16_u", I64, 2)
load32_s = Load("i64.load32_s", I64, 4)
load32_u = Load("i64.load32_u", I64, 4)
store = Store("i64.store", I64, 8)
store8 = Store("i64.store8", I64, 1)
store16 = Store("i64.store16", I64, 2)
store32 = Store("i64.store32", I64, 4)


def const(value: int) -> I64:
    """Return a constant; from -2**63 to 2**64 - 1."""
    if not -(1 << 63) <= value < 1 << 64:
        raise EncodeError(f"expected a 64-bit integer, got {value}")
    return I64(b"\x42" + leb.signed(value - (1 << 64) if value >= 1 << 63 else value))
