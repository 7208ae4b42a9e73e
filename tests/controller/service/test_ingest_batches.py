"""Many messages are stored at once: that is quicker, and it is nothing else than one after the other."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import event, select, text

from controller.reports.ingest import Message
from controller.store.models import Base, SampleRow
from protocol.identifiers import DeviceId
from protocol.messages import Want
from protocol.topics import Uplink
from tests.controller.service.fleet import HAPPY, FleetCore, ScriptedDevice, bundle, open_core, slot


def contents(fleet: FleetCore) -> dict[str, list[tuple[object, ...]]]:
    """Return every row of every table; how often a thing waits to be published does not matter."""
    tables = {name: table for name, table in Base.metadata.tables.items() if name != "outbox"}
    with fleet.core.store.read() as session:
        return {n: sorted((tuple(row) for row in session.execute(select(t))), key=repr) for n, t in tables.items()}


def said(device: ScriptedDevice, uplink: Uplink, payload: bytes) -> Message:
    return Message(device=device.id, uplink=uplink, payload=payload)


def messages(fleet: FleetCore) -> list[Message]:
    """Return what three devices say: repeated, in two streams, about a removal, forged, from nobody."""
    release = fleet.release(bundle())
    devices = [fleet.enroll(f"press-{n}", is_born=False) for n in range(3)]
    brought = {d.device: d.id for d in fleet.roll_out("double", "1.0.0").deployments}
    removed = {d.device: d.id for d in fleet.roll_out("double", None, "press-0", "press-1").deployments}
    told: list[Message] = []
    for device in devices:
        record = device.telemetry(device.record((release, [100, 200]), errors={"trap": 2}))
        told += [
            said(device, "liveness", device.liveness(slots=(slot("double", None),))),
            said(device, "telemetry", record),
            said(device, "telemetry", record),
            said(device, "receipts", device.report(brought[device.id], release, HAPPY[:4])),
            said(device, "receipts", device.report(brought[device.id], release, HAPPY[4:])),
            said(device, "receipts", device.report(brought[device.id], release, ("failed",))),
        ]
        if device.id in removed:
            told.append(said(device, "receipts", device.report(removed[device.id], release, ("retrieved", "removed"))))
        device.forget()
        told += [
            said(device, "telemetry", device.telemetry(device.record((release, [300])))),
            said(device, "liveness", device.liveness(online=False)),
            said(device, "want", Want(kind="metadata").to_bytes()),
        ]
    stranger = ScriptedDevice("press-1")
    told.append(said(stranger, "liveness", stranger.liveness()))
    return [*told, Message(device=DeviceId("nobody"), uplink="liveness", payload=stranger.liveness())]


def apart(fleet: FleetCore, folder: Path, batches: Sequence[Sequence[Message]]) -> tuple[object, object]:
    """Store `batches` in a copy of the fleet; return what is stored and what was counted."""
    shutil.copytree(fleet.workspace.path, folder / "fleet")
    with open_core(folder, fleet.clock) as copy:
        for batch in batches:
            copy.ingest.store(batch)
        counts = {name: n for name, n in copy.core.counters.all().items() if name.startswith("ingest.")}
        return contents(copy), counts


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_is_the_same_as_its_messages(fleet: FleetCore, tmp_path: Path, seed: int) -> None:
    """In any order; also when the whole is refused because a report is in it twice."""
    told = messages(fleet)
    if seed:
        random.Random(seed).shuffle(told)
    singly = apart(fleet, tmp_path / "singly", [[message] for message in told])
    assert singly == apart(fleet, tmp_path / "at-once", [told])


def test_a_message_that_the_database_refuses_keeps_no_other_from_being_stored(fleet: FleetCore) -> None:
    """What the whole failed on is found by writing each for itself."""
    release = fleet.release(bundle())
    devices = [fleet.enroll(f"press-{n}") for n in range(3)]
    with fleet.core.store.write() as session:
        session.execute(
            text(
                "CREATE TRIGGER no_press_1 BEFORE INSERT ON device_samples WHEN NEW.device_id = 'press-1' "
                "BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        )
    fleet.ingest.store([said(d, "telemetry", d.telemetry(d.record((release, [100])))) for d in devices])
    with fleet.core.store.read() as session:
        assert ["press-0", "press-2"] == sorted(session.scalars(select(SampleRow.device_id)))
    assert (2, 1) == tuple(fleet.core.counters.get(f"ingest.{name}") for name in ("telemetry", "unstorable"))


def test_a_batch_takes_few_statements(fleet: FleetCore) -> None:
    """What is the same for all messages is asked once; a device costs a few statements, not dozens."""
    release = fleet.release(bundle())
    devices = [fleet.enroll(f"press-{n}") for n in range(50)]
    fleet.ingest.store([said(d, "telemetry", d.telemetry(d.record((release, [100])))) for d in devices])
    rollout = {d.device: d.id for d in fleet.roll_out("double", "1.0.0").deployments}
    statements: list[str] = []

    @event.listens_for(fleet.core.store.engine, "before_cursor_execute")
    def count(*arguments: object) -> None:
        statements.append(str(arguments[2]))

    fleet.ingest.store([said(d, "receipts", d.report(rollout[d.id], release, HAPPY[:4])) for d in devices])
    assert len(statements) < 2 * len(devices)
