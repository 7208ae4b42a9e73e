"""What reaches the broker: everything, once, in an order in which a device finds what it reads about."""

import pytest
from sqlalchemy import select

from controller.errors import BrokerError
from controller.reads.devices import desired_versions, get_device
from controller.store import outbox
from controller.store.models import FileRow, InstalledRow, MetadataRow
from protocol.assignment import parse_metadata, verify_assignment
from protocol.chunks import Offer
from protocol.codec import sha256
from protocol.identifiers import DeviceId
from protocol.limits import MAX_MODELS_PER_DEVICE
from protocol.messages import Ack, open_ack
from protocol.repository import MetadataSet, walk_roots
from tests.controller.service.fleet import HAPPY, FleetCore, Recorder, bundle
from tests.controller.service.publishing import MODULE, connect, fetch, is_settled, without_marker


def test_a_rollout_puts_on_the_broker_all_that_a_device_needs(fleet: FleetCore, broker: Recorder) -> None:
    """Metadata, files, and the document that binds this device."""
    release = bundle(module=MODULE)
    fleet.release(release)
    device = fleet.enroll("press-1")
    rollout = fleet.roll_out("double", "1.0.0")
    connect(fleet, broker).settle()
    root = parse_metadata(fleet.core.trust.director_root, "root").signed
    verified = verify_assignment(
        broker.retained[fleet.topics.director(device.id)],
        root=root,
        device_id=device.id,
        version_floor=1,
        now=fleet.clock(),
    )
    assert (rollout.deployments[0].id,) == tuple(r.deployment_id for r in verified.assignment.releases)
    manifest = release.files[-1]
    assert {"models/double/1.0.0.json": sha256(manifest)} == verified.digests
    for data in release.files:
        assert data == fetch(fleet, broker, sha256(data))
    sent = MetadataSet.from_bytes(broker.retained[fleet.topics.metadata])
    assert {"1.root.json", "2.snapshot.json", "2.targets.json"} == set(sent.image)
    assert {"1.root.json"} == set(sent.director)
    assert parse_metadata(broker.retained[fleet.topics.timestamp], "timestamp").signed.version == 2
    assert is_settled(fleet)


def test_a_document_comes_after_all_that_it_names(fleet: FleetCore, broker: Recorder) -> None:
    """The metadata before its timestamp, the chunks before their index, the index before its offer."""
    release = bundle(module=MODULE)
    fleet.release(release)
    device = fleet.enroll("press-1")
    fleet.roll_out("double", "1.0.0")
    connect(fleet, broker).settle()
    order = [topic for topic in broker.log if topic != fleet.topics.memory_marker]
    assert [fleet.topics.metadata, fleet.topics.timestamp] == order[:2]
    assert fleet.topics.director(device.id) == order[-1]
    digest = sha256(release.files[0])
    blob = Offer.from_bytes(broker.retained[fleet.topics.offer(digest)]).sources[0].blob
    places = [
        order.index(t)
        for t in (fleet.topics.chunk(blob, 0), fleet.topics.chunk_index(blob), fleet.topics.offer(digest))
    ]
    assert sorted(places) == places


def test_what_is_published_is_published_once(fleet: FleetCore, broker: Recorder) -> None:
    """For the whole fleet, and not again for a second rollout or a second device."""
    release = bundle()
    fleet.release(release)
    for n in range(3):
        fleet.enroll(f"press-{n}")
    fleet.roll_out("double", "1.0.0", "press-0")
    publisher = connect(fleet, broker)
    publisher.settle()
    fleet.roll_out("double", "1.0.0", "press-1", "press-2")
    publisher.settle()
    topics = [topic for topic in broker.log if "/blob/" in topic or "/offer/" in topic]
    assert len(set(topics)) == len(topics)


def test_a_broker_that_goes_away_gets_the_rest_when_it_is_back(fleet: FleetCore, broker: Recorder) -> None:
    """Wherever it breaks off: nothing is lost, and nothing is given up."""
    release = bundle(module=MODULE)
    fleet.release(release)
    device = fleet.enroll("press-1")
    fleet.roll_out("double", "1.0.0")
    publisher = connect(fleet, broker)
    breaks = 0
    for _ in range(200):
        broker.is_connected, broker.fails_after = True, 2 + breaks
        try:
            publisher.settle()
        except BrokerError:
            breaks += 1
            publisher.on_up()
            continue
        break
    assert breaks > 3
    assert is_settled(fleet)
    for data in release.files:
        assert data == fetch(fleet, broker, sha256(data))
    assert fleet.topics.director(device.id) in broker.retained


