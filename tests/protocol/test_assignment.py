"""Which director document a device believes: the order of the checks, and one test for each attack."""

import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import Metadata, Targets

from protocol import limits
from protocol.assignment import (
    EXTENSION,
    AgentConfig,
    AssignedRelease,
    Assignment,
    Removal,
    VerifiedAssignment,
    build_targets,
    parse_metadata,
    target_path,
    verify_assignment,
)
from protocol.codec import encode, sha256
from protocol.errors import (
    ExpiredError,
    LimitExceededError,
    MalformedError,
    ProtocolError,
    RollbackError,
    SignatureError,
    UnknownIdentifierError,
    WrongDeviceError,
)
from protocol.identifiers import parse_device_id
from tests.protocol.fleet import DEVICE, DIRECTOR, NOW, assignment, director_targets, image_targets, manifest, sign

ROOT = DIRECTOR.root()
KEY = "director targets"
RELEASE = manifest()
RELEASE_FIELDS = {"model": "m", "version": "1.0.0", "deployment_id": "d"}
OTHER = parse_device_id("line-4-press")


def accept(raw: bytes, **changes: object) -> VerifiedAssignment:
    """Verify `raw` as the device does, with `changes` of its circumstances."""
    values: dict[str, object] = {"root": ROOT, "device_id": DEVICE, "version_floor": 1, "now": NOW, **changes}
    return verify_assignment(raw, **values)  # type: ignore[arg-type]


def resigned(**changes: object) -> bytes:
    """Return a document with fields of its signed part changed, then signed by the director."""
    tree = json.loads(sign(director_targets(RELEASE), KEY))
    tree["signed"].update(changes)
    metadata = Metadata.from_bytes(encode(tree))
    return sign(metadata.signed, KEY)


def test_a_good_document() -> None:
    """The director's word comes back: version, releases and the digest of each manifest."""
    verified = accept(sign(director_targets(RELEASE, version=3), KEY))
    assert 3 == verified.version
    assert assignment(RELEASE) == verified.assignment
    assert {"models/double/1.0.0.json": sha256(RELEASE.to_bytes())} == verified.digests


def test_everything_in_one_document() -> None:
    """Several models, removals, cancellations and configuration travel together."""
    wanted = assignment(
        RELEASE,
        manifest("other", "2.0.0-rc.1"),
        removals=(Removal(model="old", version="0.9.0", deployment_id="d8"),),
        canceled=("d5", "d6"),
        config=AgentConfig(telemetry_interval_s=10, soak_ms=0, max_boot_attempts=1),
    )
    entries = dict(image_targets(RELEASE, manifest("other", "2.0.0-rc.1")).targets)
    document = build_targets(wanted, entries, version=1, expires=NOW + timedelta(days=7))
    assert wanted == accept(sign(document, KEY)).assignment


@pytest.mark.parametrize("version", [limits.MAX_INTEGER + 1, 1 << 63, 1 << 200])
def test_attack_version_that_no_database_holds(version: int) -> None:
    """Numbers beyond 2^53 - 1 are refused, also under a genuine signature."""
    with pytest.raises(MalformedError, match="version"):
        parse_metadata(sign(director_targets(version=version), "director targets"), "director document")


def test_attack_replay_to_another_device() -> None:
    """A valid document of device A, delivered to device B, is refused."""
    with pytest.raises(WrongDeviceError, match="line-4-press"):
        accept(sign(director_targets(RELEASE, device=OTHER), KEY))


def test_attack_rollback() -> None:
    """A document older than the last accepted one is refused; the same one is not."""
    raw = sign(director_targets(RELEASE, version=4), KEY)
    assert 4 == accept(raw, version_floor=4).version
    with pytest.raises(RollbackError, match="version 4, already accepted 5"):
        accept(raw, version_floor=5)


def test_attack_freeze() -> None:
    """A document is refused from the second at which it expires."""
    raw = sign(director_targets(RELEASE), KEY)
    accept(raw, now=NOW + timedelta(days=7, seconds=-1))
    with pytest.raises(ExpiredError, match="2026-01-22 12:00:00Z"):
        accept(raw, now=NOW + timedelta(days=7))


