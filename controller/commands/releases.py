"""Releases come in as signed targets metadata, after the files that they name."""

import logging

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from tuf.api.metadata import Targets

from controller.api.schema import Release, TargetsAccepted, TargetsRecovered
from controller.core import Core
from controller.delivery import metadata
from controller.errors import ConflictError, RefusedError
from controller.reads.releases import get_release, release_row
from controller.store import audit, outbox
from controller.store.audit import Actor, Deed
from controller.store.deployments import OPEN_STATES, close, refresh_rollout, standing
from controller.store.metadata import keep, newest, newest_root
from controller.store.models import DeploymentRow, DeviceRow, FileRow, MetadataRow, ModelRow, ReleaseFileRow, ReleaseRow
from controller.store.sweep import touch_file
from controller.trust import image
from protocol.errors import DigestError, ProtocolError
from protocol.identifiers import Digest
from protocol.manifest import FileRef, Manifest

log = logging.getLogger(__name__)

MAX_REASON_CHARS = 500
_RESTORED = select(DeviceRow.id).where(DeviceRow.restored_version.is_not(None))
"""Devices that may wait for a document about a release that was in no list."""


def accept_targets(core: Core, raw: bytes, actor: Actor) -> TargetsAccepted:
    """Put newly signed targets in force, sign what vouches for them, and have it published.

    The same bytes a second time are no error: the answer may have been lost on the way.

    Raises:
        ConflictError: another change came first.
        RefusedError: a file that a new release names was not uploaded, or is another.
        ProtocolError: the metadata is not signed, well-formed or append-only.
    """
    now_ms = core.now_ms()
    with core.store.write() as session:
        current = newest(session, "image", "targets")
        if current is not None and current.raw == raw:
            return TargetsAccepted(version=current.version, released=_released_by(session, current.version))
        accepted = image.accept_targets(
            current.raw if current else None, raw, newest_root(session, "image"), core.now()
        )
        for path, _, digest in accepted.added:
            manifest = _check_release(session, core, accepted.targets, path, digest)
            _add_release(session, manifest, digest, accepted.version, now_ms)
        _put_in_force(session, accepted, raw, now_ms)
        metadata.sign_snapshot(session, core)
        released = _released_by(session, accepted.version)
        deed = Deed(action="targets.put", subject=f"version {accepted.version}", detail=" ".join(released))
        audit.record(session, actor, deed, now_ms)
    core.wake_publisher()
    return TargetsAccepted(version=accepted.version, released=released)


def recover_targets(core: Core, raw: bytes, actor: Actor) -> TargetsRecovered:
    """Put the operator's own newest targets in force again, for a service that is behind them after a restore.

    Of the snapshots and timestamps that vouched for them nothing is known here: the next ones jump ahead of any that a
    device may have seen. With the targets that are in force already, releases whose files came back are added; then
    nothing was lost since, and the next ones follow.

    Raises:
        ConflictError: the service has newer targets.
        RefusedError: they take something back that is in force.
        ProtocolError: they are too large, malformed, or not signed by the operator.
    """
    with core.store.write() as session:
        current, root = newest(session, "image", "targets"), newest_root(session, "image")
        if current is not None and current.raw != raw and image.newest_targets(current.raw, raw, root) is None:
            raise ConflictError(
                f"the service has targets version {current.version}, which is no older than these",
                hint="there is nothing to recover: go on with `fleetctl push`",
            )
        whole = image.newest_targets(None, raw, root)
        assert whole is not None, "everything is newer than nothing"
        before = _count_releases(session)
        missing = adopt_targets(session, core, whole, raw, actor)
        if current is not None and current.raw == raw and _count_releases(session) > before:
            metadata.sign_snapshot(session, core)
        else:
            metadata.sign_snapshot(session, core, metadata.beyond_what_was_seen(session, core))
        outbox.mark(session, "assign", session.scalars(_RESTORED))
    core.wake_publisher()
    return TargetsRecovered(version=whole.version, missing=missing)


def _count_releases(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(ReleaseRow)) or 0


def adopt_targets(
    session: Session, core: Core, accepted: image.AcceptedTargets, raw: bytes, actor: Actor
) -> tuple[str, ...]:
    """Put targets in force that were in force before; return the releases whose files are not all on the disk.

    Devices that run one of those keep it, because the signed targets name it; it cannot be rolled out. A snapshot has
    to be signed next.
    """
    now_ms, missing = core.now_ms(), []
    for path, claim, digest in accepted.added:
        if session.get(ReleaseRow, (claim.model, claim.version)) is not None:
            continue
        try:
            manifest = image.open_manifest(accepted.targets, path, core.files.read(digest))
            sizes = {digest: accepted.targets.targets[path].length}
            sizes |= {file.digest: file.size for file in _files_of(manifest)}
            for file, size_bytes in sizes.items():
                if core.files.path(file).stat().st_size != size_bytes:
                    raise DigestError(f"file {file[:12]} is damaged")
        except (OSError, ProtocolError) as error:
            missing.append(f"{claim.model}@{claim.version}")
            log.warning("release without its files", extra={"release": missing[-1], "reason": str(error)})
            continue
        for file, size_bytes in sizes.items():
            if session.get(FileRow, file) is None:
                session.add(FileRow(digest=file, size_bytes=size_bytes, created_at_ms=now_ms))
        session.flush()
        _add_release(session, manifest, digest, accepted.version, now_ms)
    _put_in_force(session, accepted, raw, now_ms)
    deed = Deed(action="targets.adopt", subject=f"version {accepted.version}", detail="missing: " + " ".join(missing))
    audit.record(session, actor, deed, now_ms)
    return tuple(missing)


