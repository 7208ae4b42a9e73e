"""Control, memory and numbers: every instruction that is not a vector instruction.

Source: WebAssembly Core Specification, section 5.4 (instructions).
"""

from collections.abc import Iterator
from typing import Final

from compiler.wasm.opcode import BULK_PREFIX, Immediate, Opcode, opcodes, suffixed

_INTEGER_COMPARE = "eq ne lt_s lt_u gt_s gt_u le_s le_u ge_s ge_u"
_FLOAT_COMPARE = "eq ne lt gt le ge"
_INTEGER_ARITHMETIC = "add sub mul div_s div_u rem_s rem_u and or xor shl shr_s shr_u rotl rotr"
_FLOAT_UNARY = "abs neg ceil floor trunc nearest sqrt"
_FLOAT_BINARY = "add sub mul div min max copysign"


def _control() -> Iterator[Opcode]:
    yield from opcodes(None, 0x00, "", "unreachable nop")
    yield from opcodes(None, 0x02, "", "block loop if", Immediate.BLOCK)
    yield from opcodes(None, 0x05, "", "else")
    yield from opcodes(None, 0x0B, "", "end")
    yield from opcodes(None, 0x0C, "", "br br_if", Immediate.INDEX)
    yield from opcodes(None, 0x0E, "", "br_table", Immediate.BRANCH_TABLE)
    yield from opcodes(None, 0x0F, "", "return")
    yield from opcodes(None, 0x10, "", "call", Immediate.INDEX)
    yield from opcodes(None, 0x11, "", "call_indirect", Immediate.INDEX_2)
    yield from opcodes(None, 0x12, "", "return_call", Immediate.INDEX)
    yield from opcodes(None, 0x13, "", "return_call_indirect", Immediate.INDEX_2)
    yield from opcodes(None, 0x1A, "", "drop select")
    yield from opcodes(None, 0x1C, "", "select_typed", Immediate.VALUE_TYPES)
    yield from opcodes(None, 0x20, "", "local.get local.set local.tee global.get global.set", Immediate.INDEX)
    yield from opcodes(None, 0x25, "", "table.get table.set", Immediate.INDEX)
    yield from opcodes(None, 0xD0, "", "ref.null", Immediate.HEAP_TYPE)
    yield from opcodes(None, 0xD1, "", "ref.is_null")
    yield from opcodes(None, 0xD2, "", "ref.func", Immediate.INDEX)


def _memory() -> Iterator[Opcode]:
    for first, signature, names in (
        (0x28, "i:i", "i32.load"),
        (0x29, "i:l", "i64.load"),
        (0x2A, "i:f", "f32.load"),
        (0x2B, "i:d", "f64.load"),
        (0x2C, "i:i", "i32.load8_s i32.load8_u i32.load16_s i32.load16_u"),
        (0x30, "i:l", "i64.load8_s i64.load8_u i64.load16_s i64.load16_u i64.load32_s i64.load32_u"),
        (0x36, "ii:", "i32.store"),
        (0x37, "il:", "i64.store"),
        (0x38, "if:", "f32.store"),
        (0x39, "id:", "f64.store"),
        (0x3A, "ii:", "i32.store8 i32.store16"),
        (0x3C, "il:", "i64.store8 i64.store16 i64.store32"),
    ):
        yield from opcodes(None, first, signature, names, Immediate.MEMORY)
    yield from opcodes(None, 0x3F, ":i", "memory.size", Immediate.INDEX)
    yield from opcodes(None, 0x40, "i:i", "memory.grow", Immediate.INDEX)
    yield from opcodes(BULK_PREFIX, 8, "iii:", "memory.init", Immediate.INDEX_2)
    yield from opcodes(BULK_PREFIX, 9, "", "data.drop", Immediate.INDEX)
    yield from opcodes(BULK_PREFIX, 10, "iii:", "memory.copy", Immediate.INDEX_2)
    yield from opcodes(BULK_PREFIX, 11, "iii:", "memory.fill", Immediate.INDEX)
    yield from opcodes(BULK_PREFIX, 12, "iii:", "table.init", Immediate.INDEX_2)
    yield from opcodes(BULK_PREFIX, 13, "", "elem.drop", Immediate.INDEX)
    yield from opcodes(BULK_PREFIX, 14, "iii:", "table.copy", Immediate.INDEX_2)
    yield from opcodes(BULK_PREFIX, 15, "", "table.grow table.size table.fill", Immediate.INDEX)


