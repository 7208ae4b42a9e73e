"""What a device makes of both domains: a standard TUF client over the metadata set, and the named attacks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer
from tuf.ngclient import FetcherInterface, Updater

from controller.trust import image
from controller.trust.director import sign_assignment
from controller.trust.keys import generate_signer
from protocol.assignment import AssignedRelease, Assignment, verify_assignment
from protocol.errors import ExpiredError, MalformedError, RollbackError, SignatureError, WrongDeviceError
from protocol.repository import MetadataSet, check_floor, walk_roots

PATH = "models/digits/1.1.0.json"


class Memory(FetcherInterface):
    """Serves metadata by name, as a device serves what it received to its own updater."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix("memory:/")
        if name not in self.files:
            raise DownloadHTTPError(f"no {name}", 404)
        return iter((self.files[name],))


@dataclass
class Repository:
    """The image repository as published, and what an attacker between it and the device may do with it."""

    fleet: Any
    targets: list[bytes] = field(default_factory=list)
    snapshots: list[bytes] = field(default_factory=list)
    timestamps: list[bytes] = field(default_factory=list)

    def publish(self, targets: bytes) -> None:
        """Sign snapshot and timestamp over `targets`."""
        version = len(self.targets) + 1
        self.targets.append(targets)
        self.snapshots.append(image.sign_snapshot(targets, version, self.fleet.snapshot, self.fleet.now))
        self.timestamps.append(image.sign_timestamp(self.snapshots[-1], version, self.fleet.timestamp, self.fleet.now))

    def files(self, state: int = -1) -> dict[str, bytes]:
        """Return what a device receives: the set, taken apart, and the timestamp."""
        published = image.build_metadata_set(
            [self.fleet.image_root, self.targets[state], self.snapshots[state]], [self.fleet.director_root]
        )
        received = MetadataSet.from_bytes(published)
        named = {name: text.encode() for name, text in received.image.items()}
        return {**named, "timestamp.json": self.timestamps[state]}


@pytest.fixture
def repository(fleet):
    """Two states: digits 1.0.0, then 1.1.0 as well. Signed now, because a TUF client reads the clock."""
    fleet.now = datetime.now(UTC)
    fleet.__post_init__()
    repository = Repository(fleet)
    repository.publish(fleet.released(("1.0.0", 1)))
    repository.publish(fleet.released(("1.0.0", 1), ("1.1.0", 2)))
    return repository


def refresh(fleet, files: dict[str, bytes], state: Path) -> Updater:
    """Run a device's updater over `files`; it keeps what it has seen in `state`."""
    updater = Updater(str(state), "memory:", fetcher=Memory(files), bootstrap=fleet.image_root)
    updater.refresh()
    return updater


def sign(signed: Timestamp | Snapshot | Targets | Root, *signers: CryptoSigner) -> bytes:
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(JSONSerializer(compact=True))


def signed_timestamp(repository: Repository, snapshot: bytes, version: int, signer: CryptoSigner) -> bytes:
    of = Metadata[Snapshot].from_bytes(snapshot).signed.version
    meta = MetaFile.from_data(of, snapshot, ["sha256"])
    return sign(
        Timestamp(version=version, expires=repository.fleet.now + timedelta(days=1), snapshot_meta=meta), signer
    )


def test_a_device_believes_the_published_set(fleet, repository, tmp_path):
    """A standard TUF client finds the release; its manifest passes the floor."""
    updater = refresh(fleet, repository.files(), tmp_path)
    info = updater.get_targetinfo(PATH)
    manifest = fleet.manifest("1.1.0", 2)
    assert info is not None
    info.verify_length_and_hashes(manifest.to_bytes())
    check_floor(Metadata[Targets].from_bytes(repository.targets[-1]).signed, manifest, PATH)


def test_a_device_that_was_away_takes_the_newest(fleet, repository, tmp_path):
    """From the first state, the next one is accepted."""
    assert refresh(fleet, repository.files(0), tmp_path).get_targetinfo(PATH) is None
    assert refresh(fleet, repository.files(1), tmp_path).get_targetinfo(PATH) is not None


