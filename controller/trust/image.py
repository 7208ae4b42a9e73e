"""The image repository: the operator's signed list of releases, and what the service adds to vouch that it is current.

The operator alone adds releases and raises floors. The service refuses what breaks a rule, and can forge nothing:
the list only ever grows, under one signature after another.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from controller.errors import ConflictError, RefusedError
from protocol import limits
from protocol.assignment import EXTENSION, ReleaseClaim, parse_metadata, target_path
from protocol.codec import sha256
from protocol.errors import DigestError, ExpiredError, LimitExceededError, MalformedError, SignatureError
from protocol.identifiers import Digest, Version, parse_digest, parse_model_name
from protocol.manifest import Manifest
from protocol.repository import MetadataSet, ReleaseFloors, check_floor, floors

TARGETS_VALID = timedelta(days=365)
TARGETS_VALID_MAX = timedelta(days=400)
SNAPSHOT_VALID = timedelta(days=7)
TIMESTAMP_VALID = timedelta(days=1)
MAX_TARGETS_BYTES = 4 * limits.MIB
"""Below the 5,000,000 bytes that a TUF client takes by default; some 20,000 releases."""

_SERIALIZER = JSONSerializer(compact=True)
_REFETCH = "fetch the current targets, make the change again and send the result"

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


class AddedRelease(NamedTuple):
    """A release that new targets metadata adds."""

    path: str
    claim: ReleaseClaim
    digest: Digest
    """The SHA-256 of its manifest."""


class AcceptedTargets(msgspec.Struct, frozen=True, kw_only=True):
    """Targets metadata that passed every check, and what is new in it."""

    version: int
    added: tuple[AddedRelease, ...]
    floors: dict[str, int]
    """The lowest release_counter of each model that may be installed."""
    targets: Targets
    """The signed content, for `open_manifest`."""


def first_targets(signer: CryptoSigner, now: datetime) -> bytes:
    """Return version 1 of the targets metadata: no release yet."""
    return _sign(Targets(version=1, expires=now), TARGETS_VALID, signer, now)


def add_release(
    targets_raw: bytes, manifest: Manifest, manifest_bytes: bytes, signer: CryptoSigner, now: datetime
) -> bytes:
    """Return the next version of the targets metadata, with one more release.

    `targets_raw` comes from the service, which may lie: it must carry the signature of `signer`. Compare it with what
    was seen before by `check_continues`.

    Raises:
        SignatureError: `signer` did not sign `targets_raw`.
        ConflictError: the version exists, or the release_counter is not the next.
    """
    targets = _own_targets(targets_raw, signer)
    path = target_path(manifest.model, manifest.version)
    if path in targets.targets:
        raise ConflictError(
            f"{manifest.model} {manifest.version} exists already", hint="a release never changes: choose a new version"
        )
    highest = _highest_counters(targets).get(manifest.model, 0)
    if manifest.release_counter <= highest:
        raise ConflictError(
            f"expected a release_counter above {highest} for {manifest.model}, got {manifest.release_counter}",
            hint="build the bundle again from the current targets",
        )
    claim = ReleaseClaim(model=manifest.model, version=manifest.version, release_counter=manifest.release_counter)
    entry = TargetFile.from_data(path, manifest_bytes, ["sha256"])
    entry.unrecognized_fields["custom"] = msgspec.to_builtins(claim)
    targets.targets[path] = entry
    return _sign_next(targets, signer, now)


def raise_floor(targets_raw: bytes, model: str, floor: int, signer: CryptoSigner, now: datetime) -> bytes:
    """Return the next version of the targets metadata, in which releases of `model` below `floor` are retired.

    Raises:
        SignatureError: `signer` did not sign `targets_raw`.
        RefusedError: the floor would fall, or leave no release.
    """
    targets = _own_targets(targets_raw, signer)
    signed_floors = dict(floors(targets).min_release_counter)
    lowest, highest = signed_floors.get(model, 0), _highest_counters(targets).get(model, 0)
    if not lowest < floor <= highest:
        raise RefusedError(
            f"expected a floor from {lowest + 1} to {highest} for {model}, got {floor}",
            hint="a floor only rises, and the newest release always stays installable",
        )
    signed_floors[model] = floor
    targets.unrecognized_fields[EXTENSION] = msgspec.to_builtins(ReleaseFloors(min_release_counter=signed_floors))
    return _sign_next(targets, signer, now)


def check_continues(fetched_raw: bytes, seen_raw: bytes | None, root_raw: bytes) -> None:
    """Raise unless targets metadata from the service is genuine and takes back nothing that the operator saw before.

    Without this a service could have the operator sign over an old list, and so undo retired releases.

    Raises:
        ProtocolError: `fetched_raw` is not signed under `root_raw`.
        RefusedError: it is older than `seen_raw`, or lacks something of it.
    """
    fetched = _verified_targets(fetched_raw, root_raw)
    if seen_raw is None or fetched_raw == seen_raw:
        return
    seen = _parse(seen_raw, Targets).signed
    if fetched.version == seen.version:
        raise RefusedError(
            f"the service returned another targets version {seen.version} than the one that this operator has seen",
            hint="somebody else signed over an older list: sign nothing before you know who did, and why",
        )
    if fetched.version < seen.version:
        raise RefusedError(
            f"the service returned targets version {fetched.version}, this operator has seen {seen.version}",
            hint="if the service was restored from an old backup, `fleetctl releases recover` gives it the newer list "
            "again; if not, sign nothing before you know why it is behind",
        )
    _check_grows(seen, fetched)


def accept_targets(current_raw: bytes | None, new_raw: bytes, root_raw: bytes, now: datetime) -> AcceptedTargets:
    """Return what `new_raw` changes, if the service may put it in force after `current_raw`.

    Raises:
        ProtocolError: it is too large, malformed, not signed under `root_raw`, or expired.
        ConflictError: another version came first; the message names the current one.
        RefusedError: it takes something back, or breaks a rule of release counters and floors.
    """
    new = _verified_targets(new_raw, root_raw)
    current = None if current_raw is None else _parse(current_raw, Targets).signed
    version = current.version if current else 0
    if new.version != version + 1:
        raise ConflictError(
            f"expected targets version {version + 1} after the current {version}, got {new.version}", hint=_REFETCH
        )
    if new.is_expired(now):
        raise ExpiredError(f"the targets ended at {new.expires:%Y-%m-%d %H:%M:%SZ}: see whether the clock is right")
    if new.expires > now + TARGETS_VALID_MAX:
        raise RefusedError(
            f"expected targets that end within {TARGETS_VALID_MAX.days} days, got {new.expires:%Y-%m-%d}",
            hint="see whether the clock of the signing machine is right",
        )
    return _examined(current, new)


def newest_targets(current_raw: bytes | None, found_raw: bytes, root_raw: bytes) -> AcceptedTargets | None:
    """Return what `found_raw` changes when the operator signed it after `current_raw`, else None.

    It may be several versions newer, or have ended: a database that was restored takes back what was in force.

    Raises:
        ProtocolError: it is too large, malformed, or not signed under `root_raw`.
        RefusedError: it takes something back, or breaks a rule of release counters and floors.
    """
    found = _verified_targets(found_raw, root_raw)
    current = None if current_raw is None else _parse(current_raw, Targets).signed
    if current is not None and found.version <= current.version:
        return None
    return _examined(current, found)


def _examined(current: Targets | None, new: Targets) -> AcceptedTargets:
    if current:
        _check_grows(current, new)
    known = current.targets if current else {}
    added = tuple(_parse_added(path, new.targets[path]) for path in sorted(new.targets) if path not in known)
    _check_counters(_highest_counters(current) if current else {}, added)
    signed_floors = floors(new).min_release_counter
    _check_floors(signed_floors, _highest_counters(new))
    return AcceptedTargets(version=new.version, added=added, floors=signed_floors, targets=new)


def open_manifest(targets: Targets, path: str, raw: bytes) -> Manifest:
    """Return the manifest `raw` of an accepted release, if it is what `targets` sign; raises ProtocolError."""
    entry = targets.targets[path]
    if sha256(raw) != entry.hashes["sha256"] or len(raw) != entry.length:
        raise DigestError(f"{path}: the manifest is not the one that the targets sign")
    manifest = Manifest.from_bytes(raw)
    check_floor(targets, manifest, path)
    return manifest


def sign_snapshot(targets_raw: bytes, version: int, signer: CryptoSigner, now: datetime) -> bytes:
    """Return the snapshot that names `targets_raw` by version and digest."""
    entry = MetaFile.from_data(_parse(targets_raw, Targets).signed.version, targets_raw, ["sha256"])
    return _sign(Snapshot(version=version, expires=now, meta={"targets.json": entry}), SNAPSHOT_VALID, signer, now)


def sign_timestamp(snapshot_raw: bytes, version: int, signer: CryptoSigner, now: datetime) -> bytes:
    """Return the timestamp that names `snapshot_raw` by version and digest."""
    entry = MetaFile.from_data(_parse(snapshot_raw, Snapshot).signed.version, snapshot_raw, ["sha256"])
    return _sign(Timestamp(version=version, expires=now, snapshot_meta=entry), TIMESTAMP_VALID, signer, now)


def build_metadata_set(image: Iterable[bytes], director: Iterable[bytes]) -> bytes:
    """Return the message for the metadata topic.

    `image` holds the image repository's signed files: every root, the snapshot and the targets; `director` holds every
    root of the director. Each is named by its own version and type, as `2.targets.json`.
    """
    return MetadataSet(image=_by_name(image), director=_by_name(director)).to_bytes()


def _by_name(files: Iterable[bytes]) -> dict[str, str]:
    named = {}
    for raw in files:
        signed = parse_metadata(raw, "metadata file").signed
        named[f"{signed.version}.{signed.type}.json"] = raw.decode()
    return named


def _sign(signed: S, valid: timedelta, signer: CryptoSigner, now: datetime) -> bytes:
    signed.expires = now.replace(microsecond=0) + valid
    metadata: Metadata[S] = Metadata(signed)
    metadata.sign(signer)
    return metadata.to_bytes(_SERIALIZER)


def _sign_next(targets: Targets, signer: CryptoSigner, now: datetime) -> bytes:
    targets.version += 1
    return _sign(targets, TARGETS_VALID, signer, now)


def _own_targets(raw: bytes, signer: CryptoSigner) -> Targets:
    metadata = _parse(raw, Targets)
    signature = metadata.signatures.get(signer.public_key.keyid)
    try:
        if signature is None:
            raise SignatureError("the targets from the service do not carry the signature of this operator's key")
        signer.public_key.verify_signature(signature, metadata.signed_bytes)
    except (UnverifiedSignatureError, VerificationError, RepositoryError, ValueError, RecursionError) as error:
        raise SignatureError("the targets from the service were altered after they were signed") from error
    return metadata.signed


def _verified_targets(raw: bytes, root_raw: bytes) -> Targets:
    """Return the signed content of `raw`: in bounds, in the one canonical form, and vouched for by the root."""
    if len(raw) > MAX_TARGETS_BYTES:
        raise LimitExceededError(f"expected targets of at most {MAX_TARGETS_BYTES:,} bytes, got {len(raw):,}")
    root = _parse(root_raw, Root).signed
    metadata = _parse(raw, Targets)
    try:
        root.verify_delegate(Targets.type, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError, RecursionError) as error:
        raise SignatureError(f"the targets are not signed by this fleet's operator: {error}") from error
    strangers = set(metadata.signatures) - set(root.roles[Targets.type].keyids)
    # One content has one spelling: no duplicate keys, padding or signatures of strangers that the operator never saw.
    if strangers or metadata.to_bytes(_SERIALIZER) != raw:
        raise MalformedError("expected targets in compact canonical form, signed by the operator alone")
    if metadata.signed.delegations is not None:
        raise MalformedError("expected targets without delegations")
    return metadata.signed


def _parse(raw: bytes, kind: type[S]) -> Metadata[S]:
    metadata: Metadata[Any] = parse_metadata(raw, f"{kind.type} metadata")
    if not isinstance(metadata.signed, kind):
        raise MalformedError(f"expected metadata of type {kind.type}, got {metadata.signed.type!r}")
    return metadata


def _parse_added(path: str, entry: TargetFile) -> AddedRelease:
    shown = path[:120]
    try:
        claim = msgspec.convert(entry.custom, ReleaseClaim)
    except msgspec.ValidationError as error:
        raise MalformedError(f"targets: {shown!r}: {error}") from error
    parse_model_name(claim.model)
    Version.parse(claim.version)
    if path != target_path(claim.model, claim.version):
        raise MalformedError(f"targets: expected {target_path(claim.model, claim.version)}, got {shown!r}")
    if entry.unrecognized_fields != {"custom": msgspec.to_builtins(claim)}:
        raise MalformedError(f"targets: {shown}: expected a release claim and nothing else")
    if not 0 < entry.length <= limits.MAX_MANIFEST_BYTES:
        raise LimitExceededError(
            f"targets: {shown}: expected a manifest of 1 to {limits.MAX_MANIFEST_BYTES:,} bytes, got {entry.length:,}"
        )
    if set(entry.hashes) != {"sha256"}:
        raise MalformedError(f"targets: {shown}: expected one digest, a SHA-256")
    return AddedRelease(path, claim, parse_digest(entry.hashes["sha256"]))


def _check_grows(old: Targets, new: Targets) -> None:
    for path, entry in old.targets.items():
        if path not in new.targets or new.targets[path] != entry:
            verb = "alter" if path in new.targets else "drop"
            raise RefusedError(f"the new targets {verb} {path}: a release never changes", hint=_REFETCH)
    new_floors = floors(new).min_release_counter
    for model, floor in floors(old).min_release_counter.items():
        if new_floors.get(model, 0) < floor:
            raise RefusedError(
                f"the new targets lower the floor of {model} from {floor} to {new_floors.get(model, 0)}", hint=_REFETCH
            )


def _check_counters(highest: dict[str, int], added: tuple[AddedRelease, ...]) -> None:
    used = dict(highest)
    for release in sorted(added, key=lambda release: release.claim.release_counter):
        model, counter = release.claim.model, release.claim.release_counter
        if counter <= used.get(model, 0):
            raise RefusedError(
                f"{release.path}: expected a release_counter above {used.get(model, 0)}, got {counter}", hint=_REFETCH
            )
        used[model] = counter


def _check_floors(signed_floors: dict[str, int], highest: dict[str, int]) -> None:
    for model, floor in signed_floors.items():
        if not 1 <= floor <= highest.get(model, 0):
            raise RefusedError(
                f"expected a floor from 1 to {highest.get(model, 0)} for {model[:80]!r}, got {floor}",
                hint="a floor names a release_counter of the model, so that its newest release stays installable",
            )


def _highest_counters(targets: Targets) -> dict[str, int]:
    highest: dict[str, int] = {}
    for path, entry in targets.targets.items():
        claim = _parse_added(path, entry).claim
        highest[claim.model] = max(highest.get(claim.model, 0), claim.release_counter)
    return highest
