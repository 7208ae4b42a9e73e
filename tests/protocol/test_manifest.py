"""The manifest: the same bytes for the same release, and nothing that contradicts itself."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.codec import encode, sha256
from protocol.errors import LimitExceededError, MalformedError, ProtocolError, UnsupportedVersionError
from protocol.manifest import Contract, FileRef, Manifest, SelfTest
from protocol.tensors import TensorSpec
from tests.protocol.fleet import manifest

GOOD = manifest()


def changed(path: str, value: object) -> bytes:
    """Return the JSON of a good manifest with one field changed; `path` is parted by dots."""
    tree = json.loads(GOOD.to_bytes())
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    node = tree
    for parent in parents:
        node = node[parent]
    node[last] = value
    return encode(tree)


def test_a_manifest_round_trips() -> None:
    """What was built is what a device reads."""
    assert GOOD == Manifest.from_bytes(GOOD.to_bytes())


def test_two_builds_are_byte_identical() -> None:
    """The same release has the same bytes, whatever the order in which labels were added."""
    assert manifest().to_bytes() == manifest().to_bytes()
    y = TensorSpec(name="a", datatype="FP32", shape=(1,))
    z = TensorSpec(name="b", datatype="FP32", shape=(1,))
    vectors = SelfTest(file=FileRef.of(bytes(12)), count=1)
    one, two = (
        msgspec.structs.replace(GOOD, outputs=(y, z), self_test=vectors, labels=labels)
        for labels in ({"a": ("x",), "b": ("y",)}, {"b": ("y",), "a": ("x",)})
    )
    assert one.to_bytes() == two.to_bytes()


def test_a_manifest_has_no_floats() -> None:
    """Tolerances are decimal strings, so that every language prints the same bytes."""

    def refuse(text: str) -> None:
        raise AssertionError(text)

    json.loads(GOOD.to_bytes(), parse_float=refuse)


@pytest.mark.parametrize(
    ("path", "value", "error", "message"),
    [
        ("schema", 2, UnsupportedVersionError, "update the agent"),
        ("model", "../etc", ProtocolError, "model name"),
        ("version", "1.0", ProtocolError, "expected a version"),
        ("release_counter", 0, MalformedError, "at least 1"),
        ("release_counter", 1 << 53, MalformedError, "at least 1"),
        ("release_counter", 1.5, MalformedError, "release_counter"),
        ("inputs", [], MalformedError, "1 to 64 inputs"),
        ("variants", [], MalformedError, "1 to 8 variants"),
        ("variants.0.file.size", 0, LimitExceededError, "expected a file of"),
        ("variants.0.file.size", limits.MAX_FILE_BYTES + 1, LimitExceededError, "expected a file of"),
        ("variants.0.file.digest", "AB" * 32, ProtocolError, "SHA-256"),
        ("variants.0.contract.memory_bytes", 0, MalformedError, "memory_bytes"),
        ("variants.0.contract.memory_bytes", (1 << 32) + 1, MalformedError, "memory_bytes"),
        ("variants.0.contract.stack_kib", 128, MalformedError, "stack_kib"),
        ("variants.0.contract.deadline_ms", 600_001, MalformedError, "deadline_ms"),
        ("self_test.count", 0, LimitExceededError, "self-test vectors"),
        ("self_test.count", 65, LimitExceededError, "self-test vectors"),
        ("self_test.count", 3, MalformedError, "24 bytes of self-test vectors"),
        ("self_test.file.size", 17, MalformedError, "16 bytes of self-test vectors"),
        ("self_test.file.size", limits.MAX_SELF_TEST_BYTES + 1, LimitExceededError, "use fewer vectors"),
        ("self_test.atol", "0.1.2", MalformedError, "atol"),
        ("self_test.atol", 1e-5, MalformedError, "atol"),
        ("self_test.rtol", "nan", MalformedError, "rtol"),
        ("self_test.rtol", "inf", MalformedError, "rtol"),
        ("self_test.rtol", "-1", MalformedError, "rtol"),
        ("self_test.rtol", "1e999", MalformedError, "rtol"),
        ("labels", {"nope": []}, MalformedError, "does not exist"),
        ("provenance", None, MalformedError, "provenance"),
    ],
)
def test_bad_manifests(path: str, value: object, error: type[Exception], message: str) -> None:
    """One changed field is found, and the message says what was expected."""
    with pytest.raises(error, match=message):
        Manifest.from_bytes(changed(path, value))


def test_every_field_is_needed_or_has_a_default() -> None:
    """Without any one of its fields a manifest is malformed, or reads as if the default stood there."""
    tree = json.loads(GOOD.to_bytes())
    defaults = {"labels", "schema", "stateful"}
    for field in tree:
        raw = encode({key: value for key, value in tree.items() if key != field})
        if field in defaults:
            assert GOOD == Manifest.from_bytes(raw)
        else:
            with pytest.raises(MalformedError, match=field):
                Manifest.from_bytes(raw)


def test_a_manifest_that_no_device_takes_is_not_made() -> None:
    """The builder hits the limit, not the device in the field."""
    y = TensorSpec(name="y", datatype="FP32", shape=(30_000,))
    huge = msgspec.structs.replace(
        GOOD,
        outputs=(y,),
        self_test=SelfTest(file=FileRef.of(bytes(120_004)), count=1),
        labels={"y": ("a label of some length",) * 30_000},
    )
    with pytest.raises(LimitExceededError, match="shorter labels"):
        huge.to_bytes()


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0.0), ("1e-5", 1e-5), ("0.001", 1e-3), ("12.5", 12.5), ("2e1", 20.0)]
)
def test_tolerances(text: str, value: float) -> None:
    """Decimal strings become the numbers they spell."""
    assert (value, 1e-4) == SelfTest(file=FileRef.of(b"x"), count=1, atol=text).tolerances


@pytest.mark.property
@given(st.binary(min_size=1, max_size=100))
def test_file_references(data: bytes) -> None:
    """A reference is the SHA-256 and the length of the file."""
    assert FileRef(digest=sha256(data), size=len(data)) == FileRef.of(data)


def test_default_contract() -> None:
    """Without a word about it a module gets the smallest stack class and one second."""
    contract = Contract(memory_bytes=65_536)
    assert (64, 1_000, ()) == (contract.stack_kib, contract.deadline_ms, contract.imports)
