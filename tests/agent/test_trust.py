"""Attacks on the two trust domains, each by its name, and the ways of honest documents through them."""

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tuf
from tuf.api.metadata import Metadata, Targets
from tuf.ngclient import Updater

from agent.engine import Goal
from agent.identity import load_identity
from agent.image_repository import _Updater
from agent.store import Store
from agent.trust import Document, Judgement, Trust
from controller.trust.image import sign_snapshot, sign_timestamp
from controller.trust.keys import generate_signer
from protocol import limits
from protocol.assignment import build_targets
from protocol.codec import sha256
from protocol.manifest import FileRef
from protocol.repository import MetadataSet
from tests.agent.signing import Bundle, Signing, bundle, removal

FIRST = bundle()
SECOND = bundle("1.1.0", 2, factor=3.0)


class Device:
    """The trust of one device, with its disk, and a clock that a test sets."""

    def __init__(self, signing: Signing, folder: Path) -> None:
        self.signing = signing
        self.folder = folder
        signing.enroll(folder, "mqtt://127.0.0.1:1883")
        self.wall_ms = int(signing.now.timestamp() * 1000)
        self.store = Store(folder / "agent.db")
        self.trust = self.restarted()

    def restarted(self) -> Trust:
        self.trust = Trust(load_identity(self.folder), self.folder / "tuf", self.store)
        return self.trust

    def take(self, document: Document, raw: bytes) -> Judgement:
        return self.trust.judge(document, raw, self.wall_ms)

    def take_image(self) -> Judgement:
        """Take the image repository's present state."""
        self.take("metadata", self.signing.metadata)
        return self.take("timestamp", self.signing.timestamp)

    def assign(self, *bundles: Bundle) -> Judgement:
        return self.take("director", self.signing.assign(*bundles))


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device that has seen the first release."""
    device = Device(Signing(), tmp_path)
    device.signing.release(FIRST)
    device.take_image()
    yield device
    device.store.close()


def goal_of(judgement: Judgement) -> Goal:
    assert judgement.assignment is not None, judgement.problems
    return judgement.assignment.goals["scale"]


def codes(judgement: Judgement) -> dict[str, str]:
    return {str(name): reason.code for name, reason in judgement.problems.items()}


def test_release_that_both_domains_name_is_a_goal(device: Device) -> None:
    """The goal carries the digest and the length that both signed."""
    judgement = device.assign(FIRST)
    assert FileRef.of(FIRST.raw) == goal_of(judgement).manifest
    assert {} == judgement.problems


def test_documents_may_come_in_any_order(tmp_path: Path) -> None:
    """Director, timestamp, metadata: whichever comes last completes the goal; before, it waits."""
    device = Device(Signing(), tmp_path)
    device.signing.release(FIRST)
    waiting = device.assign(FIRST)
    assert None is goal_of(waiting).manifest
    assert waiting.is_behind
    device.take("timestamp", device.signing.timestamp)
    done = device.take("metadata", device.signing.metadata)
    assert FileRef.of(FIRST.raw) == goal_of(done).manifest
    assert not done.is_behind
    device.store.close()


def test_same_documents_again_give_the_same_judgement(device: Device) -> None:
    """A reconnection brings everything again."""
    raw = device.signing.assign(FIRST)
    first = device.take("director", raw)
    device.take_image()
    assert first == device.take("director", raw)


def test_removal_needs_no_image_repository(device: Device) -> None:
    """To stop a model the director's word is enough."""
    raw = device.signing.direct(device.signing.assignment(removals=(removal("scale", "1.0.0"),)))
    goal = goal_of(device.take("director", raw))
    assert (True, "remove-scale") == (goal.is_removal, goal.deployment_id)


def test_arbitrary_software_attack_on_the_director(device: Device) -> None:
    """A document that another key signed is not obeyed."""
    raw = device.signing.direct(device.signing.assignment(FIRST), signer=generate_signer())
    judgement = device.take("director", raw)
    assert {"director": "bad_signature"} == codes(judgement)
    assert None is judgement.assignment