def test_the_set_holds_each_file_under_its_own_name(fleet, repository):
    """Names come from the signed versions and types, so they cannot disagree."""
    received = MetadataSet.from_bytes(
        image.build_metadata_set(
            [fleet.image_root, repository.targets[1], repository.snapshots[1]], [fleet.director_root]
        )
    )
    assert {"1.root.json", "3.targets.json", "2.snapshot.json"} == set(received.image)
    assert {"1.root.json": fleet.director_root.decode()} == received.director
    assert walk_roots(fleet.director_root, received.director).signed.version == 1


def test_rollback_of_the_timestamp(fleet, repository, tmp_path):
    """Old, genuine metadata replayed to a device that has seen newer is refused."""
    refresh(fleet, repository.files(1), tmp_path)
    with pytest.raises(RepositoryError, match="New timestamp version 1 must be >= 2"):
        refresh(fleet, repository.files(0), tmp_path)


def test_mix_and_match(fleet, repository, tmp_path):
    """A new timestamp with an old snapshot, and a new snapshot with old targets, are refused."""
    old, new = repository.files(0), repository.files(1)
    with pytest.raises(RepositoryError):
        refresh(fleet, {**new, "2.snapshot.json": old["1.snapshot.json"]}, tmp_path)
    with pytest.raises(RepositoryError):
        refresh(fleet, {**new, "3.targets.json": old["2.targets.json"]}, tmp_path)


def test_a_stolen_timestamp_key_cannot_go_back(fleet, repository, tmp_path):
    """With the timestamp key alone an attacker cannot make a device take an older snapshot."""
    refresh(fleet, repository.files(1), tmp_path)
    forged = signed_timestamp(repository, repository.snapshots[0], 100, fleet.timestamp)
    with pytest.raises(RepositoryError):
        refresh(fleet, {**repository.files(0), "timestamp.json": forged}, tmp_path)


def test_a_stolen_server_cannot_add_a_release(fleet, repository, tmp_path):
    """With every key of the server, targets of its own making are refused: the operator did not sign them."""
    forged = fleet.resign(repository.targets[1], lambda _: None, fleet.snapshot)
    snapshot = image.sign_snapshot(forged, 3, fleet.snapshot, fleet.now)
    files = {
        **repository.files(),
        "4.targets.json": forged,
        "3.snapshot.json": snapshot,
        "timestamp.json": image.sign_timestamp(snapshot, 3, fleet.timestamp, fleet.now),
    }
    with pytest.raises(RepositoryError, match="targets was signed by 0/1 keys"):
        refresh(fleet, files, tmp_path)


def test_a_wrong_key(fleet, repository, tmp_path):
    """A timestamp of a stranger is refused."""
    forged = signed_timestamp(repository, repository.snapshots[1], 9, generate_signer())
    with pytest.raises(RepositoryError, match="timestamp was signed by 0/1 keys"):
        refresh(fleet, {**repository.files(), "timestamp.json": forged}, tmp_path)


def test_freeze(fleet, repository, tmp_path):
    """A timestamp that has ended tells that somebody holds the newer ones back."""
    frozen = image.sign_timestamp(repository.snapshots[1], 2, fleet.timestamp, fleet.now - timedelta(days=2))
    with pytest.raises(RepositoryError, match=r"timestamp\.json is expired"):
        refresh(fleet, {**repository.files(), "timestamp.json": frozen}, tmp_path)


def test_tampering(fleet, repository, tmp_path):
    """One changed byte anywhere is refused."""
    files = repository.files()
    for name in ("timestamp.json", "2.snapshot.json", "3.targets.json"):
        forged = files[name].replace(b'"spec_version":"1.0', b'"spec_version":"1.9')
        assert forged != files[name]
        with pytest.raises(RepositoryError):
            refresh(fleet, {**files, name: forged}, tmp_path)


def test_endless_data(fleet, repository, tmp_path):
    """A timestamp that does not end is not read to its end."""
    files = repository.files()
    with pytest.raises(DownloadError):
        refresh(fleet, {**files, "timestamp.json": files["timestamp.json"] + b" " * 1_000_000}, tmp_path)


