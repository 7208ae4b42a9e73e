"""Tensors of the Open Inference Protocol: JSON, nested JSON, binary; good and bad."""

import json
import math
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.runtime.errors import InputError
from agent.serving.openinference import (
    describe,
    encode_response,
    input_tensors,
    max_request_bytes,
    pack_json,
    parse_request,
    requested_outputs,
    unpack,
)
from protocol.datatypes import FORMATS, ITEM_BYTES, Datatype
from protocol.errors import MalformedError
from protocol.manifest import Contract, FileRef, Manifest, Provenance, SelfTest, Variant
from protocol.tensors import TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(2, 2))
N = TensorSpec(name="n", datatype="INT64", shape=())
Y = TensorSpec(name="y", datatype="FP32", shape=(2,))
FILE = FileRef.of(b"module")
MANIFEST = Manifest(
    model="digits",
    version="1.0.0",
    release_counter=1,
    inputs=(X, N),
    outputs=(Y, N),
    variants=(Variant(file=FILE, contract=Contract(memory_bytes=65536)),),
    self_test=SelfTest(file=FileRef.of(bytes(40)), count=1),
    provenance=Provenance(source=FILE, source_name="model.wat", tool="test"),
    labels={"y": ("no", "yes")},
)


def tensor(name: str = "x", datatype: str = "FP32", shape: tuple[int, ...] = (2, 2), **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


def one_by_one(outputs: int) -> Manifest:
    """Return a release that takes a single number, and gives many."""
    one, many = (
        TensorSpec(name=name, datatype="FP32", shape=shape) for name, shape in (("x", (1,)), ("y", (1, outputs)))
    )
    tested = SelfTest(file=msgspec.structs.replace(FILE, size=one.size_bytes + many.size_bytes), count=1)
    return msgspec.structs.replace(MANIFEST, inputs=(one,), outputs=(many,), self_test=tested, labels={})


def number(value: int = 7) -> dict[str, Any]:
    return tensor("n", "INT64", (), data=[value])


def parsed(inputs: list[dict[str, Any]], binary: bytes = b"", **more: Any) -> list[bytes]:
    head = json.dumps({"inputs": inputs, **more}).encode()
    request, tail = parse_request(head + binary, len(head) if binary else None)
    (item,) = input_tensors(request, tail, MANIFEST)
    return item


def test_inputs_come_in_the_order_of_the_release() -> None:
    """The caller names inputs in any order, the model takes them in one."""
    x = tensor(data=[1, 2.5, -3, 4])
    expected = [struct.pack("<4f", 1, 2.5, -3, 4), struct.pack("<q", 7)]
    assert expected == parsed([x, number()])
    assert expected == parsed([number(), x])


def test_nested_and_flat_data_mean_the_same() -> None:
    """Rows may be written as rows."""
    assert parsed([tensor(data=[1, 2, 3, 4]), number()]) == parsed([tensor(data=[[1, 2], [3, 4]]), number()])


def test_binary_tensors_stand_behind_the_json_in_order() -> None:
    """Each tensor takes as many bytes as it says; JSON and binary mix."""
    raw = struct.pack("<4f", 1, 2, 3, 4)
    size = {"binary_data_size": 16}
    assert [raw, struct.pack("<q", 7)] == parsed([tensor(parameters=size), number()], raw)
    both = [tensor("n", "INT64", (), parameters={"binary_data_size": 8}), tensor(parameters=size)]
    assert [raw, struct.pack("<q", -1)] == parsed(both, struct.pack("<q", -1) + raw)


@pytest.mark.parametrize(
    ("inputs", "binary", "message"),
    [
        ([], b"", "missing input x, n: expected the inputs x, n"),
        ([number()], b"", "missing input x"),
        ([tensor(data=[0] * 4), number(), tensor("z", data=[1])], b"", "unknown input 'z': expected the inputs x, n"),
        ([number(), number()], b"", "a second input 'n'"),
        ([tensor(data=[0] * 3), number()], b"", "expected 4 numbers for the shape [2, 2], got 3"),
        ([tensor(data=[[0, 0]]), number()], b"", "got an array of 1 where 2 elements belong"),
        ([tensor(data=[[0], [0]]), number()], b"", "got an array of 1 where 2 elements belong"),
        ([tensor(data=[[0, 0], 0]), number()], b"", "got a single value where 2 elements belong"),
        ([tensor(data=[[[0], [0]], [[0], [0]]]), number()], b"", "expected an array of FP32"),
        ([tensor(data=["1", "2", "3", "4"]), number()], b"", "expected an array of FP32"),
        ([tensor(data=[None] * 4), number()], b"", "expected an array of FP32"),
        ([tensor(data={"a": 1}), number()], b"", "expected an array of FP32"),
        ([tensor(), number()], b"", "expected an array of FP32"),
        ([tensor(data=[1e39, 0, 0, 0]), number()], b"", "out of the range of FP32"),
        ([tensor(data=[0] * 4), number(1 << 63)], b"", "out of the range of INT64"),
        ([tensor(data=[0] * 4), tensor("n", "INT64", (), data=[1.5])], b"", "expected an array of INT64"),
        ([tensor(datatype="FP64", data=[0] * 4), number()], b"", "expected datatype FP32, got 'FP64'"),
        ([tensor(shape=(4,), data=[0] * 4), number()], b"", "expected shape [2, 2], got [4]"),
        ([tensor(parameters={"binary_data_size": 16}), number()], bytes(15), "16 bytes behind the JSON, got 15"),
        ([tensor(parameters={"binary_data_size": -1}), number()], bytes(15), "-1 bytes behind the JSON"),
        ([tensor(data=[0] * 4), number()], bytes(3), "to end after the tensors, got 3 bytes more"),
    ],
)
def test_inputs_that_do_not_fit_are_explained(inputs: list[dict[str, Any]], binary: bytes, message: str) -> None:
    """The message says what was expected and what came."""
    with pytest.raises(InputError) as caught:
        parsed(inputs, binary)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"", None),
        (b"[]", None),
        (b'{"inputs": 5}', None),
        (b'{"inputs": [{"name": "x"}]}', None),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1.5]}]}', None),
        (b'\xff{"inputs": []}', None),
        (b'{"inputs": []}', 99),
        (b'{"inputs": []}', 5),
        (b"[" * 100_000, None),
    ],
)
def test_bodies_that_are_no_request_are_refused(body: bytes, length: int | None) -> None:
    """Whatever came, it is an error of the caller's."""
    with pytest.raises(MalformedError):
        parse_request(body, length)


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", [True, False]),
        ("UINT8", [0, 255]),
        ("INT8", [-128, 127]),
        ("UINT16", [0, 65535]),
        ("INT16", [-32768, 32767]),
        ("UINT32", [0, 2**32 - 1]),
        ("INT32", [-(2**31), 2**31 - 1]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("FP16", [0.5, -2.0]),
        ("FP32", [0.25, -3.0]),
        ("FP64", [0.1, -1e300]),
    ],
)
def test_every_datatype_goes_in_and_out(datatype: Datatype, values: list[Any]) -> None:
    """The extremes of each type survive the way from JSON to memory and back."""
    spec = TensorSpec(name="t", datatype=datatype, shape=(2,))
    raw = pack_json(msgspec.json.encode(values), spec)
    assert 2 * ITEM_BYTES[datatype] == len(raw)
    assert values == unpack(raw, spec)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("BOOL", 1),
        ("BOOL", "true"),
        ("UINT8", 256),
        ("UINT8", -1),
        ("INT8", True),
        ("INT8", 128),
        ("UINT64", 1 << 64),
        ("FP16", 70000.0),
        ("FP32", True),
    ],
)
def test_values_outside_a_datatype_are_refused(datatype: Datatype, value: Any) -> None:
    """Nothing is rounded, wrapped or guessed."""
    spec = TensorSpec(name="t", datatype=datatype, shape=(1,))
    with pytest.raises(InputError, match=f"input 't': .*{datatype}"):
        pack_json(msgspec.json.encode([value]), spec)