def test_arbitrary_software_attack_on_the_image_repository(device: Device) -> None:
    """Targets that another key signed are not accepted, even with an honest snapshot and timestamp over them."""
    device.signing.targets_key = generate_signer()
    _resign_targets(device.signing)
    judgement = device.take_image()
    assert {"timestamp": "bad_signature"} == codes(judgement)


def test_stolen_director_key_cannot_choose_another_content(device: Device) -> None:
    """Mix-and-match: the director names a manifest of its own for a release of the image repository."""
    evil = Signing()
    evil.director_key = device.signing.director_key
    evil.device = device.signing.device
    evil.release(bundle(factor=666.0))
    raw = evil.assign(FIRST)
    goal = goal_of(device.take("director", raw))
    assert None is goal.manifest
    assert goal.refusal is not None
    assert "domains_disagree" == goal.refusal.code


def test_stolen_server_keys_cannot_add_a_release(device: Device) -> None:
    """Snapshot, timestamp and director keys together do not make a release: the operator's key is missing."""
    signing = device.signing
    evil = Signing()
    evil.release(FIRST, SECOND)
    signing.targets = evil.targets
    signing.sign_state()
    assert {"timestamp": "bad_signature"} == codes(device.take_image())
    assert None is goal_of(device.assign(SECOND)).manifest


def test_replay_to_another_device(device: Device) -> None:
    """The genuine document of one device is not obeyed by another one."""
    raw = device.signing.assign(FIRST, device="line-4-press")
    assert {"director": "wrong_device"} == codes(device.take("director", raw))


def test_rollback_attack_on_the_director(device: Device) -> None:
    """An older genuine document is not obeyed, not even after a restart."""
    old = device.signing.assign(FIRST)
    device.take("director", device.signing.assign())
    device.restarted()
    device.take_image()
    assert {"director": "below_floor"} == codes(device.take("director", old))


def test_rollback_attack_on_the_image_repository(device: Device) -> None:
    """An older genuine state of the repository is not accepted."""
    old_timestamp, old_metadata = device.signing.timestamp, device.signing.metadata
    device.signing.release(SECOND)
    device.take_image()
    device.restarted()
    device.take("metadata", old_metadata)
    assert {"timestamp": "below_floor"} == codes(device.take("timestamp", old_timestamp))


def test_rollback_attack_after_the_metadata_folder_was_lost(device: Device) -> None:
    """The floors in the database stand when the client's own files are gone."""
    old_timestamp, old_metadata = device.signing.timestamp, device.signing.metadata
    device.signing.release(SECOND)
    device.take_image()
    for path in (device.folder / "tuf/image").glob("*.json"):
        path.unlink()
    device.restarted()
    device.take("metadata", old_metadata)
    assert {"timestamp": "below_floor"} == codes(device.take("timestamp", old_timestamp))
    assert {} == codes(device.take_image())


def test_freeze_attack(device: Device) -> None:
    """A timestamp that is not renewed brings nothing new once it has ended."""
    device.signing.release(SECOND)
    device.take("metadata", device.signing.metadata)
    device.wall_ms += int(timedelta(days=2).total_seconds() * 1000)
    assert {"timestamp": "expired"} == codes(device.take("timestamp", device.signing.timestamp))


@pytest.mark.parametrize("is_restarted", [False, True])
def test_freeze_attack_on_a_running_agent(device: Device, is_restarted: bool) -> None:
    """Accepted metadata that has ended since brings nothing new, with a restart or without; newer metadata heals it."""
    signing = device.signing
    signing.release(SECOND)
    device.take_image()
    frozen = signing.metadata, signing.timestamp
    signing.later(days=30)
    device.wall_ms = int(signing.now.timestamp() * 1000)
    if is_restarted:
        device.restarted()
    device.take("metadata", frozen[0])
    assert {"timestamp": "expired"} == codes(device.take("timestamp", frozen[1]))
    judgement = device.assign(SECOND)
    assert None is goal_of(judgement).manifest
    assert {"timestamp": "expired"} == codes(judgement)
    assert judgement.is_behind
    signing.sign_state()
    healed = device.take_image()
    assert FileRef.of(SECOND.raw) == goal_of(healed).manifest
    assert {} == codes(healed)


