"""LEB128: shortest form, every edge, and what an engine reads back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.runtime.module import inspect
from compiler.wasm import I32, Module, f32, i32, i64, leb

EDGES_32 = (
    0,
    1,
    63,
    64,
    127,
    128,
    8191,
    8192,
    16383,
    16384,
    2**20,
    2**21,
    2**28 - 1,
    2**28,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (16383, "ff7f"),
        (16384, "808001"),
        (624485, "e58e26"),
        (2**32 - 1, "ffffffff0f"),
    ],
)
def test_unsigned(value: int, encoded: str) -> None:
    """Numbers have their one shortest form."""
    assert bytes.fromhex(encoded) == leb.unsigned(value)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (63, "3f"),
        (64, "c000"),
        (-1, "7f"),
        (-64, "40"),
        (-65, "bf7f"),
        (-123456, "c0bb78"),
        (-(2**31), "8080808078"),
    ],
)
def test_signed(value: int, encoded: str) -> None:
    """The sign is the top bit of the last byte."""
    assert bytes.fromhex(encoded) == leb.signed(value)


def test_negative_is_not_unsigned() -> None:
    """There is no such encoding."""
    with pytest.raises(ValueError, match="not negative"):
        leb.unsigned(-1)


@pytest.mark.property
@given(st.integers(-(2**63), 2**63 - 1))
def test_round_trip(value: int) -> None:
    """What is encoded decodes to itself."""
    encoded = leb.signed(value)
    decoded = sum((byte & 0x7F) << (7 * n) for n, byte in enumerate(encoded))
    decoded -= (encoded[-1] & 0x40) and 1 << (7 * len(encoded))
    assert value == decoded
    if value >= 0:
        assert value == sum((byte & 0x7F) << (7 * n) for n, byte in enumerate(leb.unsigned(value)))


def module_with(i32_value: int, i64_value: int, offset: int) -> bytes:
    """Return a module in which the numbers stand as constants and as an offset."""
    module = Module()
    module.memory(1)
    function = module.function("f")
    function.drop(i32.const(i32_value))
    function.drop(i64.const(i64_value))
    function.drop(f32.load(i32.const(0), offset))
    return module.encode()


@pytest.mark.parametrize("value", EDGES_32)
def test_edges_validate(value: int) -> None:
    """An engine accepts every length of constant and offset."""
    inspect(module_with(value, -value, value))
    inspect(module_with(-(value // 2), value << 31, value))


@pytest.mark.property
@given(st.integers(-(2**31), 2**32 - 1), st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**32 - 1))
def test_any_number_validates(i32_value: int, i64_value: int, offset: int) -> None:
    """An engine accepts any constant and any offset."""
    inspect(module_with(i32_value, i64_value, offset))


def test_operands_may_be_whole_numbers() -> None:
    """Arithmetic on addresses takes constants."""
    assert (i32.const(8) + i32.const(4)).code == (i32.const(8) + 4).code
    assert isinstance(i32.const(8) * 4, I32)
