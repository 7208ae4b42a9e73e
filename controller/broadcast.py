"""How each thing is published: read from the database and the disk, made into messages, retained on the broker."""

import logging

from sqlalchemy import select

from controller.core import Core
from controller.link import Link
from controller.metadata import METADATA_KEY, TIMESTAMP_KEY, metadata_set
from controller.store import outbox
from controller.store.metadata import newest
from controller.store.models import AckRow, DirectorRow, FileRow
from controller.wants import Missing
from protocol import limits
from protocol.chunks import ChunkIndex, Offer, Source
from protocol.errors import ProtocolError
from protocol.identifiers import DeviceId, Digest
from protocol.messages import Ack
from protocol.topics import Topics

log = logging.getLogger(__name__)


class Broadcast:
    """Publishes one thing at a time; raises BrokerError when the broker does not take it."""

    def __init__(self, core: Core, topics: Topics, link: Link) -> None:
        self._core = core
        self._topics = topics
        self._link = link

    def metadata(self, key: str) -> None:
        """Publish the metadata set or the timestamp; the set first, because the timestamp names its snapshot."""
        if key == METADATA_KEY:
            with self._core.store.read() as session:
                payload = metadata_set(session)
            if payload is not None and len(payload) > limits.MAX_METADATA_SET_BYTES:
                log.error("the metadata set is too large for devices", extra={"size_bytes": len(payload)})
                return
            self._retain(self._topics.metadata, payload)
        elif key == TIMESTAMP_KEY:
            with self._core.store.read() as session:
                row = newest(session, "image", "timestamp")
            self._retain(self._topics.timestamp, row.raw if row else None)

    def ack(self, device: DeviceId) -> None:
        """Publish up to which report of its current stream a device may forget."""
        with self._core.store.read() as session:
            row = session.scalars(
                select(AckRow).where(AckRow.device_id == device).order_by(AckRow.updated_at_ms.desc()).limit(1)
            ).first()
        if row is not None:
            ack = Ack(stream=row.stream, receipts=row.receipts, telemetry=row.telemetry)
            self._retain(self._topics.ack(device), ack.to_bytes())

    def director(self, device: DeviceId) -> None:
        """Publish the document that a device obeys."""
        with self._core.store.read() as session:
            row = session.get(DirectorRow, device)
        if row is not None:
            self._retain(self._topics.director(device), row.raw)

    def file(self, digest: Digest) -> None:
        """Publish a file: chunks, then their index, then the offer that leads there.

        A file that the disk lost or damaged is logged and left: no other may wait for it.
        """
        try:
            blob, index = self._blob(digest)
            for number in range(len(index.chunks)):
                self._chunk(blob, index, number)
        except (OSError, ProtocolError) as error:
            self._core.counters.add("publish.bad_file")
            log.error("file not published", extra={"digest": digest, "reason": str(error)})
            return
        self._retain(self._topics.chunk_index(blob), index.to_bytes())
        self._retain(self._topics.offer(digest), _offer(blob, index).to_bytes())
        with self._core.store.write() as session:
            session.get_one(FileRow, digest).published_at_ms = self._core.now_ms()

    def missing(self, missing: Missing) -> bool:
        """Publish again what somebody misses; return whether it was ours to give."""
        match missing.kind:
            case "metadata":
                self.metadata(METADATA_KEY)
                self.metadata(TIMESTAMP_KEY)
                return True
            case "director":
                self.director(DeviceId(missing.name))
                return True
            case "offer":
                return self._missing_offer(Digest(missing.name))
            case _:
                return self._missing_blob(missing)

    def _missing_offer(self, digest: Digest) -> bool:
        with self._core.store.read() as session:
            row = session.get(FileRow, digest)
            blob = row.blob if row else None
        if blob is None:
            return False
        try:
            index = self._core.files.index(Digest(blob))
        except (OSError, ProtocolError):
            return self._cut_again(digest)
        self._retain(self._topics.offer(digest), _offer(Digest(blob), index).to_bytes())
        return True

    def _missing_blob(self, missing: Missing) -> bool:
        blob = Digest(missing.name)
        with self._core.store.read() as session:
            digest = session.scalar(select(FileRow.digest).where(FileRow.blob == blob))
        if digest is None:
            return False
        try:
            index = self._core.files.index(blob)
            if missing.kind == "index":
                self._retain(self._topics.chunk_index(blob), index.to_bytes())
                return True
            if missing.number >= len(index.chunks):
                return False
            self._chunk(blob, index, missing.number)
        except (OSError, ProtocolError):
            return self._cut_again(Digest(digest))
        return True

    def _cut_again(self, digest: Digest) -> bool:
        """Have a file published whose blob the disk lost."""
        with self._core.store.write() as session:
            row = session.get_one(FileRow, digest)
            row.blob = row.published_at_ms = None
            outbox.mark(session, "file", [digest])
        return True

    def _blob(self, digest: Digest) -> tuple[Digest, ChunkIndex]:
        with self._core.store.read() as session:
            row = session.get_one(FileRow, digest)
        if row.blob is not None:
            try:
                return Digest(row.blob), self._core.files.index(Digest(row.blob))
            except (OSError, ProtocolError):
                log.warning("blob is cut again", extra={"digest": digest})
        blob, index = self._core.files.cut(digest)
        with self._core.store.write() as session:
            session.get_one(FileRow, digest).blob = blob
        return blob, index

    def _chunk(self, blob: Digest, index: ChunkIndex, number: int) -> None:
        self._retain(self._topics.chunk(blob, number), self._core.files.chunk(blob, index, number))

    def _retain(self, topic: str, payload: bytes | None) -> None:
        if payload is not None:
            self._link.publish(topic, payload, retain=True)
            self._core.counters.add("publish.messages")


def _offer(blob: Digest, index: ChunkIndex) -> Offer:
    source = Source(kind="full", blob=blob, encoded_size=index.encoded_size)
    return Offer(digest=index.digest, size=index.size, sources=(source,))
