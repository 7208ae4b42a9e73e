"""Getting one file over retained topics: which topics to listen to, what arrived, what to ask for. No I/O.

A file's offer names blobs, a blob's index names its chunks. The chunks are taken through a window of exact topics:
subscribe to a few, take what the broker retains, unsubscribe, move on. What does not come, or is not what the index
names, is asked for, ever more patiently: waiting is not a failure.
"""

import random
from typing import Final

import msgspec

from protocol import limits
from protocol.chunks import ChunkIndex, Offer
from protocol.errors import DigestError, MalformedError, ProtocolError
from protocol.identifiers import Digest
from protocol.manifest import FileRef
from protocol.messages import Reason, Want
from protocol.topics import Topics

WINDOW: Final = 8
FIRST_PATIENCE_MS: Final = 2_000
MAX_PATIENCE_MS: Final = 60_000


class IndexFound(msgspec.Struct, frozen=True, kw_only=True):
    """The blob to take is known. Say by `resume` which of its chunks are here from an earlier attempt."""

    blob: Digest
    index: ChunkIndex


class ChunkFound(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk that is what the index names."""

    number: int
    data: bytes


class FileFetch:
    """The fetch of one file. Call `receive` with every message on a wanted topic, and `overdue` as time passes."""

    def __init__(self, file: FileRef, topics: Topics, rng: random.Random, now_ms: int) -> None:
        self.file = file
        self.problem: Reason | None = None
        self._topics = topics
        self._rng = rng
        self.index: ChunkIndex | None = None
        self._liars: set[Digest] = set()
        self._blob: Digest | None = None
        self._missing: list[int] = []
        self._window: list[int] = []
        self._patience_ms = FIRST_PATIENCE_MS
        self._patient_until_ms = now_ms + self._jittered()

    @property
    def blob(self) -> Digest | None:
        """The blob that is being taken."""
        return self._blob

    @property
    def is_complete(self) -> bool:
        """Whether every chunk arrived."""
        return self.index is not None and not self._missing

    @property
    def done_bytes(self) -> int:
        """How many encoded bytes are here."""
        return self.index.encoded_size - sum(self.index.length_of(n) for n in self._missing) if self.index else 0

    @property
    def total_bytes(self) -> int:
        """How many encoded bytes there are, as far as is known."""
        return self.index.encoded_size if self.index else self.file.size

    @property
    def next_ms(self) -> int:
        """When `overdue` is worth asking again."""
        return self._patient_until_ms

    def topics(self) -> dict[str, int]:
        """Return the exact topics to listen to now, each with the size that a message there may have."""
        if self._blob is None:
            return {self._topics.offer(self.file.digest): limits.MAX_OFFER_BYTES}
        if self.index is None:
            return {self._topics.chunk_index(self._blob): limits.MAX_CHUNK_INDEX_BYTES}
        return {self._topics.chunk(self._blob, n): limits.MAX_CHUNK_BYTES for n in self._window}

    def receive(self, topic: str, payload: bytes, now_ms: int) -> IndexFound | ChunkFound | None:
        """Take a message; what is not acceptable is noted in `problem` and asked for again."""
        if not payload or topic not in self.topics():
            return None
        try:
            found = self._take(topic, payload)
        except ProtocolError as error:
            self.problem = Reason.of(error.code, f"{error}; asked for it again")
            self._patient_until_ms = min(self._patient_until_ms, now_ms + FIRST_PATIENCE_MS // 4)
            return None
        self._progressed(now_ms)
        return found

    def resume(self, present: frozenset[int], now_ms: int) -> None:
        """Go on with the chunks that are missing."""
        self._missing = [n for n in self._missing if n not in present]
        self._refill()
        self._progressed(now_ms)

    def restart(self, reason: Reason, now_ms: int, *, is_lie: bool) -> None:
        """Begin again; with another source if the blob was a lie, that is if it did not hold the file."""
        if is_lie and self._blob is not None:
            self._liars.add(self._blob)
        self.index = self._blob = None
        self._missing, self._window = [], []
        self._progressed(now_ms)
        self.problem = reason

    def overdue(self, now_ms: int) -> tuple[Want, ...]:
        """Return what to ask for, if it is time to ask."""
        if now_ms < self._patient_until_ms or self.is_complete:
            return ()
        self._patience_ms = min(self._patience_ms * 2, MAX_PATIENCE_MS)
        self._patient_until_ms = now_ms + self._jittered()
        if self._blob is None:
            self._liars.clear()  # a new answer may be an honest one
            want = Want(kind="offer", digest=self.file.digest)
            what = f"the offer of file {self.file.digest[:12]}"
        else:
            want = Want(kind="blob", digest=self._blob, chunks=tuple(self._window))
            what = f"{f'chunks {self._window}' if self.index else 'the index'} of blob {self._blob[:12]}"
        if self.problem is None:
            self.problem = Reason.of(
                "waiting", f"waiting for {what}: the broker has nothing there, the controller was asked"
            )
        return (want,)

    def _take(self, topic: str, payload: bytes) -> IndexFound | ChunkFound | None:
        if self._blob is None:
            self._blob = self._choose(Offer.from_bytes(payload))
            return None
        if self.index is None:
            return self._take_index(self._blob, payload)
        number = int(topic.rpartition("/")[2])
        self.index.check(number, payload)
        self._missing.remove(number)
        self._window.remove(number)
        if len(self._window) <= WINDOW // 2:
            self._refill()
        return ChunkFound(number=number, data=payload)

    def _choose(self, offer: Offer) -> Digest:
        if offer.digest != self.file.digest or offer.size != self.file.size:
            raise DigestError(f"the offer of file {self.file.digest[:12]} is of another file")
        for source in offer.sources:
            if source.kind == "full" and source.blob not in self._liars:
                return source.blob
        raise MalformedError(f"file {self.file.digest[:12]} is offered in no way that this agent knows")

    def _take_index(self, blob: Digest, payload: bytes) -> IndexFound:
        index = ChunkIndex.from_bytes(payload, blob)
        if index.digest != self.file.digest or index.size != self.file.size:
            self._liars.add(blob)
            self._blob = None
            raise DigestError(f"blob {blob[:12]} was offered for file {self.file.digest[:12]}, but holds another")
        self.index = index
        self._missing = list(range(len(index.chunks)))
        return IndexFound(blob=blob, index=index)

    def _refill(self) -> None:
        self._window = self._missing[:WINDOW]

    def _progressed(self, now_ms: int) -> None:
        self.problem = None
        self._patience_ms = FIRST_PATIENCE_MS
        self._patient_until_ms = now_ms + self._jittered()

    def _jittered(self) -> int:
        return int(self._patience_ms * self._rng.uniform(0.75, 1.25))
