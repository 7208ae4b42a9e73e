"""The image repository's online half: new snapshots and timestamps, and when they are due.

The targets come signed from outside; what is made here only says which targets are the newest, and that somebody
still says so.
"""

from datetime import timedelta

import msgspec
from sqlalchemy.orm import Session

from controller.core import Core
from controller.store import outbox
from controller.store.metadata import Role, keep, newest, roots
from controller.store.models import MetadataRow
from controller.store.times import from_ms
from controller.trust import image

RESIGN_TIMESTAMP = timedelta(hours=8)
RESIGN_SNAPSHOT = timedelta(days=3)
METADATA_KEY = "set"
TIMESTAMP_KEY = "timestamp"


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """Versions that devices may have seen although this database does not know them."""

    snapshot: int = 0
    timestamp: int = 0


_NOTHING_SEEN = Seen()
_JUMP = 10_000
"""More versions than a service signs in nine years of three timestamps a day."""
_MINUTE_MS = 60_000


def sign_snapshot(session: Session, core: Core, seen: Seen = _NOTHING_SEEN) -> None:
    """Vouch for the newest targets with a new snapshot and timestamp; without targets there is nothing to do."""
    targets = newest(session, "image", "targets")
    if targets is None:
        return
    version = _next(session, "snapshot", seen.snapshot)
    raw = image.sign_snapshot(targets.raw, version, core.trust.snapshot, core.now())
    keep(session, MetadataRow(domain="image", name="snapshot", version=version, raw=raw, signed_at_ms=core.now_ms()))
    outbox.mark(session, "metadata", [METADATA_KEY])
    sign_timestamp(session, core, seen)


def sign_timestamp(session: Session, core: Core, seen: Seen = _NOTHING_SEEN) -> None:
    """Say again that the snapshot is the newest."""
    snapshot = newest(session, "image", "snapshot")
    if snapshot is None:
        return
    version = _next(session, "timestamp", seen.timestamp)
    raw = image.sign_timestamp(snapshot.raw, version, core.trust.timestamp, core.now())
    keep(session, MetadataRow(domain="image", name="timestamp", version=version, raw=raw, signed_at_ms=core.now_ms()))
    outbox.mark(session, "metadata", [TIMESTAMP_KEY])


def beyond_what_was_seen(session: Session, core: Core) -> Seen:
    """Return versions that no device has seen, for a service that lost count of what it signed.

    The minute of the clock is above what was signed one by one, and above what an earlier recovery from the same backup
    went on from; the jump is for a clock that is wrong.
    """
    snapshot, timestamp = newest(session, "image", "snapshot"), newest(session, "image", "timestamp")
    minute = core.now_ms() // _MINUTE_MS
    return Seen(
        snapshot=max(minute, (snapshot.version if snapshot else 0) + _JUMP),
        timestamp=max(minute, (timestamp.version if timestamp else 0) + _JUMP),
    )


def renew_when_due(session: Session, core: Core) -> None:
    """Sign anew what is old."""
    now = core.now()
    snapshot, timestamp = newest(session, "image", "snapshot"), newest(session, "image", "timestamp")
    if snapshot is not None and now - from_ms(snapshot.signed_at_ms) >= RESIGN_SNAPSHOT:
        sign_snapshot(session, core)
    elif timestamp is not None and now - from_ms(timestamp.signed_at_ms) >= RESIGN_TIMESTAMP:
        sign_timestamp(session, core)


def metadata_set(session: Session) -> bytes | None:
    """Return the message of the metadata topic, or None before the first release."""
    targets, snapshot = newest(session, "image", "targets"), newest(session, "image", "snapshot")
    if targets is None or snapshot is None:
        return None
    return image.build_metadata_set(
        _raw([*roots(session, "image"), snapshot, targets]), _raw(roots(session, "director"))
    )


def _raw(rows: list[MetadataRow]) -> list[bytes]:
    return [row.raw for row in rows]


def _next(session: Session, role: Role, seen: int) -> int:
    row = newest(session, "image", role)
    return max(row.version if row else 0, seen) + 1
