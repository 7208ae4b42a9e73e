"""Tests of tensors as JSON numbers."""

import struct
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.bundling.errors import TensorValueError
from controller.bundling.values import from_bytes, to_bytes
from protocol.datatypes import Datatype
from protocol.tensors import TensorSpec


def tensor(datatype: Datatype = "FP32", *shape: int) -> TensorSpec:
    return TensorSpec(name="t", datatype=datatype, shape=shape)


@pytest.mark.parametrize("value", [[[1, 2, 3], [4, 5, 6]], [1, 2, 3, 4, 5, 6], [1.0, 2, 3, 4, 5, 6.0]])
def test_nested_and_flat_lists_are_the_same(value: object) -> None:
    """A value may follow the shape or be one flat list in row-major order."""
    assert struct.pack("<6f", 1, 2, 3, 4, 5, 6) == to_bytes(tensor("FP32", 2, 3), value)


@pytest.mark.parametrize(("shape", "value"), [((), 3), ((), [3]), ((1,), 3), ((1,), [3]), ((1, 1), [[3]]), ((1, 1), 3)])
def test_one_number_needs_no_list(shape: tuple[int, ...], value: object) -> None:
    """A tensor of one element may be written as the number itself."""
    assert b"\x03" == to_bytes(tensor("UINT8", *shape), value)


@pytest.mark.parametrize("datatype", get_args(Datatype))
def test_every_datatype_goes_both_ways(datatype: Datatype) -> None:
    """What was written is read back as the same numbers."""
    numbers = [True, False, True] if datatype == "BOOL" else [0, 1, 2]
    assert numbers == from_bytes(tensor(datatype, 3), to_bytes(tensor(datatype, 3), numbers))


@pytest.mark.property
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=8))
def test_floats_keep_their_value(numbers: list[float]) -> None:
    """Every 32-bit float survives the way to bytes and back."""
    spec = tensor("FP32", len(numbers))
    assert numbers == from_bytes(spec, to_bytes(spec, numbers))


@pytest.mark.parametrize(
    ("spec", "value", "words"),
    [
        (tensor("FP32", 2), [1], "flat list of 2 numbers, got a list of 1"),
        (tensor("FP32", 2), [1, 2, 3], "got a list of 3"),
        (tensor("FP32", 2), 5, "got 5"),
        (tensor("FP32", 2), None, "got None"),
        (tensor("FP32", 2), {"a": 1}, "got {'a': 1}"),
        (tensor("FP32", 2, 2), [[1, 2], [3]], "got a list of 1 where 2 belong"),
        (tensor("FP32", 2, 2), [[1, 2], 3], "got 3 where 2 belong"),
        (tensor("FP32", 2), [1, "2"], "expected a number for FP32, got '2'"),
        (tensor("FP32", 1), [True], "expected a number for FP32, got True"),
        (tensor("FP32", 1), [1e300], "does not fit FP32"),
        (tensor("FP16", 1), [1e6], "does not fit FP16"),
        (tensor("UINT8", 1), [256], "does not fit UINT8"),
        (tensor("UINT8", 1), [-1], "does not fit UINT8"),
        (tensor("INT32", 1), [1.0], "expected a whole number for INT32, got 1.0"),
        (tensor("INT64", 1), [1 << 63], "does not fit INT64"),
        (tensor("BOOL", 1), [2], "expected true or false for BOOL, got 2"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(spec: TensorSpec, value: object, words: str) -> None:
    """The message names the tensor, what was expected and what came."""
    with pytest.raises(TensorValueError, match=words.replace("{", r"\{")):
        to_bytes(spec, value)