def test_months_offline_do_not_block_recovery(device: Device) -> None:
    """Everything that the device holds has ended long ago: fresh documents are taken without a restart."""
    device.assign(FIRST)
    device.signing.later(days=200)
    device.wall_ms = int(device.signing.now.timestamp() * 1000)
    stale = device.trust.judge_again(device.wall_ms)
    assert {"timestamp": "expired", "director": "expired"} == codes(stale)
    device.signing.sign_state()
    device.signing.release(SECOND)
    device.take_image()
    assert FileRef.of(SECOND.raw) == goal_of(device.assign(SECOND)).manifest


def test_mix_and_match_attack_on_the_snapshot(device: Device) -> None:
    """Targets of one state with the snapshot of another one are not accepted."""
    old_targets = device.signing.targets
    device.signing.release(SECOND)
    opened = MetadataSet.from_bytes(device.signing.metadata)
    name = next(n for n in opened.image if n.endswith("targets.json"))
    mixed = msgspec.structs.replace(opened, image={**opened.image, name: old_targets.decode()})
    device.take("metadata", mixed.to_bytes())
    assert {"timestamp": "malformed"} == codes(device.take("timestamp", device.signing.timestamp))


def test_half_of_an_update_is_waited_for(device: Device) -> None:
    """A timestamp that has come before its metadata is no attack: the device is behind."""
    device.signing.release(SECOND)
    judgement = device.take("timestamp", device.signing.timestamp)
    assert {"timestamp": "incomplete"} == codes(judgement)
    assert judgement.is_behind
    assert {} == codes(device.take("metadata", device.signing.metadata))


def test_expired_assignment(device: Device) -> None:
    """A document that has ended is not obeyed; when the clock was wrong it is, later."""
    raw = device.signing.assign(FIRST)
    right = device.wall_ms
    device.wall_ms += int(timedelta(days=8).total_seconds() * 1000)
    assert {"timestamp": "expired", "director": "expired"} == codes(device.take("director", raw))
    assert FileRef.of(FIRST.raw) == goal_of(device.trust.judge_again(right)).manifest


@pytest.fixture
def clockless(tmp_path: Path) -> Iterator[Device]:
    """A device without a battery for its clock, which has seen the first release and its assignment."""
    device = Device(Signing(), tmp_path)
    device.wall_ms = 1_000
    device.signing.release(FIRST)
    device.take_image()
    assert FileRef.of(FIRST.raw) == goal_of(device.assign(FIRST)).manifest
    yield device
    device.store.close()


def test_clock_that_starts_in_1970_is_good_enough(clockless: Device) -> None:
    """It lives by the times that were signed: image metadata that has ended by them brings nothing new."""
    signing = clockless.signing
    stale = signing.timestamp
    signing.later(days=30)
    assert {"timestamp": "expired"} == codes(clockless.assign(FIRST))
    assert {"timestamp": "expired"} == codes(clockless.take("timestamp", stale))
    signing.sign_state()
    assert {} == codes(clockless.take_image())
    assert FileRef.of(FIRST.raw) == goal_of(clockless.assign(FIRST)).manifest


def test_controller_that_corrects_its_clock_is_followed(clockless: Device) -> None:
    """Its clock was 100 days ahead for an hour: the next document sets the device's time back, and all is well."""
    signing = clockless.signing
    signing.later(days=100)
    clockless.assign(FIRST)
    signing.later(days=-100)
    signing.sign_state()
    clockless.take_image()
    judgement = clockless.assign(FIRST)
    assert {} == codes(judgement)
    assert FileRef.of(FIRST.raw) == goal_of(judgement).manifest