@pytest.mark.parametrize("keys", [(), ("director snapshot",), ("image targets",), ("director root 1",), ("stranger",)])
def test_attack_another_signer(keys: tuple[str, ...]) -> None:
    """Only the key that the director's root names for `targets` counts: no other role, no other domain."""
    with pytest.raises(SignatureError):
        accept(sign(director_targets(RELEASE), *keys))


def test_attack_claimed_key_id() -> None:
    """A signature under the director's key id by another key is not a signature."""
    tree = json.loads(sign(director_targets(RELEASE), "stranger"))
    tree["signatures"][0]["keyid"] = ROOT.roles["targets"].keyids[0]
    with pytest.raises(SignatureError):
        accept(encode(tree))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 99),
        ("expires", "2036-01-01T00:00:00Z"),
        ("targets", {}),
        ("x-new", "added"),
        (EXTENSION, {"device_id": DEVICE, "issued_at_ms": 0}),
    ],
)
def test_attack_changed_after_signing(field: str, value: object) -> None:
    """No signed field can be changed, added or emptied."""
    tree = json.loads(sign(director_targets(RELEASE), KEY))
    tree["signed"][field] = value
    with pytest.raises(SignatureError):
        accept(encode(tree))


def test_attack_image_targets_as_assignment() -> None:
    """The image repository's own targets, well signed, are no assignment."""
    with pytest.raises(MalformedError, match=EXTENSION):
        accept(sign(image_targets(RELEASE), "image targets", KEY))


def test_attack_other_metadata_types() -> None:
    """A root or anything else in place of targets is refused by its type."""
    with pytest.raises(MalformedError, match="type targets, got 'root'"):
        accept(DIRECTOR.signed_root(ROOT))


def test_attack_release_without_digest() -> None:
    """A release that the targets do not bind to a digest is refused, though signed."""
    with pytest.raises(MalformedError, match="no digest"):
        accept(resigned(targets={}))


@pytest.mark.parametrize("hashes", [{"sha512": "00"}, {"sha256": "00"}, {"sha256": "../x"}])
def test_attack_release_with_another_hash(hashes: dict[str, str]) -> None:
    """The digest is a SHA-256, nothing else."""
    entry = {"length": 5, "hashes": hashes}
    with pytest.raises(UnknownIdentifierError):
        accept(resigned(targets={target_path("double", "1.0.0"): entry}))


def test_the_device_is_checked_before_the_signature() -> None:
    """Another device's document is told apart from a forged one, whoever signed it."""
    with pytest.raises(WrongDeviceError):
        accept(sign(director_targets(RELEASE, device=OTHER), "stranger"))


def test_the_signature_is_checked_before_version_and_expiry() -> None:
    """A forged old document is a forgery, not an old document."""
    with pytest.raises(SignatureError):
        accept(sign(director_targets(RELEASE), "stranger"), version_floor=9, now=NOW + timedelta(days=900))


def test_an_old_document_is_old_even_when_expired() -> None:
    """Version comes before expiry: what a restored broker replays is stale, not an alarm."""
    with pytest.raises(RollbackError):
        accept(sign(director_targets(RELEASE), KEY), version_floor=2, now=NOW + timedelta(days=900))


def test_an_oversize_document() -> None:
    """A document beyond 64 KiB is not parsed."""
    with pytest.raises(LimitExceededError):
        accept(b"{" * (limits.MAX_DIRECTOR_BYTES + 1))


def test_a_document_of_the_most_models_fits() -> None:
    """The desired state of 32 models is within the limit."""
    releases = [manifest(f"{'m' * 60}-{n}", "1.0.0") for n in range(limits.MAX_MODELS_PER_DEVICE)]
    assert 32 == len(accept(sign(director_targets(*releases), KEY)).digests)


def test_every_truncation() -> None:
    """A document cut after any byte is malformed."""
    raw = sign(director_targets(RELEASE), KEY)
    for length in range(len(raw.rstrip())):
        with pytest.raises(MalformedError):
            accept(raw[:length])


