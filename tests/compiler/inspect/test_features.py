"""Which features a module needs: right for every instruction and every place of a type; damage is an error."""

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.runtime.module import assemble
from compiler.inspect import features, required_features
from compiler.wasm import leb
from compiler.wasm.opcode import Immediate, Opcode
from compiler.wasm.opcodes import OPCODES
from protocol.errors import LimitExceededError, MalformedError, ProtocolError
from protocol.wasm import CORE_VERSION, MAGIC

HEADER = MAGIC + CORE_VERSION
IMMEDIATES = {
    Immediate.NONE: b"",
    Immediate.MEMORY: b"\0\xfd\1",
    Immediate.LANE: b"\xfd",
    Immediate.MEMORY_LANE: b"\0\xfd\1\xfd",
    Immediate.BYTES_16: b"\xfd" * 16,
    Immediate.I32: b"\xfd\x7d",
    Immediate.I64: b"\xfd\xfd\xfd\x7d",
    Immediate.F32: b"\xfd" * 4,
    Immediate.F64: b"\xfd" * 8,
    Immediate.INDEX: b"\xfd\1",
    Immediate.INDEX_2: b"\xfd\1\xfd\1",
    Immediate.BLOCK: b"\x40",
    Immediate.BRANCH_TABLE: b"\2\xfd\1\xfd\1\xfd\1",
    Immediate.HEAP_TYPE: b"\x70",
    Immediate.VALUE_TYPES: b"\1\x7f",
}
"""Immediates full of 0xfd, which must not be taken for the prefix of a vector instruction."""


def section(number: int, payload: bytes) -> bytes:
    """Return one section."""
    return bytes([number]) + leb.unsigned(len(payload)) + payload


def code(*bodies: bytes) -> bytes:
    """Return a module with nothing but a code section; each body is without its end."""
    entries = [b"\0" + body + b"\x0b" for body in bodies]
    return HEADER + section(10, leb.unsigned(len(entries)) + b"".join(leb.unsigned(len(e)) + e for e in entries))


@pytest.mark.parametrize("opcode", OPCODES.values(), ids=lambda opcode: opcode.name)
def test_every_instruction(opcode: Opcode) -> None:
    """One instruction needs what the table says, whatever its immediates look like."""
    needed = {None: (), "simd128": ("simd128",), "relaxed_simd": ("simd128", "relaxed_simd")}[opcode.required_feature]
    assert needed == required_features(code(opcode.code + IMMEDIATES[opcode.immediate]))


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("(module)", ()),
        ("(module (memory 1) (func (result f32) (f32.load (i32.const 0))))", ()),
        ("(module (func (param v128)))", ("simd128",)),
        ("(module (func (local i32 v128)))", ("simd128",)),
        ("(module (func (drop (block (result v128) unreachable))))", ("simd128",)),
        ("(module (func (drop (select (result v128) unreachable))))", ("simd128",)),
        ("(module (global v128 (v128.const i32x4 0 0 0 0)))", ("simd128",)),
        ('(module (import "a" "b" (global v128)))', ("simd128",)),
        ('(module (import "a" "b" (func (result v128))))', ("simd128",)),
        ('(module (import "a" "b" (memory 1)) (import "a" "c" (table 1 2 funcref)) (import "a" "d" (func)))', ()),
        ("(module (global i64 (i64.const -9)) (func (drop (i32x4.splat (i32.const 1)))))", ("simd128",)),
        ("(module (func (drop (block (param) (result i32 i32) unreachable)) drop))", ()),
        (
            "(module (func (param v128) (result v128) (f32x4.relaxed_madd (local.get 0) (local.get 0) (local.get 0))))",
            ("simd128", "relaxed_simd"),
        ),
    ],
)
def test_every_place_of_a_vector(text: str, needed: tuple[str, ...]) -> None:
    """A type alone needs the feature as much as an instruction."""
    assert needed == required_features(assemble(text))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (code(b"\xfb\0\0"), "0xfb"),
        (code(b"\xfe\0\0\0"), "0xfe"),
        (code(b"\xfd\xff\x7f"), "0x3fff"),
        (code(b"\xfd\x80\x80\x80\x80\x70"), "32 bits"),
        (code(b"\x06"), "0x06"),
        (code(b"\x41"), "does not end where it says"),
        (code(b"\x41\x80\x80"), "does not end|fit"),
        (HEADER + section(10, b"\1\3\0\x0b"), "cut off"),
        (HEADER + section(10, b"\1\2\0\1"), "does not end where it says"),
        (HEADER + section(10, b"\xff\xff\xff\xff\x0f"), "cut off"),
        (HEADER + section(10, b"\1\7\xff\xff\xff\xff\x0f\0"), "cut off"),
        (HEADER + section(1, b"\1\x5f"), "function type"),
        (HEADER + section(2, b"\1\0\0\7"), "unknown kind"),
        (HEADER + section(2, b"\1\0\0\2\4\1"), "64-bit"),
        (HEADER + section(2, b"\1\0\0\2\3\1\1"), "shared"),
        (HEADER + section(6, b"\1\x7f\0\x41\0"), "cut off"),
        (b"PK", "not a wasm file"),
    ],
)
def test_what_cannot_be_decoded(module: bytes, message: str) -> None:
    """Instructions that devices do not offer, and every kind of damage, are refused."""
    with pytest.raises(MalformedError, match=message):
        required_features(module)


def test_too_much_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a bound, which is checked before anything is decoded."""
    monkeypatch.setattr(features, "MAX_CODE_BYTES", 10)
    with pytest.raises(LimitExceededError, match="at most 10 bytes of code"):
        required_features(code(b"\x01" * 20))


@pytest.mark.property
@given(st.data())
def test_damage_is_an_error_and_nothing_else(data: st.DataObject) -> None:
    """A module with any byte changed or its end cut off gives an answer or a ProtocolError."""
    module = bytearray(code(b"\x41\xfd\x7d\x1a", b"\x02\x40\xfd\x0c" + b"\7" * 16 + b"\x1a\x0b"))
    module[data.draw(st.integers(8, len(module) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        required_features(bytes(module[: data.draw(st.integers(8, len(module)))]))


@pytest.mark.property
@given(st.integers(0, 12), st.binary(max_size=80))
@example(10, b"\1\x05\0\x0e\xff\xff\xff\xff\x0f")
def test_rubbish_in_any_section(number: int, payload: bytes) -> None:
    """Random bytes give an answer or a ProtocolError."""
    with contextlib.suppress(ProtocolError):
        required_features(HEADER + section(number, payload))
