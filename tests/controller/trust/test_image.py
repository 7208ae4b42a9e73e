"""The image repository: what the operator signs, and what the service takes."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import Delegations, Metadata, Snapshot, TargetFile, Targets
from tuf.api.serialization.json import JSONSerializer

from controller.errors import ConflictError, ControllerError, RefusedError
from controller.trust import image
from controller.trust.keys import generate_signer
from protocol.errors import (
    DigestError,
    ExpiredError,
    LimitExceededError,
    MalformedError,
    ProtocolError,
    SignatureError,
    UnknownIdentifierError,
)

PATH = "models/digits/1.0.0.json"


def rename(targets: Targets, path: str) -> None:
    targets.targets[path] = targets.targets.pop("models/digits/1.1.0.json")


def entry(targets: Targets, version: str = "1.1.0") -> TargetFile:
    return targets.targets[f"models/digits/{version}.json"]


def claim(targets: Targets, **fields: Any) -> None:
    entry(targets).unrecognized_fields["custom"].update(fields)


def set_floor(targets: Targets, floors: Any) -> None:
    targets.unrecognized_fields["x-wasmfleet"] = {"min_release_counter": floors}


def test_first_targets_are_accepted_when_there_are_none(fleet):
    """A new fleet starts from version 1 without releases."""
    accepted = fleet.accept(None, image.first_targets(fleet.operator, fleet.now))
    assert (1, (), {}) == (accepted.version, accepted.added, accepted.floors)


def test_a_release_is_accepted_with_its_claim_and_digest(fleet):
    """What the service learns of a release is what the operator signed."""
    current = fleet.released(("1.0.0", 1))
    manifest = fleet.manifest("1.1.0", 2)
    raw = image.add_release(current, manifest, manifest.to_bytes(), fleet.operator, fleet.now)
    accepted = fleet.accept(current, raw)
    [(path, its_claim, digest)] = accepted.added
    assert ("models/digits/1.1.0.json", "1.1.0", 2) == (path, its_claim.version, its_claim.release_counter)
    assert digest == image.sha256(manifest.to_bytes())
    assert manifest == image.open_manifest(accepted.targets, path, manifest.to_bytes())


def test_signing_twice_gives_the_same_bytes(fleet):
    """Targets metadata is a function of its content, the key and the time."""
    assert fleet.released(("1.0.0", 1)) == fleet.released(("1.0.0", 1))


def test_of_two_operators_one_must_fetch_again(fleet):
    """Two pushes from one state: the second gets a conflict that names the version, refetches, and succeeds."""
    start = fleet.released(("1.0.0", 1))
    ours, theirs = fleet.manifest("1.1.0", 2), fleet.manifest("2.0.0", 2)
    first = image.add_release(start, theirs, theirs.to_bytes(), fleet.operator, fleet.now)
    second = image.add_release(start, ours, ours.to_bytes(), fleet.operator, fleet.now)
    assert 3 == fleet.accept(start, first).version
    with pytest.raises(ConflictError, match=r"expected targets version 4 after the current 3, got 3"):
        fleet.accept(first, second)
    again = fleet.manifest("1.1.0", 3)
    assert (
        4 == fleet.accept(first, image.add_release(first, again, again.to_bytes(), fleet.operator, fleet.now)).version
    )


@pytest.mark.parametrize(("version", "counter"), [("1.0.0", 2), ("1.1.0", 1), ("0.9.0", 1)])
def test_the_operator_cannot_add_a_release_twice(fleet, version, counter):
    """A version exists once, and a release_counter is used once."""
    manifest = fleet.manifest(version, counter)
    with pytest.raises(ConflictError, match=r"exists already|release_counter above 1"):
        image.add_release(fleet.released(("1.0.0", 1)), manifest, manifest.to_bytes(), fleet.operator, fleet.now)


def test_a_floor_rises_and_is_accepted(fleet):
    """The operator retires old releases by signing a floor."""
    current = fleet.released(("1.0.0", 1), ("1.1.0", 2))
    raised = image.raise_floor(current, "digits", 2, fleet.operator, fleet.now)
    assert {"digits": 2} == fleet.accept(current, raised).floors


@pytest.mark.parametrize("floor", [-1, 0, 1, 3])
def test_a_floor_neither_falls_nor_retires_the_newest(fleet, floor):
    """From floor 1, with releases 1 and 2, only 2 can be signed."""
    raw = image.raise_floor(fleet.released(("1.0.0", 1), ("1.1.0", 2)), "digits", 1, fleet.operator, fleet.now)
    with pytest.raises(RefusedError, match="expected a floor from 2 to 2 for digits"):
        image.raise_floor(raw, "digits", floor, fleet.operator, fleet.now)


def test_the_operator_signs_over_nothing_that_it_did_not_sign(fleet):
    """A service that alters the list, or makes one up, gets no signature."""
    manifest = fleet.manifest("9.0.0", 9)
    genuine = fleet.released(("1.0.0", 1))
    stranger = image.first_targets(generate_signer(), fleet.now)
    for forged in (genuine.replace(b"1.0.0", b"1.0.1"), stranger):
        with pytest.raises(SignatureError):
            image.add_release(forged, manifest, manifest.to_bytes(), fleet.operator, fleet.now)
        with pytest.raises(SignatureError):
            image.raise_floor(forged, "digits", 1, fleet.operator, fleet.now)


def test_an_operator_notices_an_old_list(fleet):
    """A service cannot have a floor undone by showing the operator the list from before it."""
    before = fleet.released(("1.0.0", 1), ("1.1.0", 2))
    after = image.raise_floor(before, "digits", 2, fleet.operator, fleet.now)
    fork = fleet.resign(fleet.resign(before, lambda _: None), lambda _: None)
    image.check_continues(before, None, fleet.image_root)
    image.check_continues(after, before, fleet.image_root)
    image.check_continues(after, after, fleet.image_root)
    with pytest.raises(RefusedError, match="returned targets version 3, this operator has seen 4"):
        image.check_continues(before, after, fleet.image_root)
    with pytest.raises(RefusedError, match="lower the floor of digits from 2 to 0"):
        image.check_continues(fork, after, fleet.image_root)


ATTACKS: list[tuple[str, Any, type[Exception], str]] = [
    ("a release dropped", lambda t: t.targets.pop(PATH), RefusedError, "drop models/digits/1.0.0.json"),
    ("a digest altered", lambda t: entry(t, "1.0.0").hashes.update(sha256="0" * 64), RefusedError, "alter models"),
    ("a length altered", lambda t: setattr(entry(t, "1.0.0"), "length", 7), RefusedError, "alter models"),
    ("a claim altered", lambda t: entry(t, "1.0.0").custom.update(release_counter=9), RefusedError, "alter models"),
    ("a floor dropped", lambda t: t.unrecognized_fields.clear(), RefusedError, "floor of digits from 1 to 0"),
    ("a floor lowered", lambda t: set_floor(t, {"digits": 0}), RefusedError, "floor of digits from 1 to 0"),
    ("a floor too high", lambda t: set_floor(t, {"digits": 3}), RefusedError, "expected a floor from 1 to 2"),
    ("a floor of nothing", lambda t: set_floor(t, {"digits": 1, "ghost": 1}), RefusedError, "for 'ghost', got 1"),
    ("a floor below 1", lambda t: set_floor(t, {"digits": 1, "x": -1}), RefusedError, "got -1"),
    ("a floor that is text", lambda t: set_floor(t, {"digits": "1"}), MalformedError, "Expected `int`"),
    ("floors of another shape", lambda t: set_floor(t, [1]), MalformedError, "Expected `object`"),
    ("a counter used again", lambda t: claim(t, release_counter=1), RefusedError, "release_counter above 1, got 1"),
    ("counter zero", lambda t: claim(t, release_counter=0), RefusedError, "release_counter above 1, got 0"),
    ("a negative counter", lambda t: claim(t, release_counter=-5), MalformedError, "Expected `int` >= 0"),
    ("a boolean counter", lambda t: claim(t, release_counter=True), MalformedError, "Expected `int`"),
    ("a huge counter", lambda t: claim(t, release_counter=1 << 60), MalformedError, "Expected `int` <="),
    (
        "another version in the claim",
        lambda t: claim(t, version="1.1.1"),
        MalformedError,
        "expected models/digits/1.1.1",
    ),
    ("another model in the claim", lambda t: claim(t, model="letters"), MalformedError, "expected models/letters"),
    ("an extra field in the claim", lambda t: claim(t, note="hi"), MalformedError, "nothing else"),
    ("no claim", lambda t: entry(t).unrecognized_fields.clear(), MalformedError, "Expected `object`"),
    ("half a claim", lambda t: entry(t).custom.pop("version"), MalformedError, "missing required field"),
    ("a path outside", lambda t: rename(t, "../../etc/passwd"), MalformedError, "expected models/digits/1.1.0.json"),
    ("a bad model name", lambda t: claim(t, model="../x"), UnknownIdentifierError, "expected a model name"),
    ("a bad version", lambda t: claim(t, version="latest"), UnknownIdentifierError, "expected a version like"),
    ("an empty manifest", lambda t: setattr(entry(t), "length", 0), LimitExceededError, "got 0"),
    ("a huge manifest", lambda t: setattr(entry(t), "length", 10**9), LimitExceededError, "1,000,000,000"),
    ("two digests", lambda t: entry(t).hashes.update(sha512="0" * 128), MalformedError, "one digest, a SHA-256"),
    (
        "a digest of another kind",
        lambda t: setattr(entry(t), "hashes", {"md5": "0" * 32}),
        MalformedError,
        "one digest",
    ),
    ("a short digest", lambda t: entry(t).hashes.update(sha256="abc"), UnknownIdentifierError, "64 hexadecimal"),
    ("delegations", lambda t: setattr(t, "delegations", Delegations({}, {})), MalformedError, "without delegations"),
    ("a version ahead", lambda t: setattr(t, "version", 9), ConflictError, "expected targets version 5 after the"),
    ("the same version", lambda t: setattr(t, "version", 4), ConflictError, "got 4"),
    ("version 1 again", lambda t: setattr(t, "version", 1), ConflictError, "got 1"),
    ("an end in the past", lambda t: setattr(t, "expires", t.expires - timedelta(days=400)), ExpiredError, "ended at"),
    (
        "no end in sight",
        lambda t: setattr(t, "expires", t.expires + timedelta(days=40)),
        RefusedError,
        "within 400 days",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), [a[1:] for a in ATTACKS], ids=[a[0] for a in ATTACKS])
def test_even_the_operators_key_cannot(fleet, change, error, message):
    """The rules hold for metadata with a valid signature as well."""
    current = image.raise_floor(fleet.released(("1.0.0", 1)), "digits", 1, fleet.operator, fleet.now)
    current = fleet.resign(current, lambda _: None)
    manifest = fleet.manifest("1.1.0", 2)
    good = image.add_release(current, manifest, manifest.to_bytes(), fleet.operator, fleet.now)
    assert 5 == fleet.accept(current, good).version
    previous: Metadata[Targets] = Metadata.from_bytes(good)
    previous.signed.version -= 1
    with pytest.raises(error, match=message):
        fleet.accept(current, fleet.resign(previous.to_bytes(), change))


def test_several_releases_may_come_at_once_in_any_order(fleet):
    """Counters rise over what is current; among the new ones they only have to differ."""
    current, more = fleet.released(("1.0.0", 1)), fleet.released(("1.0.0", 1), ("2.0.0", 5), ("1.5.0", 7))

    def add_both(targets: Targets) -> None:
        targets.targets = Metadata[Targets].from_bytes(more).signed.targets

    accepted = fleet.accept(current, fleet.resign(current, add_both))
    assert {("1.5.0", 7), ("2.0.0", 5)} == {(r.claim.version, r.claim.release_counter) for r in accepted.added}

    def give_both_one_counter(targets: Targets) -> None:
        add_both(targets)
        targets.targets["models/digits/1.5.0.json"].custom.update(release_counter=5)

    with pytest.raises(RefusedError, match="release_counter above 5, got 5"):
        fleet.accept(current, fleet.resign(current, give_both_one_counter))


def test_signatures_of_others_do_not_count(fleet):
    """Neither the server's own keys, nor root keys, nor a stranger's can sign targets."""
    current = fleet.released(("1.0.0", 1))
    for signer in (fleet.snapshot, fleet.timestamp, fleet.director, fleet.image_roots[0], generate_signer()):
        with pytest.raises(SignatureError, match="not signed by this fleet's operator"):
            fleet.accept(current, fleet.resign(current, lambda _: None, signer))


def test_one_content_has_one_spelling(fleet):
    """Padding, another key order, duplicate keys, and signatures of strangers beside the good one are refused."""
    current = fleet.released(("1.0.0", 1))
    good = fleet.resign(current, lambda _: None)
    document = json.loads(good)
    stranger: Metadata[Targets] = Metadata.from_bytes(good)
    stranger.sign(generate_signer(), append=True)
    for spelling in (
        good + b" ",
        json.dumps(document, indent=1).encode(),
        good.replace(b'"signed":{', b'"signed":{"version":99,', 1),
        b'{"signed":{},' + good[1:],
        stranger.to_bytes(JSONSerializer(compact=True)),
    ):
        with pytest.raises(MalformedError, match="compact canonical form"):
            fleet.accept(current, spelling)
    assert 3 == fleet.accept(current, good).version


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\x00\xff",
        b'{"signed": {}, "signatures": []}',
        b"[" * 200_000,
        b'{"a":' * 50_000,
        b'{"signed":{"_type":"targets","version":' + b"9" * 5_000 + b"}}",
    ],
    ids=["empty", "null", "list", "object", "binary", "hollow", "deep list", "deep object", "endless number"],
)
def test_what_is_no_metadata_is_malformed(fleet, raw):
    """Whatever comes over the API, the answer is a message."""
    with pytest.raises(MalformedError, match="not a valid targets metadata"):
        fleet.accept(None, raw)


def test_surrogates_and_floats_cannot_be_signed_for(fleet):
    """Text that is not Unicode and numbers that have no canonical form do not pass as signed."""
    current = fleet.released(("1.0.0", 1))
    good = fleet.resign(current, lambda _: None)
    for forged in (good.replace(b"digits", b"\\ud800"), good.replace(b'"length":', b'"length":1.5,"x":')):
        with pytest.raises(ProtocolError):
            fleet.accept(current, forged)


def test_endless_targets_are_not_parsed(fleet):
    """The size is looked at first."""
    with pytest.raises(LimitExceededError, match="at most 4,194,304 bytes, got 4,194,305"):
        fleet.accept(None, b"[" * (image.MAX_TARGETS_BYTES + 1))


def test_another_role_is_not_targets(fleet):
    """A snapshot, even one with a good signature, is not targets metadata."""
    snapshot = image.sign_snapshot(fleet.released(), 1, fleet.operator, fleet.now)
    with pytest.raises(MalformedError, match="expected metadata of type targets, got 'snapshot'"):
        fleet.accept(None, snapshot)


def test_a_manifest_must_be_the_signed_one(fleet):
    """The service does not take another manifest, or a longer one, for a signed digest."""
    targets = fleet.accept(None, fleet.resign(fleet.released(), lambda t: setattr(t, "version", 1))).targets
    manifest = fleet.manifest("1.0.0", 1)
    targets.targets[PATH] = TargetFile.from_data(PATH, manifest.to_bytes(), ["sha256"])
    for raw in (fleet.manifest("1.0.0", 2).to_bytes(), manifest.to_bytes() + b" ", b""):
        with pytest.raises(DigestError, match="not the one that the targets sign"):
            image.open_manifest(targets, PATH, raw)
    targets.targets[PATH].unrecognized_fields["custom"] = {"model": "digits", "version": "1.0.0", "release_counter": 8}
    with pytest.raises(MalformedError, match="the manifest says"):
        image.open_manifest(targets, PATH, manifest.to_bytes())


def test_snapshot_and_timestamp_name_what_they_vouch_for(fleet):
    """Both carry version and digest, and end after 7 days and 1 day."""
    targets = fleet.released(("1.0.0", 1))
    raw = image.sign_snapshot(targets, 12, fleet.snapshot, fleet.now)
    snapshot: Metadata[Snapshot] = Metadata.from_bytes(raw)
    meta = snapshot.signed.meta["targets.json"]
    assert (12, 2, fleet.now + timedelta(days=7)) == (snapshot.signed.version, meta.version, snapshot.signed.expires)
    meta.verify_length_and_hashes(targets)
    timestamp: Any = Metadata.from_bytes(image.sign_timestamp(raw, 34, fleet.timestamp, fleet.now)).signed
    assert (34, 12) == (timestamp.version, timestamp.snapshot_meta.version)
    assert fleet.now + timedelta(days=1) == timestamp.expires
    timestamp.snapshot_meta.verify_length_and_hashes(raw)


@pytest.mark.property
@given(st.data())
def test_damage_is_always_answered(fleet_of_module, data):
    """Any damage to signed targets ends in an error of ours, never in acceptance or another exception."""
    fleet, current, good = fleet_of_module
    raw = bytearray(good)
    start = data.draw(st.integers(0, len(raw) - 1))
    end = data.draw(st.integers(start, min(len(raw), start + 40)))
    raw[start:end] = data.draw(st.binary(max_size=40))
    if bytes(raw) == good:
        return
    with pytest.raises((ProtocolError, ControllerError)):
        fleet.accept(current, bytes(raw))


@pytest.fixture(scope="module")
def fleet_of_module(make_fleet):
    """A fleet, its current targets and good new ones, made once: keys are costly."""
    fleet = make_fleet()
    current = fleet.released(("1.0.0", 1))
    return fleet, current, fleet.resign(current, lambda _: None)
