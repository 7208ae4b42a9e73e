"""What each thing looks like on the broker: read from the database and the disk, made into retained messages."""

import logging
from collections.abc import Iterator, Sequence

from sqlalchemy import select

from controller.core import Core
from controller.delivery.link import Outgoing
from controller.delivery.metadata import METADATA_KEY, TIMESTAMP_KEY, metadata_set
from controller.delivery.wants import Missing
from controller.errors import UnreadableError
from controller.store import outbox
from controller.store.metadata import newest
from controller.store.models import AckRow, DirectorRow, FileRow
from controller.store.outbox import Kind
from protocol import limits
from protocol.chunks import ChunkIndex, Offer, Source
from protocol.errors import ProtocolError
from protocol.identifiers import DeviceId, Digest
from protocol.messages import Ack, seal_ack
from protocol.topics import Topics

log = logging.getLogger(__name__)


class Broadcast:
    """Yields messages. A file that cannot be read is counted, logged and raised: it must not count as published."""

    def __init__(self, core: Core, topics: Topics) -> None:
        self._core = core
        self._topics = topics

    def messages(self, kind: Kind, keys: Sequence[str]) -> Iterator[Outgoing]:
        """Yield what publishes rows of the outbox, in that order; raises UnreadableError for a file."""
        match kind:
            case "metadata":
                for key in keys:
                    yield from self._metadata(key)
            case "ack":
                yield from self._acks(keys)
            case "file":
                for key in keys:
                    yield from self._file(Digest(key))
            case "director":
                yield from self._directors(keys)
            case "assign":
                raise AssertionError("an assignment is signed, not published")

    def missing(self, missing: Missing) -> Iterator[Outgoing]:
        """Yield what somebody misses, or nothing when it is not ours to give."""
        match missing.kind:
            case "metadata":
                yield from self._metadata(METADATA_KEY)
                yield from self._metadata(TIMESTAMP_KEY)
            case "director":
                yield from self._directors([missing.name])
            case "offer":
                yield from self._missing_offer(Digest(missing.name))
            case _:
                yield from self._missing_blob(missing)

    def _metadata(self, key: str) -> Iterator[Outgoing]:
        with self._core.store.read() as session:
            if key == METADATA_KEY:
                topic, payload = self._topics.metadata, metadata_set(session)
            else:
                row = newest(session, "image", "timestamp")
                topic, payload = self._topics.timestamp, row.raw if row else None
        if payload is not None and len(payload) > limits.MAX_METADATA_SET_BYTES:
            self._core.counters.add("publish.oversize")
            log.error("the metadata set is too large for devices", extra={"size_bytes": len(payload)})
        elif payload is not None:
            yield Outgoing(topic, payload, retain=True)

    def _acks(self, devices: Sequence[str]) -> Iterator[Outgoing]:
        """Yield the acknowledgement of each device's newest stream."""
        with self._core.store.read() as session:
            rows = session.scalars(
                select(AckRow).where(AckRow.device_id.in_(devices)).order_by(AckRow.updated_at_ms, AckRow.stream)
            )
            newest_rows = {row.device_id: row for row in rows}
        for device, row in newest_rows.items():
            ack = Ack(device_id=device, stream=row.stream, receipts=row.receipts, telemetry=row.telemetry)
            sealed = seal_ack(ack, self._core.trust.director)
            yield Outgoing(self._topics.ack(DeviceId(device)), sealed, retain=True)

    def _directors(self, devices: Sequence[str]) -> Iterator[Outgoing]:
        with self._core.store.read() as session:
            rows = list(session.scalars(select(DirectorRow).where(DirectorRow.device_id.in_(devices))))
        for row in rows:
            yield Outgoing(self._topics.director(DeviceId(row.device_id)), row.raw, retain=True)

    def _file(self, digest: Digest) -> Iterator[Outgoing]:
        """Yield the chunks, then their index, then the offer: who follows it finds everything."""
        try:
            blob, index = self._blob(digest)
            for number in range(len(index.chunks)):
                yield self._chunk(blob, index, number)
        except (OSError, ProtocolError) as error:
            self._core.counters.add("publish.bad_file")
            log.error("file not published", extra={"digest": digest, "reason": str(error)})
            self._forget_blob(digest)
            raise UnreadableError(f"file {digest} cannot be published now: {error}") from error
        yield Outgoing(self._topics.chunk_index(blob), index.to_bytes(), retain=True)
        yield self._offer(blob, index)

    def _missing_offer(self, digest: Digest) -> Iterator[Outgoing]:
        with self._core.store.read() as session:
            row = session.get(FileRow, digest)
            blob, is_published = (row.blob, row.published_at_ms is not None) if row else (None, False)
        if blob is None:
            if is_published:
                self._cut_again(digest)
            return
        try:
            yield self._offer(Digest(blob), self._core.files.index(Digest(blob)))
        except (OSError, ProtocolError):
            self._cut_again(digest)

    def _missing_blob(self, missing: Missing) -> Iterator[Outgoing]:
        blob = Digest(missing.name)
        with self._core.store.read() as session:
            digest = session.scalar(select(FileRow.digest).where(FileRow.blob == blob))
        if digest is None:
            return
        try:
            index = self._core.files.index(blob)
            if missing.kind == "index":
                yield Outgoing(self._topics.chunk_index(blob), index.to_bytes(), retain=True)
            elif missing.number < len(index.chunks):
                yield self._chunk(blob, index, missing.number)
        except (OSError, ProtocolError):
            self._cut_again(Digest(digest))

    def _cut_again(self, digest: Digest) -> None:
        """Have a file published anew whose blob the disk lost."""
        with self._core.store.write() as session:
            row = session.get_one(FileRow, digest)
            row.blob = row.published_at_ms = None
            outbox.mark(session, "file", [digest])

    def _forget_blob(self, digest: Digest) -> None:
        """Have the next attempt cut the file, whatever became of its blob."""
        with self._core.store.write() as session:
            session.get_one(FileRow, digest).blob = None

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

    def _chunk(self, blob: Digest, index: ChunkIndex, number: int) -> Outgoing:
        return Outgoing(self._topics.chunk(blob, number), self._core.files.chunk(blob, index, number), retain=True)

    def _offer(self, blob: Digest, index: ChunkIndex) -> Outgoing:
        source = Source(kind="full", blob=blob, encoded_size=index.encoded_size)
        offer = Offer(digest=index.digest, size=index.size, sources=(source,))
        return Outgoing(self._topics.offer(index.digest), offer.to_bytes(), retain=True)