def test_without_a_broker_documents_are_signed_and_wait(fleet: FleetCore, broker: Recorder) -> None:
    """A rollout can be started while the broker is down."""
    fleet.release(bundle())
    fleet.enroll("press-1")
    fleet.roll_out("double", "1.0.0")
    broker.is_connected = False
    publisher = connect(fleet, broker)
    publisher.settle()
    assert ([], False) == (broker.log, is_settled(fleet))
    broker.is_connected = True
    publisher.settle()
    assert is_settled(fleet)


def test_a_message_that_the_broker_refuses_holds_up_no_other(fleet: FleetCore, broker: Recorder) -> None:
    """It is counted, and tried again later."""
    fleet.release(bundle())
    for n in range(3):
        fleet.enroll(f"press-{n}")
    fleet.roll_out("double", "1.0.0")
    refused = fleet.topics.director(DeviceId("press-1"))
    broker.refused = frozenset({refused, fleet.topics.metadata})
    publisher = connect(fleet, broker)
    publisher.settle()
    assert {fleet.topics.director(DeviceId(f"press-{n}")) for n in (0, 2)} <= set(broker.retained)
    assert (2, False) == (fleet.core.counters.get("publish.refused"), is_settled(fleet))
    broker.refused = frozenset()
    publisher.settle()
    assert refused not in broker.retained
    fleet.clock.advance(minutes=2)
    publisher.settle()
    assert is_settled(fleet)
    assert {refused, fleet.topics.metadata} <= set(broker.retained)


def test_a_broker_that_kept_everything_is_left_alone(fleet: FleetCore, broker: Recorder) -> None:
    """A short loss of the connection costs two small messages."""
    fleet.release(bundle())
    fleet.enroll("press-1")
    fleet.roll_out("double", "1.0.0")
    publisher = connect(fleet, broker)
    publisher.settle()
    broker.log.clear()
    publisher.on_up()
    publisher.settle()
    assert [fleet.topics.memory_marker] == broker.log


def test_a_broker_that_forgot_gets_everything_again(fleet: FleetCore, broker: Recorder) -> None:
    """Wholly, or back to an old backup: what is retained afterwards is the same."""
    first, second = bundle(), bundle(version="2.0.0", counter=2)
    manifest = fleet.release(first)
    device = fleet.enroll("press-1")
    rollout = fleet.roll_out("double", "1.0.0")
    publisher = connect(fleet, broker)
    publisher.settle()
    fleet.say(device, "receipts", device.report(rollout.deployments[0].id, manifest, HAPPY))
    publisher.settle()
    backup = dict(broker.retained)
    fleet.release(second)
    fleet.roll_out("double", "2.0.0")
    publisher.settle()
    complete = dict(broker.retained)
    for remembered in ({}, backup):
        broker.retained = dict(remembered)
        publisher.on_up()
        publisher.settle()
        without_marker(fleet, complete)
        assert without_marker(fleet, complete) == without_marker(fleet, broker.retained)


def test_what_a_killed_service_published_last_is_not_taken_for_kept(fleet: FleetCore, broker: Recorder) -> None:
    """Killed before it could mark what it had published, while the broker fell back to its backup."""
    fleet.release(bundle())
    device = fleet.enroll("press-1")
    connect(fleet, broker).settle()
    backup = dict(broker.retained)
    fleet.roll_out("double", "1.0.0")
    broker.refused = frozenset({fleet.topics.memory_marker})
    killed = connect(fleet, broker)
    killed._is_memory_unknown = False
    with pytest.raises(BrokerError):
        killed.settle()
    told = broker.retained[fleet.topics.director(device.id)]
    assert is_settled(fleet)
    broker.retained, broker.refused = backup, frozenset()
    connect(fleet, broker).settle()
    assert told == broker.retained[fleet.topics.director(device.id)]


def test_the_broker_of_another_fleet_is_filled_anew(fleet: FleetCore, broker: Recorder) -> None:
    """Somebody else's marker is not ours, and nonsense is no marker."""
    fleet.release(bundle())
    device = fleet.enroll("press-1")
    publisher = connect(fleet, broker)
    publisher.settle()
    for marker in (b'{"instance":"another","generation":1}', b"nonsense", b"{}"):
        broker.retained = {fleet.topics.memory_marker: marker}
        publisher.on_up()
        publisher.settle()
        assert fleet.topics.director(device.id) in broker.retained


def test_an_acknowledgement_reaches_the_device(fleet: FleetCore, broker: Recorder) -> None:
    """Of the stream that it uses now."""
    fleet.release(bundle())
    device = fleet.enroll("press-1")
    publisher = connect(fleet, broker)
    fleet.say(device, "telemetry", device.telemetry(device.record()))
    device.forget()
    fleet.clock.advance(seconds=1)
    fleet.say(device, "telemetry", device.telemetry(device.record(), device.record()))
    publisher.settle()
    expected = Ack(device_id=device.id, stream=device.stream, telemetry=2)
    root = walk_roots(fleet.core.trust.director_root, {}).signed
    assert expected == open_ack(broker.retained[fleet.topics.ack(device.id)], device.id, root)


