"""What a module may declare about its tensors, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.codec import encode
from protocol.datatypes import ITEM_BYTES
from protocol.errors import LimitExceededError, MalformedError, UnsupportedVersionError
from protocol.tensors import ModelSpec, TensorSpec

specs = st.builds(
    TensorSpec,
    name=st.text(min_size=1, max_size=20),
    datatype=st.sampled_from(sorted(ITEM_BYTES)),
    shape=st.lists(st.integers(1, 8), max_size=limits.MAX_RANK).map(tuple),
)
X = TensorSpec(name="x", datatype="FP32", shape=(1, 64))
Y = TensorSpec(name="y", datatype="FP32", shape=(1, 2))


@pytest.mark.property
@given(st.lists(specs, min_size=1, max_size=4, unique_by=lambda t: t.name), st.booleans())
def test_specs_round_trip(tensors: list[TensorSpec], is_stateful: bool) -> None:
    """A model's description comes back from its section."""
    spec = ModelSpec(inputs=tuple(tensors), outputs=tuple(tensors), stateful=is_stateful)
    assert spec == ModelSpec.from_bytes(spec.to_bytes())


@pytest.mark.property
@given(specs)
def test_sizes(tensor: TensorSpec) -> None:
    """The size is the product of the shape and the item; a scalar is one item."""
    expected = ITEM_BYTES[tensor.datatype]
    for length in tensor.shape:
        expected *= length
    assert expected == tensor.size_bytes


def test_a_scalar() -> None:
    """No dimensions means one number."""
    assert 8 == TensorSpec(name="t", datatype="INT64", shape=()).size_bytes


@pytest.mark.parametrize(
    ("name", "shape", "error", "message"),
    [
        ("", (1,), MalformedError, "tensor name"),
        ("x" * 201, (1,), MalformedError, "tensor name"),
        ("x", (0,), MalformedError, "each at least 1"),
        ("x", (-1, 3), MalformedError, "each at least 1"),
        ("x", (1,) * 9, MalformedError, "at most 8 dimensions"),
        ("x", (1 << 40, 1 << 40), LimitExceededError, "at most 268,435,456 bytes"),
        ("x", (limits.MAX_TENSOR_BYTES // 4 + 1,), LimitExceededError, "at most 268,435,456 bytes"),
    ],
)
def test_bad_tensors(name: str, shape: tuple[int, ...], error: type[Exception], message: str) -> None:
    """Names, ranks, lengths and sizes outside their bounds are refused with the bound."""
    with pytest.raises(error, match=message):
        TensorSpec(name=name, datatype="FP32", shape=shape)


def test_a_symbolic_dimension_is_refused() -> None:
    """Shapes are static: a name or null in place of a length is malformed."""
    for shape in (["batch", 64], [None, 64], [1.0, 64], "64", None, 64):
        raw = encode({"inputs": [{"name": "x", "datatype": "FP32", "shape": shape}], "outputs": []})
        with pytest.raises(MalformedError, match="shape"):
            ModelSpec.from_bytes(raw)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"inputs": []}, MalformedError, "1 to 64 inputs"),
        ({"outputs": []}, MalformedError, "1 to 64 outputs"),
        ({"inputs": [{"name": f"x{n}", "datatype": "FP32", "shape": []} for n in range(65)]}, MalformedError, "got 65"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": []}] * 2}, MalformedError, "a name of its own"),
        ({"inputs": [{"name": "x", "datatype": "BYTES", "shape": []}]}, MalformedError, "BYTES"),
        ({"labels": {"z": ["a", "b"]}}, MalformedError, "'z' that does not exist"),
        ({"labels": {"y": ["a"]}}, MalformedError, "expected 2"),
        ({"labels": {"y": "ab"}}, MalformedError, "labels"),
        ({"stack_kib": 65}, MalformedError, "stack_kib"),
        ({"deadline_ms": 0}, MalformedError, "deadline_ms"),
        ({"deadline_ms": limits.MAX_DEADLINE_MS + 1}, MalformedError, "deadline_ms"),
        ({"schema": 2}, UnsupportedVersionError, "newer wasmfleet"),
        ({"stateful": 1}, MalformedError, "stateful"),
    ],
)
def test_bad_specs(changes: dict[str, object], error: type[Exception], message: str) -> None:
    """Every contradiction in a model's description is refused by name."""
    good = json.loads(ModelSpec(inputs=(X,), outputs=(Y,)).to_bytes())
    with pytest.raises(error, match=message):
        ModelSpec.from_bytes(encode({**good, **changes}))


def test_labels_fit_the_last_dimension() -> None:
    """One label for each index of the output's last dimension."""
    spec = ModelSpec(inputs=(X,), outputs=(Y,), labels={"y": ("cat", "dog")})
    assert spec == ModelSpec.from_bytes(spec.to_bytes())


def test_an_oversize_section() -> None:
    """A section beyond its limit is not parsed."""
    with pytest.raises(LimitExceededError):
        ModelSpec.from_bytes(b" " * (limits.MAX_MODEL_SPEC_BYTES + 1))
