"""Reading and writing elements: one, or four next to each other, or four at a stride.

Four narrow elements become four lanes of 32 bits, as `compiler.formula.vector` has them; truth becomes a lane of ones.
"""

from typing import Final, cast

from compiler.dtypes import DType
from compiler.wasm import (
    F32,
    F64,
    I32,
    I64,
    V128,
    Effect,
    Expr,
    Function,
    f32,
    f32x4,
    f64,
    i8x16,
    i16x8,
    i32,
    i32x4,
    i64,
    v128,
)

LANES: Final = 4


def load(dtype: DType, address: I32, offset: int = 0) -> Expr:
    """Return one element."""
    match dtype:
        case DType.F32:
            return f32.load(address, offset)
        case DType.F64:
            return f64.load(address, offset)
        case DType.I64 | DType.U64:
            return i64.load(address, offset)
        case DType.I32 | DType.U32:
            return i32.load(address, offset)
        case DType.I16:
            return i32.load16_s(address, offset)
        case DType.U16:
            return i32.load16_u(address, offset)
        case DType.I8:
            return i32.load8_s(address, offset)
    return i32.load8_u(address, offset)


def store(dtype: DType, address: I32, value: Expr, offset: int = 0) -> Effect:
    """Return code that writes one element."""
    match dtype:
        case DType.F32:
            return f32.store(address, cast("F32", value), offset)
        case DType.F64:
            return f64.store(address, cast("F64", value), offset)
        case DType.I64 | DType.U64:
            return i64.store(address, cast("I64", value), offset)
    whole = cast("I32", value)
    if dtype.bits == 32:
        return i32.store(address, whole, offset)
    return (i32.store16 if dtype.bits == 16 else i32.store8)(address, whole, offset)


def load_vector(dtype: DType, address: I32, offset: int = 0) -> V128:
    """Return four elements that lie next to each other."""
    if dtype.bits == 32:
        return v128.load(address, offset)
    if dtype.bits == 16:
        return (v128.load16x4_s if dtype.is_signed else v128.load16x4_u)(address, offset)
    return _widen(dtype, v128.load32_zero(address, offset))


def load_splat(dtype: DType, address: I32, offset: int = 0) -> V128:
    """Return one element in all four lanes."""
    value = load(dtype, address, offset)
    if dtype is DType.F32:
        return f32x4.splat(cast("F32", value))
    lanes = i32x4.splat(cast("I32", value))
    return i32x4.ne(lanes, i32x4.const(0)) if dtype is DType.BOOL else lanes


def load_strided(dtype: DType, address: I32, stride_bytes: int, count: int, offset: int = 0) -> V128:
    """Return up to four elements that lie `stride_bytes`, which is not negative, from each other."""
    offsets = [offset + n * stride_bytes for n in range(count)]
    if dtype.bits == 32:
        value = v128.load32_zero(address, offsets[0])
        for lane in range(1, count):
            value = v128.load32_lane(address, value, lane, offsets[lane])
        return value
    lanes = i32x4.splat(cast("I32", load(dtype, address, offsets[0])))
    for lane in range(1, count):
        lanes = i32x4.replace_lane(lanes, lane, cast("I32", load(dtype, address, offsets[lane])))
    return i32x4.ne(lanes, i32x4.const(0)) if dtype is DType.BOOL else lanes


def store_vector(f: Function, dtype: DType, place: tuple[I32, int], value: V128, count: int = LANES) -> None:
    """Write code that stores the first `count` of four elements next to each other, at an address and an offset."""
    address, offset = place
    packed = _narrow(dtype, value)
    if count < LANES:
        packed = f.keep(packed)
        size = dtype.item_bytes
        lane_store = {1: v128.store8_lane, 2: v128.store16_lane, 4: v128.store32_lane}[size]
        for lane in range(count):
            f.do(lane_store(address, packed, lane, offset + lane * size))
    elif dtype.bits == 32:
        f.do(v128.store(address, packed, offset))
    elif dtype.bits == 16:
        f.do(v128.store64_lane(address, packed, 0, offset))
    else:
        f.do(v128.store32_lane(address, packed, 0, offset))


def _widen(dtype: DType, value: V128) -> V128:
    """Return four lanes of 32 bits from the first four bytes."""
    if dtype is DType.I8:
        return i32x4.extend_low_i16x8_s(i16x8.extend_low_i8x16_s(value))
    lanes = i32x4.extend_low_i16x8_u(i16x8.extend_low_i8x16_u(value))
    return i32x4.ne(lanes, i32x4.const(0)) if dtype is DType.BOOL else lanes


def _narrow(dtype: DType, value: V128) -> V128:
    """Return four lanes of 32 bits, which are in the range of `dtype`, next to each other."""
    if dtype.bits == 32:
        return value
    if dtype is DType.BOOL:
        value = v128.and_(value, i32x4.const(1))
    zero = i32x4.const(0)
    halves = (i16x8.narrow_i32x4_u if dtype is DType.U16 else i16x8.narrow_i32x4_s)(value, zero)
    if dtype.bits == 16:
        return halves
    return (i8x16.narrow_i16x8_s if dtype is DType.I8 else i8x16.narrow_i16x8_u)(halves, zero)