def _claim(signing: Signing, issued_at: datetime, **values: Any) -> bytes:
    """Sign a document as a thief of the director's key would: any time, any end."""
    signing.director_version += 1
    issued_ms = min(int(issued_at.timestamp() * 1000), limits.MAX_INTEGER)
    assignment = msgspec.structs.replace(signing.assignment(FIRST), issued_at_ms=values.get("issued_ms", issued_ms))
    entry = Metadata[Targets].from_bytes(signing.targets).signed.targets[f"models/scale/{FIRST.manifest.version}.json"]
    targets = build_targets(
        assignment,
        {entry.path: entry},
        version=values.get("version", signing.director_version),
        expires=values.get("expires", FAR),
    )
    metadata = Metadata(targets)
    metadata.sign(signing.director_key)
    return metadata.to_bytes()


FAR = datetime(9999, 1, 1, tzinfo=UTC)
POISONS: dict[str, tuple[Callable[[Signing], bytes], str]] = {
    "later than any date": (lambda s: _claim(s, FAR, issued_ms=limits.MAX_INTEGER), "malformed"),
    "after its own end": (lambda s: _claim(s, s.now + timedelta(days=8), expires=_in(s, days=7)), "malformed"),
    "after the root's end": (lambda s: _claim(s, s.now + timedelta(days=366)), "expired"),
}


def _in(signing: Signing, **delta: float) -> datetime:
    return signing.now.replace(microsecond=0) + timedelta(**delta)


@pytest.mark.parametrize("name", POISONS)
@pytest.mark.parametrize("wall", ["1970", "right", "2099"])
def test_time_that_no_document_may_claim_poisons_no_device(clockless: Device, name: str, wall: str) -> None:
    """A thief of the director's key claims a far future: refused, whatever the clock here says; nothing stays."""
    signing = clockless.signing
    walls = {"1970": 1_000, "right": signing.now.timestamp() * 1000, "2099": 4_070_908_800_000}
    make, code = POISONS[name]
    clockless.wall_ms = int(walls[wall])
    assert code == codes(clockless.take("director", make(signing)))["director"]
    clockless.wall_ms = 1_000
    signing.later(days=1)
    signing.sign_state()
    assert "timestamp" not in codes(clockless.take_image())
    assert {} == codes(clockless.assign(FIRST))


def test_latest_time_that_a_thief_may_claim_is_healed_by_the_next_document(clockless: Device) -> None:
    """Up to the end of the director's root he can stop a device without a clock, until the director speaks again."""
    signing = clockless.signing
    clockless.take("director", _claim(signing, signing.now + timedelta(days=364)))
    signing.sign_state()
    assert {"timestamp": "expired"} == codes(clockless.take_image())
    assert {} == codes(clockless.assign(FIRST))


def test_new_director_key_heals_a_time_that_a_thief_claimed(clockless: Device) -> None:
    """Also when he raised the version so far that the old key can say nothing any more."""
    signing = clockless.signing
    before = signing.director_version
    clockless.take("director", _claim(signing, signing.now + timedelta(days=364), version=limits.MAX_INTEGER))
    assert "below_floor" == codes(clockless.assign(FIRST))["director"]
    signing.rotate_director()
    signing.director_version = before
    signing.sign_state()
    clockless.take_image()
    judgement = clockless.assign(FIRST)
    assert {} == codes(judgement)
    assert FileRef.of(FIRST.raw) == goal_of(judgement).manifest


def test_time_of_a_document_cannot_be_wound_back_by_a_repetition(clockless: Device) -> None:
    """Only a newer version says what time it is: an old document that a broker gives back does not."""
    signing = clockless.signing
    old = signing.assign(FIRST)
    clockless.take("director", old)
    signing.later(days=30)
    clockless.assign(FIRST)
    known = clockless.store.signed_time_ms()
    assert {"director": "below_floor", "timestamp": "expired"} == codes(clockless.take("director", old))
    assert known == clockless.store.signed_time_ms()


