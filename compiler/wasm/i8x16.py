"""Instructions on sixteen 8-bit integers, by the names of the WebAssembly text format."""

from collections.abc import Sequence

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
from compiler.wasm.opcodes import OPCODES
from compiler.wasm.types import EncodeError

abs_ = vector_unary("i8x16.abs")
neg = vector_unary("i8x16.neg")
popcnt = vector_unary("i8x16.popcnt")
swizzle = vector_binary("i8x16.swizzle")
relaxed_swizzle = vector_binary("i8x16.relaxed_swizzle")
eq = vector_binary("i8x16.eq")
ne = vector_binary("i8x16.ne")
lt_s = vector_binary("i8x16.lt_s")
lt_u = vector_binary("i8x16.lt_u")
gt_s = vector_binary("i8x16.gt_s")
gt_u = vector_binary("i8x16.gt_u")
le_s = vector_binary("i8x16.le_s")
le_u = vector_binary("i8x16.le_u")
ge_s = vector_binary("i8x16.ge_s")
ge_u = vector_binary("i8x16.ge_u")
narrow_i16x8_s = vector_binary("i8x16.narrow_i16x8_s")
narrow_i16x8_u = vector_binary("i8x16.narrow_i16x8_u")
add = vector_binary("i8x16.add")
add_sat_s = vector_binary("i8x16.add_sat_s")
add_sat_u = vector_binary("i8x16.add_sat_u")
sub = vector_binary("i8x16.sub")
sub_sat_s = vector_binary("i8x16.sub_sat_s")
sub_sat_u = vector_binary("i8x16.sub_sat_u")
min_s = vector_binary("i8x16.min_s")
min_u = vector_binary("i8x16.min_u")
max_s = vector_binary("i8x16.max_s")
max_u = vector_binary("i8x16.max_u")
avgr_u = vector_binary("i8x16.avgr_u")
relaxed_laneselect = vector_ternary("i8x16.relaxed_laneselect")
shl = vector_shift("i8x16.shl")
shr_s = vector_shift("i8x16.shr_s")
shr_u = vector_shift("i8x16.shr_u")
all_true = unary("i8x16.all_true", V128, I32)
bitmask = unary("i8x16.bitmask", V128, I32)
splat = unary("i8x16.splat", I32, V128)
extract_lane_s = ExtractLane("i8x16.extract_lane_s", I32)
extract_lane_u = ExtractLane("i8x16.extract_lane_u", I32)
replace_lane = ReplaceLane("i8x16.replace_lane", I32)


def shuffle(low: V128, high: V128, lanes: Sequence[int]) -> V128:
    """Return the sixteen bytes that `lanes` names, counted through `low` and then `high`."""
    if len(lanes) != 16 or not all(0 <= lane < 32 for lane in lanes):
        raise EncodeError(f"expected sixteen lanes from 0 to 31, got {list(lanes)}")
    return V128(low.code + high.code + _SHUFFLE + bytes(lanes))


def shuffle_words(low: V128, high: V128, lanes: Sequence[int]) -> V128:
    """Return the four 32-bit words that `lanes` names, counted from 0 to 7 through `low` and then `high`."""
    return shuffle(low, high, [4 * lane + byte for lane in lanes for byte in range(4)])


_SHUFFLE = OPCODES["i8x16.shuffle"].code
