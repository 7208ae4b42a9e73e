"""A database put back from a backup: devices, which have seen more than it knows, obey what the service signs next."""

from pathlib import Path

from sqlalchemy import select

from controller.reads.devices import get_device
from controller.reads.releases import list_releases
from controller.reads.rollouts import get_rollout
from controller.store.metadata import newest
from controller.store.models import DeploymentRow, DeviceRow
from protocol.assignment import AssignedRelease, Assignment, extension, parse_metadata
from protocol.codec import sha256
from protocol.messages import open_ack
from protocol.repository import walk_roots
from tests.controller.service.fleet import HAPPY, Recorder, bundle, open_core, slot
from tests.controller.service.restorable import Believer, Restorable, finish, parse, publish


def test_every_device_obeys_a_restored_database(restorable: Restorable, tmp_path: Path) -> None:
    """After releases, rollouts and renewals that the backup knows nothing of; no device speaks in between."""
    broker = restorable.broker
    with open_core(restorable.folder) as fleet:
        first = fleet.release(bundle())
        devices = [fleet.enroll(f"press-{n}") for n in range(3)]
        believers = [Believer(fleet, device, tmp_path / device.id) for device in devices]
        fleet.roll_out("double", "1.0.0")
        publish(fleet, broker)
        restorable.back_up()
        for number in range(2, 6):
            fleet.clock.advance(hours=9)
            finish(fleet, devices[0], fleet.release(bundle(version=f"{number}.0.0", counter=number)), broker)
        for believer in believers:
            judgement = believer.look_at(broker)
            assert ({}, "5.0.0") == (
                judgement.problems,
                judgement.assignment and judgement.assignment.goals["double"].version,
            )
    seen = {topic: parse(raw) for topic, raw in broker.retained.items() if topic.endswith(("timestamp", "director"))}
    restorable.put_back()
    with open_core(restorable.folder, fleet.clock) as fleet:
        publish(fleet, broker)
        for believer in believers:
            judgement = believer.look_at(broker)
            assert {} == judgement.problems
            assert judgement.assignment is not None
            goal = judgement.assignment.goals["double"]
            assert (first.version, None) == (goal.version, goal.refusal)
            assert goal.manifest is not None
        for topic, version in seen.items():
            assert version < parse(broker.retained[topic])
        with fleet.core.store.read() as session:
            shown = {release.version for release in list_releases(session, "double")}
        assert {"1.0.0", "2.0.0", "3.0.0", "4.0.0", "5.0.0"} == shown
        finish(fleet, devices[0], fleet.release(bundle(version="6.0.0", counter=6)), broker)
        assert {} == believers[0].look_at(broker).problems


def test_a_release_whose_files_are_gone_is_kept_in_the_signed_list(restorable: Restorable) -> None:
    """The operator signed it; what cannot be sent cannot be rolled out."""
    broker, second = restorable.broker, bundle(version="2.0.0", counter=2)
    with open_core(restorable.folder) as fleet:
        fleet.release(bundle())
        publish(fleet, broker)
        restorable.back_up()
        fleet.release(second)
        publish(fleet, broker)
        fleet.core.files.path(sha256(second.files[0])).unlink()
    restorable.put_back()
    with open_core(restorable.folder) as fleet:
        publish(fleet, broker)
        with fleet.core.store.read() as session:
            assert ["1.0.0"] == [release.version for release in list_releases(session, "double")]
            row = newest(session, "image", "targets")
        assert row is not None
        assert {"models/double/1.0.0.json", "models/double/2.0.0.json"} == set(
            parse_metadata(row.raw, "t").signed.targets
        )
        fleet.release(bundle(version="3.0.0", counter=3))


def test_what_others_signed_drives_no_version_up(restorable: Restorable, tmp_path: Path) -> None:
    """Whoever may write to the broker can retain anything: only our own signatures count."""
    broker = restorable.broker
    with open_core(restorable.folder) as fleet:
        fleet.release(bundle())
        device, other = fleet.enroll("press-1"), fleet.enroll("press-2")
        fleet.roll_out("double", "1.0.0")
        publish(fleet, broker)
        for _ in range(3):
            fleet.roll_out("double", "1.0.0", other.id)
            publish(fleet, broker)
        with fleet.core.store.read() as session:
            mine = newest(session, "image", "timestamp")
            versions = dict(session.execute(select(DeviceRow.id, DeviceRow.director_version)).all())
    with open_core(tmp_path / "thief") as thief:
        thief.enroll(device.id)
        for _ in range(5):
            thief.clock.advance(hours=9)
            thief.enroll(device.id)
            publish(thief, stolen := Recorder())
    topics = fleet.topics
    foreign = {
        topics.timestamp: stolen.retained[topics.timestamp],
        topics.metadata: stolen.retained[topics.metadata],
        topics.director(device.id): broker.retained[topics.director(other.id)],
    }
    for payloads in (foreign, dict.fromkeys(foreign, b"nonsense"), dict.fromkeys(foreign, b"{}")):
        broker.retained = dict(payloads)
        with open_core(restorable.folder) as fleet:
            publish(fleet, broker)
            with fleet.core.store.read() as session:
                found = newest(session, "image", "timestamp")
                assert versions == dict(session.execute(select(DeviceRow.id, DeviceRow.director_version)).all())
            assert mine is not None
            assert found is not None
            assert mine.raw == found.raw == broker.retained[topics.timestamp]