@pytest.mark.property
@given(st.data())
def test_flipped_bytes(data: st.DataObject) -> None:
    """A document with any byte changed raises ProtocolError, or says exactly what was signed."""
    raw = bytearray(sign(director_targets(RELEASE), KEY))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        verified = accept(bytes(raw))
    except ProtocolError:
        return
    assert assignment(RELEASE) == verified.assignment


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting(opening: str) -> None:
    """Unsigned nesting of any depth raises ProtocolError, on every Python's recursion limit."""
    closing = "]" if opening == "[" else "}"
    for depth in (100, 800, *range(900, 1_000, 7), 5_000, 10_000):
        deep = opening * depth + ("1" if closing == "}" else "") + closing * depth
        raw = sign(director_targets(RELEASE), KEY).replace(b'"x-wasmfleet"', f'"x-y":{deep},"x-wasmfleet"'.encode())
        with pytest.raises(ProtocolError):
            accept(raw)


@pytest.mark.parametrize(
    "extension",
    [
        None, [], "x", {}, {"device_id": DEVICE}, {"device_id": 7, "issued_at_ms": 0},
        {"device_id": "A B", "issued_at_ms": 0}, {"device_id": DEVICE, "issued_at_ms": -1},
        {"device_id": DEVICE, "issued_at_ms": 0, "releases": [{**RELEASE_FIELDS, "deployment_id": ""}]},
        {"device_id": DEVICE, "issued_at_ms": 0, "releases": [{**RELEASE_FIELDS, "model": ".."}]},
        {"device_id": DEVICE, "issued_at_ms": 0, "removals": [{**RELEASE_FIELDS, "model": ".."}]},
        {"device_id": DEVICE, "issued_at_ms": 0, "config": {"telemetry_interval_s": 0}},
        {"device_id": DEVICE, "issued_at_ms": 0, "config": {"soak_ms": -1}},
        {"device_id": DEVICE, "issued_at_ms": 0, "config": {"max_boot_attempts": 0}},
    ],
)  # fmt: skip
def test_bad_extensions(extension: object) -> None:
    """Even the director's own signature does not carry a malformed assignment in."""
    with pytest.raises(ProtocolError):
        accept(resigned(**{EXTENSION: extension}))


def test_unknown_fields_are_ignored() -> None:
    """A newer director may say more than this agent knows."""
    extension = json.loads(encode(assignment(RELEASE)))
    extension["config"]["from_the_future"] = 1
    extension["priority"] = {"x": [1]}
    assert assignment(RELEASE) == accept(resigned(**{EXTENSION: extension})).assignment


def test_a_model_named_twice() -> None:
    """One model is assigned once, and not removed in the same document."""
    release = AssignedRelease(model="m", version="1.0.0", deployment_id="d")
    removal = Removal(model="m", version="1.0.0", deployment_id="d")
    for fields in ({"releases": (release, release)}, {"releases": (release,), "removals": (removal,)}):
        with pytest.raises(MalformedError, match="named twice"):
            Assignment(device_id=DEVICE, issued_at_ms=0, **fields)


def test_too_many_models() -> None:
    """One model above the limit is refused where the document is made."""
    releases = tuple(AssignedRelease(model=f"m{n}", version="1.0.0", deployment_id="d") for n in range(33))
    with pytest.raises(LimitExceededError):
        Assignment(device_id=DEVICE, issued_at_ms=0, releases=releases)


def test_a_release_that_was_never_signed() -> None:
    """The director cannot assign what the image repository does not have."""
    with pytest.raises(KeyError):
        build_targets(assignment(RELEASE), {}, version=1, expires=NOW)


def test_targets_of_the_document() -> None:
    """The director repeats length and SHA-256 of the image repository's entry, and nothing else."""
    (entry,) = director_targets(RELEASE).targets.values()
    assert isinstance(director_targets(RELEASE), Targets)
    expected = {"length": len(RELEASE.to_bytes()), "hashes": {"sha256": sha256(RELEASE.to_bytes())}}
    assert expected == entry.to_dict()