def _put_in_force(session: Session, accepted: image.AcceptedTargets, raw: bytes, now_ms: int) -> None:
    for model, floor in accepted.floors.items():
        if (row := session.get(ModelRow, model)) is not None:
            row.min_release_counter = floor
    targets = MetadataRow(domain="image", name="targets", version=accepted.version, raw=raw, signed_at_ms=now_ms)
    keep(session, targets)
    session.flush()


def _released_by(session: Session, targets_version: int) -> tuple[str, ...]:
    session.flush()
    rows = session.scalars(
        select(ReleaseRow).where(ReleaseRow.targets_version == targets_version).order_by(ReleaseRow.model)
    )
    return tuple(f"{row.model}@{row.version}" for row in rows)


def _check_release(session: Session, core: Core, targets: Targets, path: str, digest: Digest) -> Manifest:
    """Return the uploaded manifest of a new release, when everything that it names is here."""
    _require_file(session, core, FileRef(digest=digest, size=targets.targets[path].length), f"the manifest {path}")
    manifest = image.open_manifest(targets, path, core.files.read(digest))
    for file in _files_of(manifest):
        _require_file(session, core, file, f"a file of {manifest.model} {manifest.version}")
    return manifest


def _require_file(session: Session, core: Core, ref: FileRef, what: str) -> None:
    row = session.get(FileRow, ref.digest)
    hint = "upload every file of a release before its targets metadata, as `fleetctl push` does"
    if row is None or not core.files.has(ref.digest):
        raise RefusedError(f"{what} was not uploaded: SHA-256 {ref.digest}", hint=hint)
    if row.size_bytes != ref.size:
        raise RefusedError(f"{what} must have {ref.size:,} bytes, the uploaded one has {row.size_bytes:,}", hint=hint)


def _files_of(manifest: Manifest) -> list[FileRef]:
    """Return what a device may need; the source that `provenance` names never travels."""
    return [*(variant.file for variant in manifest.variants), manifest.self_test.file]


def _add_release(session: Session, manifest: Manifest, digest: Digest, targets_version: int, now_ms: int) -> None:
    model = session.get(ModelRow, manifest.model)
    if model is None:
        model = ModelRow(name=manifest.model, created_at_ms=now_ms, min_release_counter=0, last_counter=0)
        session.add(model)
        session.flush()
    model.last_counter = max(model.last_counter, manifest.release_counter)
    first = manifest.variants[0]
    session.add(
        ReleaseRow(
            model=manifest.model,
            version=manifest.version,
            release_counter=manifest.release_counter,
            manifest_digest=digest,
            module_bytes=first.file.size,
            memory_bytes=first.contract.memory_bytes,
            targets_version=targets_version,
            created_at_ms=now_ms,
        )
    )
    session.flush()
    for file in {digest, *(f.digest for f in _files_of(manifest))}:
        session.add(ReleaseFileRow(model=manifest.model, version=manifest.version, digest=file))


def has_file(core: Core, digest: Digest) -> bool:
    """Return whether a file is here and recorded: one of the two is left when the service is killed in between.

    Who asks means to release it: it is not cleared away for a while.
    """
    with core.store.write() as session:
        touch_file(session, digest, core.now_ms())
        return session.get(FileRow, digest) is not None and core.files.has(digest)


def record_file(core: Core, digest: Digest, size_bytes: int, actor: Actor) -> None:
    """Note that a file is on the disk; a second time does nothing."""
    with core.store.write() as session:
        touch_file(session, digest, core.now_ms())
        if session.get(FileRow, digest) is None:
            session.add(FileRow(digest=digest, size_bytes=size_bytes, created_at_ms=core.now_ms()))
            deed = Deed(action="file.put", subject=digest, detail=f"{size_bytes} bytes")
            audit.record(session, actor, deed, core.now_ms())


def yank(core: Core, model: str, version: str, reason: str, actor: Actor) -> Release:
    """Keep a release from every further deployment; what no device has activated yet is given up.

    Raises:
        NotFoundError: there is no such release.
        RefusedError: no reason was given.
    """
    if not 1 <= len(reason.strip()) <= MAX_REASON_CHARS:
        raise RefusedError(
            f"expected a reason of 1 to {MAX_REASON_CHARS} characters",
            hint="say why with --reason: others will read it",
        )
    now_ms = core.now_ms()
    with core.store.write() as session:
        row = release_row(session, model, version)
        if row.yanked_at_ms is None:
            row.yanked_at_ms, row.yank_reason = now_ms, reason.strip()
            rollouts = _withdraw(session, row, now_ms)
            deed = Deed(action="release.yank", subject=f"{model}@{version}", detail=reason.strip())
            audit.record(session, actor, deed, now_ms)
        else:
            rollouts = set()
        shown = get_release(session, model, version)
    core.changes.announce(rollouts)
    core.wake_publisher()
    return shown


def _withdraw(session: Session, release: ReleaseRow, now_ms: int) -> set[str]:
    rows = session.scalars(
        select(DeploymentRow).where(
            DeploymentRow.model == release.model,
            DeploymentRow.version == release.version,
            DeploymentRow.state.in_(OPEN_STATES),
            ~DeploymentRow.is_removal,
        )
    )
    closed = [row for row in rows if standing(row).is_withdrawable]
    for row in closed:
        close(row, "canceled", f"release {release.version} was yanked: {release.yank_reason}", now_ms)
    rollouts = {row.rollout_id for row in closed}
    for rollout in rollouts:
        refresh_rollout(session, rollout, now_ms)
    outbox.mark(session, "assign", {row.device_id for row in closed})
    return rollouts