def test_believable_clock_bounds_the_time_that_is_kept(device: Device) -> None:
    """A controller that is ten days ahead: the device's own time, and an hour, is all that it remembers."""
    device.signing.later(days=10)
    device.assign(FIRST)
    assert device.wall_ms + 3_600_000 == device.store.signed_time_ms()


def test_controller_with_a_wrong_clock_does_not_poison_a_right_one(device: Device) -> None:
    """A document signed far in the future must not make all later ones look expired."""
    device.signing.later(days=3650)
    device.assign(FIRST)
    device.signing.later(days=-3650)
    device.signing.sign_state()
    device.take_image()
    assert FileRef.of(FIRST.raw) == goal_of(device.assign(FIRST)).manifest


def test_new_director_key_follows_from_a_chain_of_roots(device: Device) -> None:
    """After a key ceremony the new key is obeyed, the old one is not, also after a restart with no metadata at hand."""
    old_key = device.signing.director_key
    device.signing.rotate_director()
    device.take_image()
    assert FileRef.of(FIRST.raw) == goal_of(device.assign(FIRST)).manifest
    device.restarted()
    raw = device.signing.direct(device.signing.assignment(FIRST), signer=old_key)
    assert {"director": "bad_signature"} == codes(device.take("director", raw))


def test_replaced_director_key_stays_replaced_after_the_trust_folder_was_lost(device: Device) -> None:
    """The root of enrolment still vouches for the old key: its version is below the one that was accepted."""
    signing = device.signing
    old_key, old_metadata = signing.director_key, signing.metadata
    signing.rotate_director()
    device.take_image()
    shutil.rmtree(device.folder / "tuf")
    device.restarted()
    raw = signing.direct(signing.assignment(FIRST), signer=old_key, version=99)
    assert {"director": "below_floor"} == codes(device.take("director", raw))
    assert {"metadata": "below_floor", "director": "below_floor"} == codes(device.take("metadata", old_metadata))
    device.take_image()
    assert FileRef.of(FIRST.raw) == goal_of(device.assign(FIRST)).manifest


def test_director_root_that_ended_vouches_for_nothing_new(device: Device) -> None:
    """The document that was accepted stays; the next one needs a newer root."""
    signing = device.signing
    signing.later(days=364, hours=23)
    device.wall_ms = int(signing.now.timestamp() * 1000)
    kept = signing.assign(FIRST)
    device.take("director", kept)
    device.wall_ms += int(timedelta(days=1).total_seconds() * 1000)
    assert "director" not in codes(device.take("director", kept))
    assert "expired" == codes(device.assign(FIRST))["director"]


def test_new_director_key_heals_a_version_that_a_thief_raised(device: Device) -> None:
    """Fast-forward attack: a stolen key signs a huge version; the next root's key begins anew."""
    device.take("director", device.signing.direct(device.signing.assignment(), version=1 << 40))
    device.signing.rotate_director()
    device.take_image()
    judgement = device.take("director", device.signing.direct(device.signing.assignment(FIRST), version=3))
    assert FileRef.of(FIRST.raw) == goal_of(judgement).manifest


def test_root_that_its_predecessor_did_not_sign(device: Device) -> None:
    """A stranger cannot begin a new chain of director roots."""
    device.signing.director_root_keys = [generate_signer() for _ in range(3)]
    device.signing.rotate_director()
    judgement = device.take("metadata", device.signing.metadata)
    assert {"metadata": "bad_signature"} == codes(judgement)


BAD_METADATA: dict[str, tuple[bytes, str]] = {
    "garbage": (b"\0garbage", "malformed"),
    "nothing compressed": (b"{}", "malformed"),
    "too large": (b"x" * (limits.MAX_METADATA_SET_BYTES + 1), "limit_exceeded"),
    "bomb": (MetadataSet(image={"x": "\0" * 4_000_000}, director={}).to_bytes(), "limit_exceeded"),
    "wrong types": (MetadataSet(image={"1.root.json": "[]"}, director={"2.root.json": "{}"}).to_bytes(), "malformed"),
}


