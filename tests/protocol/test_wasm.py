"""The outer layer of wasm files: custom sections found, damage and tricks refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import MalformedError
from protocol.wasm import CORE_VERSION, MAGIC, custom_section, sections

HEADER = MAGIC + CORE_VERSION


def leb(value: int) -> bytes:
    """Return `value` as unsigned LEB128."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def section(number: int, payload: bytes) -> bytes:
    """Return one section."""
    return bytes([number]) + leb(len(payload)) + payload


def custom(name: str, content: bytes) -> bytes:
    """Return one custom section."""
    return section(0, leb(len(name.encode())) + name.encode() + content)


@pytest.mark.property
@given(st.lists(st.tuples(st.integers(0, 13), st.binary(max_size=300)), max_size=6))
def test_sections_round_trip(parts: list[tuple[int, bytes]]) -> None:
    """Every section comes back in order with its payload."""
    module = HEADER + b"".join(section(number, payload) for number, payload in parts)
    assert parts == list(sections(module))


@pytest.mark.property
@given(st.text(max_size=20), st.binary(max_size=300), st.binary(max_size=40))
def test_a_custom_section_is_found(name: str, content: bytes, other: bytes) -> None:
    """It is found by its whole name, among sections of every kind."""
    module = HEADER + section(1, other) + custom(name + "x", other) + custom(name, content) + section(10, other)
    assert content == custom_section(module, name)
    assert custom_section(module, name + "y") is None


def test_two_of_a_name_are_refused() -> None:
    """What a second `fleet.model` section could hide is not worth guessing."""
    with pytest.raises(MalformedError, match="got two"):
        custom_section(HEADER + custom("fleet.model", b"{}") * 2, "fleet.model")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (b"", "not a wasm file"),
        (b"\0as", "not a wasm file"),
        (b"PK\3\4" + bytes(20), "not a wasm file"),
        (b"(module)", "not a wasm file"),
        (MAGIC, "component"),
        (MAGIC + b"\x0d\0\1\0", "component"),
        (HEADER + b"\0", "cut off inside a number"),
        (HEADER + b"\0\x80", "cut off inside a number"),
        (HEADER + b"\0\x05abc", "ends 2 bytes later"),
        (HEADER + b"\0\xff\xff\xff\xff\x1f", "does not fit 32 bits"),
        (HEADER + b"\0\x80\x80\x80\x80\x80\0", "does not fit 32 bits"),
        (HEADER + b"\1\xff\xff\xff\xff\x0f", "cut off"),
        (HEADER + b"\0\0", "cut off inside a number"),
        (HEADER + section(0, b"\x0cfleet.model"), "cut off inside the name"),
        (HEADER + section(0, b"\xff\xff\xff\xff\x0ffleet.model"), "cut off inside the name"),
    ],
)
def test_malformed_modules(module: bytes, message: str) -> None:
    """Each way of not being a module is named, with what to do about a component."""
    with pytest.raises(MalformedError, match=message):
        custom_section(module, "fleet.model")


def test_every_truncation() -> None:
    """A module cut after any byte is refused, or is one whose last sections are missing."""
    module = HEADER + section(1, b"abc") + custom("fleet.model", b"{}") + section(10, b"x" * 200)
    whole = list(sections(module))
    for length in range(len(module)):
        with contextlib.suppress(MalformedError):
            found = list(sections(module[:length]))
            assert found == whole[: len(found)]


@pytest.mark.property
@given(st.binary(max_size=60), st.sampled_from([b"", MAGIC, HEADER]))
def test_rubbish(data: bytes, head: bytes) -> None:
    """Random bytes raise MalformedError or are sections; nothing else comes out."""
    with contextlib.suppress(MalformedError):
        custom_section(head + data, "fleet.model")
