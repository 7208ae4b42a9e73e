"""One device's document: decided from the database, signed, stored; the publisher carries it away.

A new version is made when the content changed, or when the old one nears its end.
"""

import hashlib
from datetime import timedelta

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from controller.core import Core
from controller.errors import ControllerError
from controller.rollouts import build_assignment
from controller.store import outbox
from controller.store.deployments import installed_on, relevant_rows, standing
from controller.store.metadata import newest
from controller.store.models import DeviceRow, DirectorRow
from controller.store.settings import get_setting
from controller.trust.director import sign_assignment
from protocol.assignment import AgentConfig, Assignment
from protocol.codec import encode, sha256
from protocol.identifiers import DeviceId

RENEW_AFTER = timedelta(days=1)
RENEW_JITTER = timedelta(days=1)
"""A document is good for seven days. Renewing it after one to two leaves five for a service that is down."""
TELEMETRY_INTERVAL = "telemetry_interval_s"


def assign(session: Session, core: Core, device: DeviceId) -> bool:
    """Sign and store what `device` must run, when that is due; return whether there is a new document."""
    row = session.get(DeviceRow, device)
    if row is None:
        return False
    deployments = relevant_rows(session, device)
    assignment = build_assignment(
        device,
        installed_on(session, device),
        [standing(d) for d in deployments],
        issued_at_ms=core.now_ms(),
        config=_config(session, row),
    )
    content = sha256(encode(msgspec.structs.replace(assignment, issued_at_ms=0)))
    stored = session.get(DirectorRow, device)
    is_due = stored is None or stored.version < row.director_version or stored.renew_at_ms <= core.now_ms()
    if stored is not None and stored.content_digest == content and not is_due:
        return False
    row.director_version += 1
    raw = _sign(session, core, assignment, row.director_version)
    session.merge(
        DirectorRow(
            device_id=device,
            version=row.director_version,
            raw=raw,
            content_digest=content,
            signed_at_ms=core.now_ms(),
            renew_at_ms=core.now_ms() + _renewal_ms(device, row.director_version),
        )
    )
    for deployment in deployments:
        if deployment.director_version is None:
            deployment.director_version = row.director_version
    outbox.mark(session, "director", [device])
    return True


def _sign(session: Session, core: Core, assignment: Assignment, version: int) -> bytes:
    targets = newest(session, "image", "targets")
    if targets is None and assignment.releases:
        raise ControllerError("a device is assigned a release, but there are no signed targets")
    raw = targets.raw if targets else b""
    return sign_assignment(assignment, raw, version=version, now=core.now(), signer=core.trust.director)


def _config(session: Session, row: DeviceRow) -> AgentConfig:
    default = AgentConfig()
    interval = get_setting(session, TELEMETRY_INTERVAL) or str(default.telemetry_interval_s)
    return AgentConfig(
        telemetry_interval_s=int(interval), soak_ms=default.soak_ms if row.soak_ms is None else row.soak_ms
    )


def _renewal_ms(device: DeviceId, version: int) -> int:
    """Spread the renewals of a fleet that was assigned at once, the same way every time."""
    draw = int.from_bytes(hashlib.sha256(f"{device} {version}".encode()).digest()[:4], "big")
    return round((RENEW_AFTER + RENEW_JITTER * (draw / 0xFFFFFFFF)).total_seconds() * 1000)


def mark_due(session: Session, now_ms: int) -> None:
    """Have every document renewed whose time has come."""
    outbox.mark(
        session, "assign", session.scalars(select(DirectorRow.device_id).where(DirectorRow.renew_at_ms <= now_ms))
    )