def test_response_lists_the_outputs_flat() -> None:
    """Names, datatypes, shapes and row-major data, and the release that answered."""
    outputs = [struct.pack("<2f", 0.5, 2), struct.pack("<q", 3)]
    body, length = encode_response(MANIFEST, outputs, {"y": False, "n": False}, "call-1")
    assert length is None
    assert {
        "model_name": "digits",
        "model_version": "1.0.0",
        "id": "call-1",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2], "data": [0.5, 2.0]},
            {"name": "n", "datatype": "INT64", "shape": [], "data": [3]},
        ],
    } == json.loads(body)


def test_response_with_binary_outputs() -> None:
    """Each output is JSON or binary as it was asked for."""
    outputs = [struct.pack("<2f", 0.5, 2), struct.pack("<q", 3)]
    body, length = encode_response(MANIFEST, outputs, {"y": True, "n": False}, None)
    assert length is not None
    assert outputs[0] == body[length:]
    assert [
        {"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
        {"name": "n", "datatype": "INT64", "shape": [], "data": [3]},
    ] == json.loads(body[:length])["outputs"]


def test_numbers_that_json_lacks_are_null() -> None:
    """NaN and infinities have no JSON; binary outputs carry them."""
    outputs = [struct.pack("<2f", math.nan, math.inf), bytes(8)]
    body, _ = encode_response(MANIFEST, outputs, {"y": False}, None)
    assert [None, None] == json.loads(body)["outputs"][0]["data"]


def test_outputs_are_chosen_by_name() -> None:
    """Without a choice all are given; the request's default holds for those that do not say."""

    def wanted(text: str) -> dict[str, bool]:
        return requested_outputs(parse_request(text.encode(), None)[0], (Y, N))

    assert {"y": False, "n": False} == wanted('{"inputs": []}')
    assert {"y": True, "n": True} == wanted('{"inputs": [], "parameters": {"binary_data_output": true}}')
    chosen = '{"inputs": [], "outputs": [{"name": "n"}], "parameters": {"binary_data_output": true}}'
    assert {"n": True} == wanted(chosen)
    assert {"y": True} == wanted('{"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": true}}]}')
    with pytest.raises(InputError, match="unknown output 'z': expected some of n, y"):
        wanted('{"inputs": [], "outputs": [{"name": "z"}]}')


def test_unknown_fields_are_ignored() -> None:
    """A newer client may say more than we know."""
    assert 2 == len(parsed([tensor(data=[0] * 4, parameters={"priority": 1}), number()], parameters={"sequence": 9}))


def test_metadata_describes_the_release() -> None:
    """Tensors, version and labels are those of the manifest."""
    metadata = describe(MANIFEST)
    assert ("digits", ("1.0.0",), {"y": ("no", "yes")}) == (metadata.name, metadata.versions, metadata.labels)
    assert [("x", "FP32", (2, 2)), ("n", "INT64", ())] == [(t.name, t.datatype, t.shape) for t in metadata.inputs]


@pytest.mark.property
@given(
    st.sampled_from(sorted(set(FORMATS) - {"FP16", "FP32", "BOOL"})),
    st.lists(st.integers(0, 2), max_size=3),
    st.data(),
)
def test_json_of_any_shape_round_trips(datatype: Datatype, dims: list[int], data: st.DataObject) -> None:
    """Nested or flat, the tensor is the same, and a request of it is within its bound."""
    shape = tuple(n + 1 for n in dims)
    spec = TensorSpec(name="t", datatype=datatype, shape=shape)
    bits = 8 * ITEM_BYTES[datatype]
    low, high = (0, 2**bits - 1) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    element = st.floats(allow_nan=False, allow_infinity=False) if datatype == "FP64" else st.integers(low, high)
    values = data.draw(st.lists(element, min_size=spec.elements, max_size=spec.elements))
    raw = pack_json(msgspec.json.encode(values), spec)
    assert values == unpack(raw, spec)
    nested: Any = values
    for n in reversed(shape[1:]):
        nested = [nested[i : i + n] for i in range(0, len(nested), n)]
    text = json.dumps(nested)
    assert raw == pack_json(text.encode(), spec)
    assert len(text) < max_request_bytes(MANIFEST)


@pytest.mark.property
@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-1, 250)))
def test_any_bytes_are_a_request_or_an_error(body: bytes, length: int | None) -> None:
    """No body makes anything but the two errors of a caller."""
    try:
        request, binary = parse_request(body, length)
        input_tensors(request, binary, MANIFEST)
    except (MalformedError, InputError):
        pass


@pytest.mark.parametrize("shape", [(), (0,), (257,), (1, 1), (-1,)])
def test_shape_of_another_rank_or_size_is_no_batch(shape: tuple[int, ...]) -> None:
    """A release of rank 1 has nothing behind the dimension of its batches, and neither has a shape of rank 0."""
    head = json.dumps({"inputs": [tensor(shape=shape, data=[1])]}).encode()
    with pytest.raises(InputError, match=r"expected shape \[1\], or up to 256 such items"):
        input_tensors(*parse_request(head, None), one_by_one(10))


@pytest.mark.parametrize(("outputs", "items"), [(1, 256), (16_384, 256), (16_385, 255), (4_000_000, 1)])
def test_batch_is_bounded_by_what_it_would_give(outputs: int, items: int) -> None:
    """A small request cannot make the agent hold gigabytes of answers; one item is always allowed."""
    manifest = one_by_one(outputs)
    assert items == describe(manifest).max_batch_size
    head = json.dumps({"inputs": [tensor(shape=(items + 1,), data=[0] * (items + 1))]}).encode()
    with pytest.raises(InputError, match=r"expected shape \[1\]"):
        input_tensors(*parse_request(head, None), manifest)