def _numbers() -> Iterator[Opcode]:
    yield from opcodes(None, 0x41, ":i", "i32.const", Immediate.I32)
    yield from opcodes(None, 0x42, ":l", "i64.const", Immediate.I64)
    yield from opcodes(None, 0x43, ":f", "f32.const", Immediate.F32)
    yield from opcodes(None, 0x44, ":d", "f64.const", Immediate.F64)
    for first, signature, shape, names in (
        (0x45, "i:i", "i32", "eqz"),
        (0x46, "ii:i", "i32", _INTEGER_COMPARE),
        (0x50, "l:i", "i64", "eqz"),
        (0x51, "ll:i", "i64", _INTEGER_COMPARE),
        (0x5B, "ff:i", "f32", _FLOAT_COMPARE),
        (0x61, "dd:i", "f64", _FLOAT_COMPARE),
        (0x67, "i:i", "i32", "clz ctz popcnt"),
        (0x6A, "ii:i", "i32", _INTEGER_ARITHMETIC),
        (0x79, "l:l", "i64", "clz ctz popcnt"),
        (0x7C, "ll:l", "i64", _INTEGER_ARITHMETIC),
        (0x8B, "f:f", "f32", _FLOAT_UNARY),
        (0x92, "ff:f", "f32", _FLOAT_BINARY),
        (0x99, "d:d", "f64", _FLOAT_UNARY),
        (0xA0, "dd:d", "f64", _FLOAT_BINARY),
    ):
        yield from opcodes(None, first, signature, suffixed(shape, names))


def _conversions() -> Iterator[Opcode]:
    for first, signature, shape, names in (
        (0xA7, "l:i", "i32", "wrap_i64"),
        (0xA8, "f:i", "i32", "trunc_f32_s trunc_f32_u"),
        (0xAA, "d:i", "i32", "trunc_f64_s trunc_f64_u"),
        (0xAC, "i:l", "i64", "extend_i32_s extend_i32_u"),
        (0xAE, "f:l", "i64", "trunc_f32_s trunc_f32_u"),
        (0xB0, "d:l", "i64", "trunc_f64_s trunc_f64_u"),
        (0xB2, "i:f", "f32", "convert_i32_s convert_i32_u"),
        (0xB4, "l:f", "f32", "convert_i64_s convert_i64_u"),
        (0xB6, "d:f", "f32", "demote_f64"),
        (0xB7, "i:d", "f64", "convert_i32_s convert_i32_u"),
        (0xB9, "l:d", "f64", "convert_i64_s convert_i64_u"),
        (0xBB, "f:d", "f64", "promote_f32"),
        (0xBC, "f:i", "i32", "reinterpret_f32"),
        (0xBD, "d:l", "i64", "reinterpret_f64"),
        (0xBE, "i:f", "f32", "reinterpret_i32"),
        (0xBF, "l:d", "f64", "reinterpret_i64"),
        (0xC0, "i:i", "i32", "extend8_s extend16_s"),
        (0xC2, "l:l", "i64", "extend8_s extend16_s extend32_s"),
    ):
        yield from opcodes(None, first, signature, suffixed(shape, names))
    for first, shape, letter in ((0, "i32", "i"), (4, "i64", "l")):
        yield from opcodes(BULK_PREFIX, first, f"f:{letter}", suffixed(shape, "trunc_sat_f32_s trunc_sat_f32_u"))
        yield from opcodes(BULK_PREFIX, first + 2, f"d:{letter}", suffixed(shape, "trunc_sat_f64_s trunc_sat_f64_u"))


SCALAR: Final = (*_control(), *_memory(), *_numbers(), *_conversions())
