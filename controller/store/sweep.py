"""Clears away what nobody needs any more: receipts of deployments that ended long ago, files that no release names.

A deployment keeps its outcome: state, reason, measures. Each function is a generator that does one short transaction
between two yields.
"""

import time
from collections.abc import Iterator

from sqlalchemy import delete, exists, or_, select, tuple_
from sqlalchemy.orm import Session

from controller.core import Core
from controller.store.deployments import OPEN_STATES
from controller.store.models import AckRow, DeploymentRow, FileRow, OutboxRow, ReceiptRow, ReleaseFileRow
from controller.store.rollup_models import DAY_MS, HOUR_MS
from protocol.identifiers import Digest

_AT_ONCE = 500


def forget_receipts(core: Core, receipt_days: int) -> Iterator[None]:
    """Drop receipts that are older than `receipt_days` and whose deployment ended at least as long ago."""
    limit_ms = core.now_ms() - receipt_days * DAY_MS
    is_needed = exists().where(
        DeploymentRow.id == ReceiptRow.deployment_id,
        or_(
            DeploymentRow.state.in_(OPEN_STATES),
            DeploymentRow.is_closed_by_controller,
            DeploymentRow.updated_at_ms >= limit_ms,
        ),
    )
    key = (ReceiptRow.device_id, ReceiptRow.stream, ReceiptRow.seq)
    while True:
        yield
        with core.store.write() as session:
            rows = session.execute(
                select(*key).where(ReceiptRow.received_at_ms < limit_ms, ~is_needed).limit(_AT_ONCE)
            ).all()
            for device, stream, seq in rows:
                if (ack := session.get(AckRow, (device, stream))) is not None:
                    ack.receipts_cleared = max(ack.receipts_cleared, seq)
            session.execute(delete(ReceiptRow).where(tuple_(*key).in_(tuple(row) for row in rows)))
        if len(rows) < _AT_ONCE:
            return


def forget_files(core: Core, grace_hours: int) -> Iterator[None]:
    """Drop uploaded files that no release names, and what lies on the disk without a name, after `grace_hours`.

    First the row, then the file: a file whose row is there is always there, whenever the service is killed.
    """
    grace_s = grace_hours * HOUR_MS / 1000
    with core.store.write() as session:
        unnamed = ~exists().where(ReleaseFileRow.digest == FileRow.digest)
        old = FileRow.created_at_ms < core.now_ms() - grace_hours * HOUR_MS
        digests = list(session.scalars(select(FileRow.digest).where(unnamed, old).limit(_AT_ONCE)))
        session.execute(delete(OutboxRow).where(OutboxRow.kind == "file", OutboxRow.key.in_(digests)))
        session.execute(delete(FileRow).where(FileRow.digest.in_(digests)))
    yield
    for path in core.files.names():
        with core.store.read() as session:
            is_named = _is_named(session, path.name)
        # By the disk's own clock: an upload under way has just been written.
        if not is_named and time.time() - path.stat().st_mtime > grace_s:
            path.unlink(missing_ok=True)
            core.counters.add("files.swept")
        yield


def touch_file(session: Session, digest: Digest, now_ms: int) -> None:
    """Begin the grace of a file anew: a push counts on it."""
    if (row := session.get(FileRow, digest)) is not None:
        row.created_at_ms = now_ms


def _is_named(session: Session, name: str) -> bool:
    blob = name.partition(".")[0]
    wanted = FileRow.blob == blob if "." in name else FileRow.digest == name
    return session.scalar(select(FileRow.digest).where(wanted)) is not None