def test_reports_that_a_lost_database_acknowledged_are_passed_over(restorable: Restorable) -> None:
    """The device has forgotten them, and must not repeat the later ones for ever."""
    with open_core(restorable.folder) as fleet:
        manifest = fleet.release(bundle())
        device = fleet.enroll("press-1")
        restorable.back_up()
        fleet.say(device, "telemetry", device.telemetry(*(device.record((manifest, [1])) for _ in range(5)), after=0))
    restorable.put_back()
    with open_core(restorable.folder) as fleet:
        later = device.telemetry(*(device.record((manifest, [1])) for _ in range(2)), after=5)
        for _ in range(3):
            fleet.say(device, "telemetry", later)
        broker = Recorder()
        publish(fleet, broker)
        root = walk_roots(fleet.core.trust.director_root, {}).signed
        assert 7 == open_ack(broker.retained[fleet.topics.ack(device.id)], device.id, root).telemetry


def test_a_deployment_whose_end_a_lost_database_knew_is_asked_for_and_told_again(restorable: Restorable) -> None:
    """The device has no newer document than the backup, only fewer reports: it is asked how its deployment ended."""
    broker = restorable.broker
    with open_core(restorable.folder) as fleet:
        manifest = fleet.release(bundle())
        device = fleet.enroll("press-1")
        rollout = fleet.roll_out("double", "1.0.0")
        publish(fleet, broker)
        restorable.back_up()
        document = broker.retained[fleet.topics.director(device.id)]
        (assigned,) = assigned_in(document)
        assert assigned.is_open
        fleet.say(device, "receipts", device.report(assigned.deployment_id, manifest, HAPPY))
        publish(fleet, broker)
        assert document == broker.retained[fleet.topics.director(device.id)]  # its end alone is no news for the device
    restorable.put_back()
    with open_core(restorable.folder) as fleet:
        version = parse_metadata(document, "document").signed.version
        fleet.say(device, "liveness", device.liveness(director_version=version, slots=(slot("double", "1.0.0"),)))
        publish(fleet, broker)
        before = parse_metadata(broker.retained[fleet.topics.director(device.id)], "document").signed.version
        later = device.receipts(device.receipt("unknown", "retrieved", manifest), acknowledged=len(HAPPY))
        fleet.say(device, "receipts", later)
        publish(fleet, broker)
        document = broker.retained[fleet.topics.director(device.id)]
        assert parse_metadata(document, "document").signed.version > before
        assert [assigned] == assigned_in(document)
        told = device.receipt(assigned.deployment_id, "already_installed", manifest)
        fleet.say(device, "receipts", device.receipts(told))
        with fleet.core.store.read() as session:
            assert {"already_installed"} == set(
                session.scalars(select(DeploymentRow.state).where(DeploymentRow.rollout_id == rollout.id))
            )


def assigned_in(document: bytes) -> list[AssignedRelease]:
    """Return what a document assigns."""
    return list(extension(parse_metadata(document, "document").signed, Assignment).releases)


def test_a_birth_tells_what_the_backup_does_not_know(restorable: Restorable, tmp_path: Path) -> None:
    """Which releases the device has committed or removed since: it does not go back, and the record is right again."""
    broker = restorable.broker
    with open_core(restorable.folder) as fleet:
        first, other = fleet.release(bundle()), fleet.release(bundle("other"))
        device = fleet.enroll("press-1")
        finish(fleet, device, first, broker)
        finish(fleet, device, other, broker)
        second = fleet.release(bundle(version="2.0.0", counter=2))
        unfinished = fleet.roll_out("double", "2.0.0")
        publish(fleet, broker)
        restorable.back_up()
        fleet.say(device, "receipts", device.report(unfinished.deployments[0].id, second, HAPPY))
        finish(fleet, device, fleet.release(bundle(version="3.0.0", counter=3)), broker)
        removal = fleet.roll_out("other", None)
        fleet.say(device, "receipts", device.report(removal.deployments[0].id, other, ("retrieved", "removed")))
        publish(fleet, broker)
        last = parse(broker.retained[fleet.topics.director(device.id)])
    birth = device.liveness(slots=(slot("double", "3.0.0"), slot("other", None)), director_version=last)
    for is_heard_first in (True, False):
        restorable.put_back()
        with open_core(restorable.folder) as fleet:
            if is_heard_first:
                fleet.say(device, "liveness", birth)
            publish(fleet, broker)
            fleet.say(device, "liveness", birth)
            publish(fleet, broker)
            with fleet.core.store.read() as session:
                shown = get_device(session, device.id)
                rollout = get_rollout(session, unfinished.id)
            assert [("double", "3.0.0", "3.0.0"), ("other", None, None)] == [
                (model.model, model.installed, model.desired) for model in shown.models
            ]
            assert ("finished", {"superseded": 1}) == (rollout.state, rollout.counts)
            believer = Believer(fleet, device, tmp_path / f"first-{is_heard_first}")
            judgement = believer.look_at(broker)
            assert judgement.assignment is not None
            assert {"double": "3.0.0"} == {name: goal.version for name, goal in judgement.assignment.goals.items()}


def test_an_old_birth_changes_nothing(restorable: Restorable) -> None:
    """One that was sent before the backup, and one of a database that was never restored."""
    broker = restorable.broker
    with open_core(restorable.folder) as fleet:
        first = fleet.release(bundle())
        device = fleet.enroll("press-1")
        finish(fleet, device, first, broker)
        old = device.liveness(slots=(), director_version=1)
        fleet.say(device, "liveness", old)
        restorable.back_up()
        finish(fleet, device, fleet.release(bundle(version="2.0.0", counter=2)), broker)
    restorable.put_back()
    with open_core(restorable.folder) as fleet:
        publish(fleet, broker)
        fleet.say(device, "liveness", old)
        with fleet.core.store.read() as session:
            assert ["1.0.0"] == [model.installed for model in get_device(session, device.id).models]
