"""One device's document: decided from the database, signed, stored; the publisher carries it away.

A new version is made when the content changed, or when the old one nears its end.
"""

import hashlib
import logging
from collections.abc import Sequence
from datetime import timedelta

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from controller.core import Core
from controller.errors import ControllerError, NotFoundError
from controller.rollouts import Installed, build_assignment
from controller.store import outbox
from controller.store.deployments import installed_on, relevant_rows, standing
from controller.store.metadata import newest
from controller.store.models import DeploymentRow, DeviceRow, DirectorRow
from controller.store.settings import get_setting
from controller.trust.director import sign_assignment
from protocol.assignment import AgentConfig, Assignment
from protocol.codec import encode, sha256
from protocol.errors import ProtocolError
from protocol.identifiers import DeviceId, Digest

log = logging.getLogger(__name__)

RENEW_AFTER = timedelta(days=1)
RENEW_JITTER = timedelta(days=1)
"""A document is good for seven days. Renewing it after one to two leaves five for a service that is down."""
TELEMETRY_INTERVAL = "telemetry_interval_s"


def assign(session: Session, core: Core, devices: Sequence[str]) -> None:
    """Sign and store what `devices` must run, where that is due.

    A device whose document cannot be made is counted and logged: it must not keep others from getting theirs.
    """
    rows = {row.id: row for row in session.scalars(select(DeviceRow).where(DeviceRow.id.in_(devices)))}
    stored = {row.device_id: row for row in session.scalars(select(DirectorRow).where(DirectorRow.device_id.in_(rows)))}
    deployments, installed = relevant_rows(session, devices), installed_on(session, devices)
    desk = _Desk(session, core)
    renewed = []
    for id_, row in rows.items():
        try:
            assignment = desk.decide(row, installed[id_], deployments[id_])
            content = _content(assignment)
            if not desk.is_due(row, stored.get(id_), content):
                continue
            raw = desk.sign(assignment, row.director_version + 1)
        except (ControllerError, ProtocolError) as error:
            core.counters.add("assign.failed")
            log.error("no document", extra={"device": id_, "reason": str(error)})
            continue
        row.director_version += 1
        document = stored.get(id_) or DirectorRow(device_id=id_)
        document.version, document.raw, document.content_digest = row.director_version, raw, content
        document.signed_at_ms = desk.now_ms
        document.renew_at_ms = desk.now_ms + _renewal_ms(id_, row.director_version)
        session.add(document)
        for deployment in deployments[id_]:
            deployment.director_version = deployment.director_version or row.director_version
        renewed.append(id_)
    outbox.mark(session, "director", renewed)


class _Desk:
    """What the documents of one batch have in common."""

    def __init__(self, session: Session, core: Core) -> None:
        self.now_ms = core.now_ms()
        self._core = core
        targets = newest(session, "image", "targets")
        self._targets_raw = targets.raw if targets else None
        self._interval_s = int(get_setting(session, TELEMETRY_INTERVAL) or AgentConfig().telemetry_interval_s)

    def decide(self, row: DeviceRow, installed: list[Installed], deployments: list[DeploymentRow]) -> Assignment:
        """Return what a device must run."""
        soak_ms = AgentConfig().soak_ms if row.soak_ms is None else row.soak_ms
        return build_assignment(
            DeviceId(row.id),
            installed,
            [standing(deployment) for deployment in deployments],
            issued_at_ms=self.now_ms,
            config=AgentConfig(telemetry_interval_s=self._interval_s, soak_ms=soak_ms),
        )

    def is_due(self, row: DeviceRow, stored: DirectorRow | None, content: Digest) -> bool:
        """Return whether the stored document says something else, nears its end, or is behind the device."""
        return (
            stored is None
            or stored.content_digest != content
            or stored.version < row.director_version
            or stored.renew_at_ms <= self.now_ms
        )

    def sign(self, assignment: Assignment, version: int) -> bytes:
        """Return the signed document; raises ControllerError."""
        if self._targets_raw is None:
            raise NotFoundError("there are no signed targets yet", hint="push a release")
        core = self._core
        return sign_assignment(
            assignment, self._targets_raw, version=version, now=core.now(), signer=core.trust.director
        )


def _content(assignment: Assignment) -> Digest:
    """Return the digest of what a device must run: not of when that was said, nor of what was known then."""
    lasting = msgspec.structs.replace(
        assignment,
        issued_at_ms=0,
        releases=tuple(msgspec.structs.replace(each, is_open=False) for each in assignment.releases),
        removals=tuple(msgspec.structs.replace(each, is_open=False) for each in assignment.removals),
    )
    return sha256(encode(lasting))


def _renewal_ms(device: str, version: int) -> int:
    """Spread the renewals of a fleet that was assigned at once, the same way every time."""
    draw = int.from_bytes(hashlib.sha256(f"{device} {version}".encode()).digest()[:4], "big")
    return round((RENEW_AFTER + RENEW_JITTER * (draw / 0xFFFFFFFF)).total_seconds() * 1000)


def mark_due(session: Session, now_ms: int) -> None:
    """Have every document renewed whose time has come."""
    outbox.mark(
        session, "assign", session.scalars(select(DirectorRow.device_id).where(DirectorRow.renew_at_ms <= now_ms))
    )
