"""Tests of the file of `--test-data` and of `--input`."""

import json
from pathlib import Path

import pytest

from controller.bundling.errors import TestDataError
from controller.bundling.testdata import TestData, parse_test_data, parse_vector, read_test_data
from controller.bundling.values import to_bytes
from protocol.tensors import TensorSpec
from tests.controller.wat_models import X, Y, spec

TWO = (X, TensorSpec(name="mask", datatype="BOOL", shape=(2,)))


def parse(document: object, inputs: tuple[TensorSpec, ...] = (X,)) -> TestData:
    return parse_test_data(json.dumps(document).encode(), inputs, (Y,), what="data.json")


def test_inputs_alone_leave_the_outputs_open() -> None:
    """Without outputs the module's own are to be recorded."""
    data = parse({"inputs": [{"x": [1, 2]}, {"x": [[3, 4]]}]})
    assert ((to_bytes(X, [1, 2]),), (to_bytes(X, [3, 4]),)) == data.inputs
    assert data.outputs is None


def test_outputs_and_tolerances_are_taken() -> None:
    """Given outputs and tolerances are those of the self-test."""
    data = parse({"inputs": [{"x": [1, 2]}], "outputs": [{"y": [2, 4]}], "atol": "0.5", "rtol": "0"})
    assert (((to_bytes(Y, [2, 4]),),), "0.5", "0") == (data.outputs, data.atol, data.rtol)


def test_the_only_tensor_needs_no_name() -> None:
    """A model with one input may leave the object away."""
    assert parse({"inputs": [{"x": [1, 2]}]}) == parse({"inputs": [[1, 2]]})


def test_several_inputs_are_ordered_by_the_spec() -> None:
    """Keys may come in any order; the tensors come in that of the spec."""
    data = parse({"inputs": [{"mask": [True, False], "x": [1, 2]}]}, TWO)
    assert ((to_bytes(X, [1, 2]), b"\x01\0"),) == data.inputs


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "missing required field `inputs`"),
        ({"inputs": []}, "at least one vector"),
        ({"inputs": [[1, 2]], "output": []}, "unknown field `output`"),
        ({"inputs": [[1, 2]], "outputs": []}, "as many outputs as inputs, got 0 and 1"),
        ({"inputs": [{"z": [1, 2]}]}, r"input vector 0: expected the keys \['x'\], got \['z'\]"),
        ({"inputs": [[1, 2], [1]]}, "input vector 1: tensor 'x'"),
        ({"inputs": [[1, 2]], "outputs": [{"y": ["a", 2]}]}, "output vector 0: tensor 'y'"),
        ({"inputs": [[1, 2]], "atol": "little"}, "expected atol as a decimal"),
        ({"inputs": [[1, 2]], "atol": 0.5}, "Expected `str`"),
        ([1, 2], "Expected `object`"),
    ],
)
def test_bad_test_data_is_refused(document: object, words: str) -> None:
    """The message names the vector, the hint shows the format."""
    with pytest.raises(TestDataError, match=words) as caught:
        parse(document)
    assert "inputs" in caught.value.hint


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    """Bytes that are not JSON, or nested without end, are an error and no crash."""
    with pytest.raises(TestDataError, match="data"):
        parse_test_data(raw, (X,), (Y,), what="data.json")
    with pytest.raises(TestDataError, match="data"):
        parse_vector(raw, (X,), what="data.json")


def test_several_inputs_need_their_names() -> None:
    """A bare list does not say which input it is."""
    with pytest.raises(TestDataError, match=r"expected an object with the keys \['x', 'mask'\]"):
        parse_vector(b"[1, 2]", TWO, what="input")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """The message has the path and the system's words."""
    with pytest.raises(TestDataError, match=r"cannot read .*nothing.json: No such file"):
        read_test_data(tmp_path / "nothing.json", spec())


def test_test_data_without_end_is_not_read_whole() -> None:
    """A device that was given by mistake is refused at the bound, also one that says that it has no bytes."""
    with pytest.raises(TestDataError, match="expected at most 268,435,456 bytes in /dev/zero, got more"):
        read_test_data(Path("/dev/zero"), spec())
