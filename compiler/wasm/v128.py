"""Instructions on vectors as 128 bits, and their loads and stores, by the names of the WebAssembly text format."""

from compiler.wasm.expr import I32, V128
from compiler.wasm.instruction import (
    Load,
    LoadLane,
    Store,
    StoreLane,
    unary,
    vector_binary,
    vector_ternary,
    vector_unary,
)

not_ = vector_unary("v128.not")
and_ = vector_binary("v128.and")
andnot = vector_binary("v128.andnot")
or_ = vector_binary("v128.or")
xor = vector_binary("v128.xor")
bitselect = vector_ternary("v128.bitselect")
any_true = unary("v128.any_true", V128, I32)
load = Load("v128.load", V128, 16)
load8x8_s = Load("v128.load8x8_s", V128, 8)
load8x8_u = Load("v128.load8x8_u", V128, 8)
load16x4_s = Load("v128.load16x4_s", V128, 8)
load16x4_u = Load("v128.load16x4_u", V128, 8)
load32x2_s = Load("v128.load32x2_s", V128, 8)
load32x2_u = Load("v128.load32x2_u", V128, 8)
load8_splat = Load("v128.load8_splat", V128, 1)
load16_splat = Load("v128.load16_splat", V128, 2)
load32_splat = Load("v128.load32_splat", V128, 4)
load64_splat = Load("v128.load64_splat", V128, 8)
load32_zero = Load("v128.load32_zero", V128, 4)
load64_zero = Load("v128.load64_zero", V128, 8)
store = Store("v128.store", V128, 16)
load8_lane = LoadLane("v128.load8_lane", 1)
load16_lane = LoadLane("v128.load16_lane", 2)
load32_lane = LoadLane("v128.load32_lane", 4)
load64_lane = LoadLane("v128.load64_lane", 8)
store8_lane = StoreLane("v128.store8_lane", 1)
store16_lane = StoreLane("v128.store16_lane", 2)
store32_lane = StoreLane("v128.store32_lane", 4)
store64_lane = StoreLane("v128.store64_lane", 8)
