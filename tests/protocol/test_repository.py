"""Chains of roots, release floors and the metadata set: one test for each attack."""

import json
from datetime import timedelta

import pytest
from tuf.api.metadata import Metadata

from protocol import limits
from protocol.assignment import EXTENSION
from protocol.codec import encode
from protocol.compression import compress
from protocol.errors import LimitExceededError, MalformedError, ProtocolError, RollbackError, SignatureError
from protocol.repository import MetadataSet, ReleaseFloors, check_floor, floors, is_expiring, walk_roots
from tests.protocol.fleet import IMAGE, NOW, image_targets, manifest, sign
from tests.protocol.test_compression import noise

FIRST = IMAGE.signed_root(IMAGE.root())
NEW_KEYS = ("new root 1", "new root 2", "new root 3")
PATH = "models/double/1.0.0.json"


def chain(*links: bytes) -> dict[str, str]:
    """Return the roots after the first, by name."""
    return {f"{number}.root.json": raw.decode() for number, raw in enumerate(links, start=2)}


def rotated(version: int = 2, by: tuple[str, ...] = (*IMAGE.root_keys[:2], *NEW_KEYS[:2])) -> bytes:
    """Return a root that replaces all root keys, signed by `by`."""
    return sign(IMAGE.root(version, root_keys=NEW_KEYS), *by)


def test_no_later_root() -> None:
    """A chain without links ends at the trusted root."""
    assert 1 == walk_roots(FIRST, {}).signed.version


def test_a_rotation_of_all_keys() -> None:
    """A root signed by the old and by the new keys takes over, and leads on."""
    third = sign(IMAGE.root(3, root_keys=NEW_KEYS, targets="new targets"), *NEW_KEYS[1:])
    newest = walk_roots(FIRST, chain(rotated(), third))
    assert 3 == newest.signed.version
    assert 3 == walk_roots(rotated(), chain(rotated(), third)).signed.version


def test_links_behind_a_gap_are_not_reached() -> None:
    """Roots are followed one by one; what lies behind a missing one is not looked at."""
    assert 1 == walk_roots(FIRST, {"3.root.json": "rubbish"}).signed.version


def test_an_expired_root_is_followed() -> None:
    """A device that was away for years reaches the newest root."""
    old = IMAGE.root(2)
    old.expires = NOW - timedelta(days=2_000)
    assert 2 == walk_roots(FIRST, chain(sign(old, *IMAGE.root_keys))).signed.version


@pytest.mark.parametrize(
    "by",
    [
        (),
        IMAGE.root_keys[:2],
        NEW_KEYS[:2],
        (IMAGE.root_keys[0], *NEW_KEYS),
        (*IMAGE.root_keys, NEW_KEYS[0]),
        ("stranger 1", "stranger 2", *NEW_KEYS),
    ],
)
def test_attack_root_without_both_thresholds(by: tuple[str, ...]) -> None:
    """A new root needs two signatures of the old keys and two of its own."""
    with pytest.raises(SignatureError, match="root version 2"):
        walk_roots(FIRST, chain(rotated(by=by)))


def test_attack_one_key_signs_twice() -> None:
    """Two signatures of one key do not make a threshold of two."""
    tree = json.loads(sign(IMAGE.root(2), IMAGE.root_keys[0]))
    tree["signatures"] *= 2
    with pytest.raises(ProtocolError):
        walk_roots(FIRST, {"2.root.json": json.dumps(tree)})
    tree["signatures"][1] = {**tree["signatures"][1], "keyid": "00" * 32}
    with pytest.raises(SignatureError):
        walk_roots(FIRST, {"2.root.json": json.dumps(tree)})


@pytest.mark.parametrize("version", [1, 3, 99])
def test_attack_root_of_another_version(version: int) -> None:
    """The version inside is the one that the name says."""
    with pytest.raises(RollbackError, match=f"expected root version 2, got {version}"):
        walk_roots(FIRST, chain(sign(IMAGE.root(version), *IMAGE.root_keys)))


def test_attack_lowered_threshold_in_transit() -> None:
    """A root changed after signing is refused."""
    tree = json.loads(sign(IMAGE.root(2), *IMAGE.root_keys))
    tree["signed"]["roles"]["root"]["threshold"] = 1
    with pytest.raises(SignatureError):
        walk_roots(FIRST, {"2.root.json": json.dumps(tree)})