@pytest.mark.parametrize("name", BAD_METADATA)
def test_metadata_that_is_none(device: Device, name: str) -> None:
    """What does not parse, or is too large, is refused and leaves the state that was accepted before."""
    raw, code = BAD_METADATA[name]
    assert {"metadata": code} == codes(device.take("metadata", raw))
    assert FileRef.of(FIRST.raw) == goal_of(device.assign(FIRST)).manifest


@pytest.mark.parametrize("raw", [b"", b"{}", b"[" * 10_000, b"x" * (limits.MAX_TIMESTAMP_BYTES + 1)], ids=len)
def test_timestamp_that_is_none(device: Device, raw: bytes) -> None:
    """The same of the timestamp."""
    assert ["timestamp"] == list(codes(device.take("timestamp", raw)))
    assert FileRef.of(FIRST.raw) == goal_of(device.assign(FIRST)).manifest


@pytest.mark.parametrize("where", ["timestamp", "snapshot", "targets"])
def test_image_metadata_that_was_altered(device: Device, where: str) -> None:
    """One changed byte in any signed file is noticed."""
    device.signing.release(SECOND)
    timestamp, opened = device.signing.timestamp, MetadataSet.from_bytes(device.signing.metadata)
    alter: Callable[[str], str] = lambda text: text.replace('"spec_version"', '"Spec_version"')  # noqa: E731 - twice
    if where == "timestamp":
        timestamp = alter(timestamp.decode()).encode()
    image = {n: alter(text) if n.endswith(f"{where}.json") else text for n, text in opened.image.items()}
    device.take("metadata", msgspec.structs.replace(opened, image=image).to_bytes())
    assert "timestamp" in codes(device.take("timestamp", timestamp))
    assert None is goal_of(device.assign(SECOND)).manifest


def test_manifest_larger_than_any_device_takes_is_refused(device: Device) -> None:
    """The signed length of a manifest is bounded before anything is fetched."""
    targets = Metadata[Targets].from_bytes(device.signing.targets)
    targets.signed.targets["models/scale/1.0.0.json"].length = limits.MAX_MANIFEST_BYTES + 1
    targets.signed.version += 1
    targets.sign(device.signing.targets_key)
    device.signing.targets = targets.to_bytes()
    device.signing.sign_state()
    device.take_image()
    goal = goal_of(device.assign(FIRST))
    assert goal.refusal is not None
    assert "limit_exceeded" == goal.refusal.code


def test_accepted_targets_are_there_after_a_restart(device: Device) -> None:
    """Floors and claims can be checked before the broker is reached."""
    targets = device.restarted().targets
    assert targets is not None
    assert ["models/scale/1.0.0.json"] == list(targets.targets)


def test_every_trusted_file_is_whole_on_the_disk(device: Device) -> None:
    """No draft stays behind, and what is stored is what was signed."""
    stored = device.folder / "tuf/image/targets.json"
    assert sha256(device.signing.targets) == sha256(stored.read_bytes())
    assert [] == list((device.folder / "tuf").rglob("*.tmp"))


def test_the_clients_private_parts_that_we_rely_on_are_there(device: Device) -> None:
    """The trusted time and the durable writes hang on two private parts of python-tuf: fail here when they change."""
    assert "7.0.1" == tuf.__version__
    assert "_persist_file" in vars(Updater)
    root = device.signing.image_roots[0]
    updater = _Updater(device.folder / "other", root, _NoFetcher(), device.signing.now)
    assert device.signing.now == updater._trusted_set.reference_time


class _NoFetcher:
    """Never asked."""


def _resign_targets(signing: Signing) -> None:
    targets = Metadata[Targets].from_bytes(signing.targets)
    targets.signed.version += 1
    targets.sign(signing.targets_key)
    signing.targets = targets.to_bytes()
    signing.metadata_version += 1
    signing.snapshot = sign_snapshot(signing.targets, signing.metadata_version, signing.snapshot_key, signing.now)
    signing.timestamp = sign_timestamp(signing.snapshot, signing.metadata_version, signing.timestamp_key, signing.now)
