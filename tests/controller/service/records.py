"""What tests of commands and documents look at: the audit log, the outbox, the document of a device."""

from sqlalchemy import select

from controller.api.schema import Rollout
from controller.delivery.assigning import assign
from controller.store import outbox
from controller.store.models import AuditRow, DirectorRow
from protocol.assignment import Assignment, extension, parse_metadata
from tests.controller.service.fleet import (
    HAPPY,
    FleetCore,
    ScriptedDevice,
)


def audited(fleet: FleetCore) -> list[str]:
    """Return what was written down of every command, the first one first."""
    with fleet.core.store.read() as session:
        return list(session.scalars(select(AuditRow.action).order_by(AuditRow.id)))


def to_publish(fleet: FleetCore, kind: outbox.Kind) -> list[str]:
    """Return what the broker does not have yet."""
    with fleet.core.store.read() as session:
        return [item.key for item in outbox.take(session, kind, 1_000)]


def settle_assignments(fleet: FleetCore) -> None:
    """Sign what is due, as the publisher does."""
    with fleet.core.store.write() as session:
        items = outbox.take(session, "assign", 1_000)
        assign(session, fleet.core, [item.key for item in items])
        outbox.done(session, items)


def document(fleet: FleetCore, device: str) -> Assignment:
    """Return a device's newest document."""
    with fleet.core.store.read() as session:
        raw = session.get_one(DirectorRow, device).raw
    return extension(parse_metadata(raw, "director document").signed, Assignment)


def succeed(fleet: FleetCore, device: ScriptedDevice, rollout: Rollout, release: object) -> None:
    """Have a device report that its deployment went well."""
    deployment = next(d.id for d in rollout.deployments if d.device == device.id)
    fleet.say(device, "receipts", device.report(deployment, release, HAPPY))  # type: ignore[arg-type]