def test_metadata_is_signed_anew_before_it_ends(fleet: FleetCore, broker: Recorder) -> None:
    """The timestamp every eight hours, the snapshot every three days, documents within two."""
    device = fleet.enroll("press-1")
    publisher = connect(fleet, broker)
    publisher.settle()
    stamps, snapshots, documents = set(), set(), set()
    for _ in range(40):
        fleet.clock.advance(hours=4)
        publisher.settle()
        stamp = parse_metadata(broker.retained[fleet.topics.timestamp], "timestamp").signed
        sent = MetadataSet.from_bytes(broker.retained[fleet.topics.metadata])
        (snapshot,) = [text for name, text in sent.image.items() if "snapshot" in name]
        told = parse_metadata(broker.retained[fleet.topics.director(device.id)], "director document").signed
        for signed in (stamp, parse_metadata(snapshot.encode(), "snapshot").signed, told):
            assert not signed.is_expired(fleet.clock())
        stamps.add(stamp.version)
        snapshots.add(snapshot)
        documents.add(told.version)
    assert (21, 3) == (len(stamps), len(snapshots))
    assert 3 <= len(documents) <= 7
    with fleet.core.store.read() as session:
        kept = session.scalars(select(MetadataRow).where(MetadataRow.name.in_(("snapshot", "timestamp"))))
        assert 2 == len(list(kept))


def test_a_file_that_the_disk_lost_does_not_hold_up_the_others(fleet: FleetCore, broker: Recorder) -> None:
    """It is counted, the rest is published, and it follows as soon as it is back."""
    release = bundle(module=MODULE)
    fleet.release(release)
    device = fleet.enroll("press-1")
    lost, damaged, manifest = (sha256(data) for data in release.files)
    fleet.core.files.path(lost).unlink()
    fleet.core.files.path(damaged).write_bytes(b"damaged!")
    fleet.roll_out("double", "1.0.0")
    publisher = connect(fleet, broker)
    publisher.settle()
    assert 2 == fleet.core.counters.get("publish.bad_file")
    assert fleet.topics.offer(manifest) in broker.retained
    assert fleet.topics.director(device.id) in broker.retained
    with fleet.core.store.read() as session:
        unpublished = session.scalars(select(FileRow.digest).where(FileRow.published_at_ms.is_(None)))
        assert sorted([lost, damaged]) == sorted(unpublished)
    fleet.upload(release)
    fleet.clock.advance(minutes=2)
    publisher.settle()
    assert is_settled(fleet)
    for data in release.files:
        assert data == fetch(fleet, broker, sha256(data))


def test_a_full_disk_postpones_the_file_that_could_not_be_cut(fleet: FleetCore, broker: Recorder) -> None:
    """It is cut when there is room again; nobody has to ask."""
    release = bundle(module=MODULE)
    fleet.release(release)
    fleet.enroll("press-1")
    fleet.roll_out("double", "1.0.0")
    incoming = fleet.workspace.server.files_path / "incoming"
    incoming.rmdir()
    publisher = connect(fleet, broker)
    publisher.settle()
    assert (False, 3) == (is_settled(fleet), fleet.core.counters.get("publish.bad_file"))
    incoming.mkdir()
    fleet.clock.advance(minutes=2)
    publisher.settle()
    assert is_settled(fleet)
    for data in release.files:
        assert data == fetch(fleet, broker, sha256(data))


def test_a_device_whose_document_cannot_be_made_holds_up_nobody(fleet: FleetCore, broker: Recorder) -> None:
    """One has more models than a document may name, one a release that nobody signed; the third gets its document."""
    fleet.release(bundle())
    for device in ("overfull", "press-1", "unsigned"):
        fleet.enroll(device)
    with fleet.core.store.write() as session:
        for n in range(MAX_MODELS_PER_DEVICE + 1):
            session.add(_installed("overfull", f"model-{n}"))
        session.add(_installed("unsigned", "nobody-released-it"))
        outbox.mark(session, "assign", ["overfull", "press-1", "unsigned"])
    connect(fleet, broker).settle()
    assert (2, True) == (fleet.core.counters.get("assign.failed"), is_settled(fleet))
    devices = [DeviceId(name) for name in ("overfull", "press-1", "unsigned")]
    told = {device for device in devices if fleet.topics.director(device) in broker.retained}
    assert {"press-1"} == told
    with fleet.core.store.read() as session:
        assert MAX_MODELS_PER_DEVICE + 1 == len(desired_versions(session, ["overfull"])["overfull"])
        assert MAX_MODELS_PER_DEVICE + 1 == len(get_device(session, "overfull").models)


def _installed(device: str, model: str) -> InstalledRow:
    return InstalledRow(device_id=device, model=model, version="1.0.0", deployment_id=f"d-{model}", installed_at_ms=1)
