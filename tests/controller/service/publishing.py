"""A broker filled by a publisher, and what a device finds there."""

from controller.delivery.publisher import Publisher
from controller.store import outbox
from protocol.chunks import ChunkIndex, Offer
from protocol.compression import decompress
from protocol.identifiers import Digest
from tests.controller.service.fleet import Bundle, FleetCore, Recorder, ScriptedDevice

MODULE = bytes(range(256)) * 2_000


def connect(fleet: FleetCore, broker: Recorder) -> Publisher:
    """Return a publisher that hears the marker."""
    publisher = fleet.publisher(broker)
    broker.on_message = publisher.memory.receive
    return publisher


def fetch(fleet: FleetCore, broker: Recorder, digest: Digest) -> bytes:
    """Return a file as a device gets it: offer, index, chunks."""
    offer = Offer.from_bytes(broker.retained[fleet.topics.offer(digest)])
    blob = offer.sources[0].blob
    index = ChunkIndex.from_bytes(broker.retained[fleet.topics.chunk_index(blob)], blob)
    encoded = b""
    for number in range(len(index.chunks)):
        chunk = broker.retained[fleet.topics.chunk(blob, number)]
        index.check(number, chunk)
        encoded += chunk
    if index.encoding == "identity":
        return encoded
    return decompress(encoded, limit_bytes=offer.size, what="file")


def is_settled(fleet: FleetCore) -> bool:
    """Return whether the broker has everything."""
    with fleet.core.store.read() as session:
        return outbox.is_empty(session)


def without_marker(fleet: FleetCore, retained: dict[str, bytes]) -> dict[str, bytes]:
    """Return what is retained but the marker."""
    return {topic: payload for topic, payload in retained.items() if topic != fleet.topics.memory_marker}


def roll_out(fleet: FleetCore, broker: Recorder, release: Bundle) -> tuple[ScriptedDevice, Publisher]:
    """Put a release for one device on the broker; return the device and the publisher."""
    fleet.release(release)
    device = fleet.enroll("press-1")
    fleet.roll_out(release.manifest.model, release.manifest.version)
    publisher = connect(fleet, broker)
    publisher.settle()
    return device, publisher
