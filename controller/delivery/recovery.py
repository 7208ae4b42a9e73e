"""What a database that is older than the broker or the devices learns from what is retained.

After a restore the next version of everything that the service signs must be above all that devices may have seen.
Only what our own keys signed counts, so that nobody can drive the versions up. Roots and targets that the operator
signed meanwhile are taken back as they are; of a release whose files are not here, the operator is told.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from controller.commands.releases import adopt_targets
from controller.core import Core
from controller.delivery.memory import BrokerMemory
from controller.delivery.metadata import Seen, sign_snapshot
from controller.errors import ControllerError
from controller.store import outbox
from controller.store.audit import Actor
from controller.store.batches import batches
from controller.store.metadata import Domain, keep, newest, newest_root
from controller.store.models import DeviceRow, DirectorRow, MetadataRow
from controller.trust.image import newest_targets
from protocol.assignment import Assignment, extension, parse_metadata
from protocol.errors import ProtocolError, SignatureError
from protocol.identifiers import DeviceId
from protocol.repository import MetadataSet, walk_roots
from protocol.topics import Topics

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
_AT_ONCE = 100
_ACTOR = Actor(name="service", request_id="restore")
S = TypeVar("S", Timestamp, Snapshot, Targets)


def learn_from_broker(core: Core, topics: Topics, memory: BrokerMemory) -> None:
    """Bring the database up to what the broker holds of ours; raises BrokerError when the broker does not answer."""
    found = memory.retained([topics.timestamp, topics.metadata], TIMEOUT_S)
    with core.store.write() as session:
        learn_metadata(session, core, found.get(topics.timestamp, b""), found.get(topics.metadata, b""))
    with core.store.read() as session:
        devices = list(session.scalars(select(DeviceRow.id)))
    for batch in batches(devices, _AT_ONCE):
        wanted = {topics.director(DeviceId(device)): device for device in batch}
        found = memory.retained(list(wanted), TIMEOUT_S)
        with core.store.write() as session:
            learn_documents(session, core, {wanted[topic]: raw for topic, raw in found.items() if topic in wanted})


def learn_metadata(session: Session, core: Core, timestamp_raw: bytes, set_raw: bytes) -> None:
    """Take over newer roots and targets, and sign above the snapshot and timestamp that devices have seen."""
    try:
        sent = MetadataSet.from_bytes(set_raw) if set_raw else MetadataSet(image={}, director={})
    except ProtocolError as error:
        log.warning("the metadata set on the broker is not ours", extra={"reason": str(error)})
        sent = MetadataSet(image={}, director={})
    _learn_roots(session, core, "image", sent.image)
    _learn_roots(session, core, "director", sent.director)
    _learn_targets(session, core, sent.image)
    seen = _seen(session, timestamp_raw, sent.image)
    mine = newest(session, "image", "timestamp")
    if mine is not None and mine.raw != timestamp_raw and seen.timestamp >= mine.version:
        log.warning("the broker has newer metadata than this database: it was restored", extra=_versions(seen))
        sign_snapshot(session, core, seen)
    elif (snapshot := newest(session, "image", "snapshot")) is not None and seen.snapshot > snapshot.version:
        sign_snapshot(session, core, seen)


def learn_documents(session: Session, core: Core, found: Mapping[str, bytes]) -> None:
    """Have documents signed above those on the broker, where these are newer than or differ from ours."""
    root = _parse_root(newest_root(session, "director"))
    ids = list(found)
    rows = {row.id: row for row in session.scalars(select(DeviceRow).where(DeviceRow.id.in_(ids)))}
    stored = {row.device_id: row for row in session.scalars(select(DirectorRow).where(DirectorRow.device_id.in_(ids)))}
    overtaken = []
    for device, raw in found.items():
        document = stored.get(device)
        if document is not None and document.raw == raw:
            continue
        try:
            signed = _verified(raw, Targets, root)
            if extension(signed, Assignment).device_id != device:
                continue
        except ProtocolError:
            continue  # not ours: devices refuse it as well
        row = rows[device]
        if signed.version >= row.director_version:
            if row.restored_version is None:
                row.restored_version = row.director_version
            row.director_version = signed.version
            if document is not None:
                document.renew_at_ms = core.now_ms()
            overtaken.append(device)
    if overtaken:
        log.warning("the broker has newer documents than this database", extra={"devices": len(overtaken)})
    outbox.mark(session, "assign", overtaken)


def _learn_roots(session: Session, core: Core, domain: Domain, files: Mapping[str, str]) -> None:
    trusted = newest_root(session, domain)
    try:
        last = walk_roots(trusted, dict(files)).signed.version
    except ProtocolError as error:
        log.warning("a root on the broker is not vouched for", extra={"domain": domain, "reason": str(error)})
        return
    for version in range(_parse_root(trusted).version + 1, last + 1):
        raw = files[f"{version}.root.json"].encode()
        keep(session, MetadataRow(domain=domain, name="root", version=version, raw=raw, signed_at_ms=core.now_ms()))
    session.flush()


def _learn_targets(session: Session, core: Core, files: Mapping[str, str]) -> None:
    current = newest(session, "image", "targets")
    candidates = [text.encode() for name, text in files.items() if name.endswith(".targets.json")]
    for raw in candidates:
        try:
            newer = newest_targets(current.raw if current else None, raw, newest_root(session, "image"))
            if newer is not None:
                missing = adopt_targets(session, core, newer, raw, _ACTOR)
                sign_snapshot(session, core)
                log.warning("took back the operator's newer targets", extra={"missing_releases": len(missing)})
        except (ControllerError, ProtocolError) as error:
            log.warning("the targets on the broker are not taken", extra={"reason": str(error)})


def _seen(session: Session, timestamp_raw: bytes, files: Mapping[str, str]) -> Seen:
    root = _parse_root(newest_root(session, "image"))
    timestamp = snapshot = 0
    try:
        signed = _verified(timestamp_raw, Timestamp, root) if timestamp_raw else None
        if signed is not None:
            timestamp, snapshot = signed.version, signed.snapshot_meta.version
    except ProtocolError as error:
        log.warning("the timestamp on the broker is not ours", extra={"reason": str(error)})
    for text in (text for name, text in files.items() if name.endswith(".snapshot.json")):
        try:
            snapshot = max(snapshot, _verified(text.encode(), Snapshot, root).version)
        except ProtocolError as error:
            log.warning("the snapshot on the broker is not ours", extra={"reason": str(error)})
    return Seen(snapshot=snapshot, timestamp=timestamp)


def _verified(raw: bytes, kind: type[S], root: Root) -> S:
    metadata: Metadata[S] = parse_metadata(raw, f"{kind.type} metadata")
    if not isinstance(metadata.signed, kind):
        raise SignatureError(f"expected metadata of type {kind.type}, got {metadata.signed.type!r}")
    try:
        root.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError, RecursionError) as error:
        raise SignatureError(f"{kind.type} is not signed by this fleet: {error}") from error
    return metadata.signed


def _parse_root(raw: bytes) -> Root:
    return walk_roots(raw, {}).signed


def _versions(seen: Seen) -> dict[str, Sequence[int] | int]:
    return {"snapshot_version": seen.snapshot, "timestamp_version": seen.timestamp}