@pytest.mark.parametrize("text", ["", "{}", "null", "[" * 5_000, '{"signed":{},"signatures":[]}', "\0"])
def test_malformed_roots(text: str) -> None:
    """Rubbish in a chain raises ProtocolError, also as the trusted root."""
    with pytest.raises(MalformedError):
        walk_roots(FIRST, {"2.root.json": text})
    with pytest.raises(MalformedError):
        walk_roots(text.encode(), {})


def test_other_metadata_as_root() -> None:
    """Targets, well signed by the root keys, are no root."""
    with pytest.raises(MalformedError, match="type root, got 'targets'"):
        walk_roots(FIRST, chain(sign(image_targets(version=2), *IMAGE.root_keys)))


def test_floors() -> None:
    """A release at its floor passes, one below does not, and other models' floors do not matter."""
    release = manifest(counter=3)
    check_floor(image_targets(release), release, PATH)
    check_floor(image_targets(release, floors={"double": 3, "other": 9}), release, PATH)
    with pytest.raises(RollbackError, match="release counter 3, retired below 4"):
        check_floor(image_targets(release, floors={"double": 4}), release, PATH)


def test_a_release_that_is_not_there() -> None:
    """A path that the image repository does not list is refused, not looked up in vain."""
    with pytest.raises(MalformedError, match="not in the image repository"):
        check_floor(image_targets(), manifest(), PATH)


def test_attack_manifest_claims_another_counter() -> None:
    """The manifest must say what the targets sign: no counter of one's own choice."""
    with pytest.raises(MalformedError, match="the signed metadata"):
        check_floor(image_targets(manifest(counter=1)), manifest(counter=9), PATH)


@pytest.mark.parametrize("custom", [None, {}, {"model": "double"}, {"release_counter": "1"}, {"release_counter": -1}])
def test_a_claim_that_is_no_claim(custom: object) -> None:
    """Targets without a well-formed claim about the release are refused."""
    targets = image_targets(manifest())
    entry = targets.targets[PATH]
    entry.unrecognized_fields["custom"] = custom
    with pytest.raises(MalformedError, match=PATH):
        check_floor(targets, manifest(), PATH)


def test_targets_without_floors() -> None:
    """Targets that say nothing of floors have none; targets that say rubbish are refused."""
    targets = image_targets()
    del targets.unrecognized_fields[EXTENSION]
    assert ReleaseFloors() == floors(targets)
    targets.unrecognized_fields[EXTENSION] = {"min_release_counter": {"double": "many"}}
    with pytest.raises(MalformedError):
        floors(targets)


def test_metadata_sets_round_trip() -> None:
    """Every file comes back exactly as signed."""
    image = {"1.root.json": FIRST.decode(), "1.targets.json": sign(image_targets(manifest()), "image targets").decode()}
    sent = MetadataSet(image=image, director={"1.root.json": "{}\n"})
    assert sent == MetadataSet.from_bytes(sent.to_bytes())
    assert sent.to_bytes() == MetadataSet(image=dict(reversed(image.items())), director=sent.director).to_bytes()


def test_oversize_metadata_sets() -> None:
    """A set is bounded as it travels, and again when it is decompressed."""
    with pytest.raises(LimitExceededError, match="at most 4,194,304 bytes"):
        MetadataSet.from_bytes(noise(limits.MAX_METADATA_SET_BYTES + 1))
    bomb = compress(bytes(limits.MAX_METADATA_BYTES + 1))
    with pytest.raises(LimitExceededError, match="decompressed"):
        MetadataSet.from_bytes(bomb)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", compress(b""), compress(b"{}"), compress(b'{"image":{},"director":[]}'), compress(b"\xff")],
)
def test_malformed_metadata_sets(raw: bytes) -> None:
    """What is not a compressed set is malformed."""
    with pytest.raises(MalformedError):
        MetadataSet.from_bytes(raw)


def test_a_newer_metadata_set_is_understood() -> None:
    """Fields that a newer controller adds are ignored."""
    raw = compress(encode({"image": {}, "director": {}, "schema": 1, "mirrors": ["x"]}))
    assert MetadataSet(image={}, director={}) == MetadataSet.from_bytes(raw)


def test_expiring() -> None:
    """The warning starts when fewer than the given number of days is left."""
    metadata = Metadata(image_targets())
    assert not is_expiring(metadata, NOW + timedelta(days=365 - 60), days=60)
    assert is_expiring(metadata, NOW + timedelta(days=365 - 60, seconds=1), days=60)
