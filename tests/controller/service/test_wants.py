"""What devices miss is published again: once for all, only what is ours, and not on everybody's whim."""

from sqlalchemy import select

from controller.delivery.wants import MAX_PENDING, QUIET_MS
from controller.store.models import FileRow
from protocol.codec import sha256
from protocol.identifiers import Digest
from protocol.messages import Want
from tests.controller.service.fleet import FleetCore, Recorder, bundle
from tests.controller.service.publishing import MODULE, connect, fetch, roll_out, without_marker


def test_each_kind_is_answered(fleet: FleetCore, broker: Recorder) -> None:
    """Metadata, document, offer, index, chunks."""
    release = bundle(module=MODULE)
    device, publisher = roll_out(fleet, broker, release)
    complete = without_marker(fleet, broker.retained)
    broker.retained = {fleet.topics.memory_marker: broker.retained[fleet.topics.memory_marker]}
    with fleet.core.store.read() as session:
        blobs = [(Digest(row.digest), Digest(row.blob or "")) for row in session.scalars(select(FileRow))]
    wants = [Want(kind="metadata"), Want(kind="director")]
    for digest, blob in blobs:
        chunks = tuple(range(len(fleet.core.files.index(blob).chunks)))
        wants += [
            Want(kind="offer", digest=digest),
            Want(kind="blob", digest=blob),
            Want(kind="blob", digest=blob, chunks=chunks),
        ]
    for want in wants:
        fleet.say(device, "want", want.to_bytes())
    publisher.settle()
    assert complete == without_marker(fleet, broker.retained)


def test_many_devices_are_answered_once(fleet: FleetCore, broker: Recorder) -> None:
    """And asked again soon after, it is on its way already."""
    fleet.release(bundle())
    devices = [fleet.enroll(f"press-{n}") for n in range(3)]
    fleet.roll_out("double", "1.0.0")
    publisher = connect(fleet, broker)
    publisher.settle()
    broker.log.clear()
    want = Want(kind="offer", digest=sha256(bundle().files[0])).to_bytes()
    for _ in range(2):
        for device in devices:
            fleet.say(device, "want", want)
        publisher.settle()
    assert 1 == len(broker.log)
    fleet.clock.advance(seconds=QUIET_MS / 1000)
    fleet.say(devices[0], "want", want)
    publisher.settle()
    assert 2 == len(broker.log)


def test_what_is_not_ours_is_counted_and_not_answered(fleet: FleetCore, broker: Recorder) -> None:
    """Unknown files and blobs, chunks beyond the end, files that were never published."""
    release = bundle()
    fleet.release(release)
    device = fleet.enroll("press-1")
    publisher = connect(fleet, broker)
    publisher.settle()
    broker.log.clear()
    nothing = Digest("0" * 64)
    for want in (
        Want(kind="offer", digest=nothing),
        Want(kind="blob", digest=nothing),
        Want(kind="blob", digest=nothing, chunks=(0, 1)),
        Want(kind="offer", digest=sha256(release.files[0])),
    ):
        fleet.say(device, "want", want.to_bytes())
    publisher.settle()
    assert ([], 5) == (broker.log, fleet.core.counters.get("want.unknown"))


def test_chunks_beyond_the_end_are_not_answered(fleet: FleetCore, broker: Recorder) -> None:
    """The others of the same want are."""
    release = bundle()
    device, publisher = roll_out(fleet, broker, release)
    broker.log.clear()
    with fleet.core.store.read() as session:
        blob = Digest(session.get_one(FileRow, sha256(release.files[0])).blob or "")
    fleet.say(device, "want", Want(kind="blob", digest=blob, chunks=(0, 7, 2**40)).to_bytes())
    publisher.settle()
    assert [fleet.topics.chunk(blob, 0)] == broker.log


def test_a_flood_is_bounded(fleet: FleetCore) -> None:
    """What finds no room is dropped: its device asks again."""
    device = fleet.enroll("press-1")
    for n in range(MAX_PENDING // 256 + 2):
        chunks = tuple(range(256))
        fleet.wants.add(device.id, Want(kind="blob", digest=sha256(str(n).encode()), chunks=chunks))
    assert MAX_PENDING == len(fleet.wants.take(10**6))
    assert 512 == fleet.core.counters.get("want.dropped")


def test_a_published_file_without_a_blob_is_cut_again(fleet: FleetCore, broker: Recorder) -> None:
    """Whoever asks for its offer gets it."""
    release = bundle(module=MODULE)
    device, publisher = roll_out(fleet, broker, release)
    digest = sha256(release.files[0])
    with fleet.core.store.write() as session:
        session.get_one(FileRow, digest).blob = None
    del broker.retained[fleet.topics.offer(digest)]
    fleet.say(device, "want", Want(kind="offer", digest=digest).to_bytes())
    publisher.settle()
    assert release.files[0] == fetch(fleet, broker, digest)


def test_a_blob_that_the_disk_lost_is_cut_again(fleet: FleetCore, broker: Recorder) -> None:
    """From the file."""
    release = bundle(module=MODULE)
    device, publisher = roll_out(fleet, broker, release)
    digest = sha256(release.files[0])
    with fleet.core.store.read() as session:
        blob = Digest(session.get_one(FileRow, digest).blob or "")
    for path in (fleet.workspace.server.files_path / "blobs").glob(f"{blob}.*"):
        path.unlink()
    broker.retained.clear()
    fleet.say(device, "want", Want(kind="blob", digest=blob, chunks=(0,)).to_bytes())
    publisher.settle()
    assert release.files[0] == fetch(fleet, broker, digest)