def rotated(fleet, old: int, new: int) -> bytes:
    """Return a second root with three new root keys, signed by so many of the old and of the new."""
    root: Root = Metadata[Root].from_bytes(fleet.image_root).signed
    fresh = [generate_signer() for _ in range(3)]
    for signer in fleet.image_roots:
        root.revoke_key(signer.public_key.keyid, "root")
    for signer in fresh:
        root.add_key(signer.public_key, "root")
    root.version = 2
    return sign(root, *fleet.image_roots[:old], *fresh[:new])


@pytest.mark.parametrize(("old", "new"), [(0, 3), (1, 3), (3, 1), (3, 0)])
def test_a_root_needs_two_of_three_old_and_new_keys(fleet, repository, tmp_path, old, new):
    """Neither one stolen root key nor a stranger's keys replace the root; two of three do."""
    files = repository.files()
    with pytest.raises(RepositoryError, match=r"root was signed by [01]/2 keys"):
        refresh(fleet, {**files, "2.root.json": rotated(fleet, old, new)}, tmp_path)
    with pytest.raises(SignatureError):
        walk_roots(fleet.image_root, {"2.root.json": rotated(fleet, old, new).decode()})
    refresh(fleet, {**files, "2.root.json": rotated(fleet, 2, 2)}, tmp_path)


def assigned(fleet, repository: Repository, device: str = "press-7", version: int = 5, **change) -> bytes:
    """Return the director's document for a device."""
    release = AssignedRelease(model="digits", version="1.1.0", deployment_id="d-1")
    assignment = Assignment(device_id=device, issued_at_ms=0, releases=(release,))
    arguments = {"version": version, "now": fleet.now, "signer": fleet.director, **change}
    return sign_assignment(assignment, repository.targets[-1], **arguments)


def verify(fleet, raw: bytes, *, device: str = "press-7", floor: int = 5, now: datetime | None = None):
    root = Metadata[Root].from_bytes(fleet.director_root).signed
    return verify_assignment(raw, root=root, device_id=device, version_floor=floor, now=now or fleet.now)


def test_a_device_believes_its_director(fleet, repository):
    """Both domains name the same manifest."""
    verified = verify(fleet, assigned(fleet, repository))
    entry = Metadata[Targets].from_bytes(repository.targets[-1]).signed.targets[PATH]
    assert (5, {PATH: entry.hashes["sha256"]}) == (verified.version, verified.digests)


def test_replay_to_another_device(fleet, repository):
    """A genuine document of one device is nothing to another, however the attacker renames it."""
    raw = assigned(fleet, repository)
    with pytest.raises(WrongDeviceError, match="for device 'press-7', this is 'press-8'"):
        verify(fleet, raw, device="press-8")
    with pytest.raises(SignatureError):
        verify(fleet, raw.replace(b"press-7", b"press-8"), device="press-8")


def test_rollback_of_the_director(fleet, repository):
    """A document below what the device accepted is old."""
    with pytest.raises(RollbackError, match="has version 4, already accepted 5"):
        verify(fleet, assigned(fleet, repository, version=4))


def test_an_assignment_ends_after_seven_days(fleet, repository):
    """It is good for seven days, and no longer."""
    raw = assigned(fleet, repository)
    verify(fleet, raw, now=fleet.now + timedelta(days=6, hours=23))
    with pytest.raises(ExpiredError):
        verify(fleet, raw, now=fleet.now + timedelta(days=7, seconds=1))


def test_only_the_director_assigns(fleet, repository):
    """Keys of the image domain, of the root and of strangers sign no assignment."""
    for signer in (fleet.operator, fleet.snapshot, fleet.timestamp, fleet.director_roots[0], generate_signer()):
        with pytest.raises(SignatureError):
            verify(fleet, assigned(fleet, repository, signer=signer))


def test_image_metadata_is_no_assignment(fleet, repository):
    """Signed files of the other domain, and damaged ones, are refused before the signature is looked at."""
    for raw in (repository.targets[-1], repository.snapshots[-1], b"{}", b""):
        with pytest.raises(MalformedError):
            verify(fleet, raw)
