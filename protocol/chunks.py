"""How a file travels: compressed into a blob, cut into chunks, named by the SHA-256 of the chunk index.

Nothing here is signed. A device learns a file's digest and length from signed metadata, asks its *offer* for
sources, and believes only what hashes to what was signed. The index lets it refuse a bad chunk at once.
"""

from typing import Literal

import msgspec

from protocol import limits
from protocol.codec import Count, decode, encode, sha256
from protocol.compression import compress
from protocol.errors import DigestError, LimitExceededError, MalformedError
from protocol.identifiers import Digest, parse_digest

Encoding = Literal["zstd", "identity"]


class ChunkIndex(msgspec.Struct, frozen=True, kw_only=True):
    """What a blob is made of."""

    digest: Digest
    """The SHA-256 of the file, decoded."""
    size: int
    encoding: Encoding
    encoded_size: int
    chunk_bytes: int
    chunks: tuple[Digest, ...]
    schema: Literal[1] = 1

    def __post_init__(self) -> None:
        for digest in (self.digest, *self.chunks):
            parse_digest(digest)
        if not 0 < self.size <= limits.MAX_FILE_BYTES:
            raise LimitExceededError(f"chunk index: a file of {self.size:,} bytes is too large")
        if not 0 < self.chunk_bytes <= limits.MAX_CHUNK_BYTES:
            raise LimitExceededError(f"chunk index: expected chunks of at most {limits.MAX_CHUNK_BYTES:,} bytes")
        wanted = -(-self.encoded_size // self.chunk_bytes)
        if not 0 < len(self.chunks) <= limits.MAX_CHUNKS or len(self.chunks) != wanted:
            raise MalformedError(f"chunk index: expected {wanted} chunks, got {len(self.chunks)}")
        if self.encoded_size > self.size or (self.encoding == "identity" and self.encoded_size != self.size):
            raise MalformedError("chunk index: expected a blob as long as its file, or shorter when compressed")

    @classmethod
    def from_bytes(cls, raw: bytes, blob: Digest) -> "ChunkIndex":
        """Parse the index of `blob`; raises DigestError or another ProtocolError."""
        if len(raw) <= limits.MAX_CHUNK_INDEX_BYTES and sha256(raw) != blob:
            raise DigestError(f"chunk index of blob {blob[:12]} has another digest")
        return decode(raw, cls, limit_bytes=limits.MAX_CHUNK_INDEX_BYTES, what="chunk index")

    def to_bytes(self) -> bytes:
        """Return the canonical JSON whose SHA-256 names the blob."""
        return encode(self)

    def length_of(self, number: int) -> int:
        """Return how many bytes chunk `number` has."""
        return min(self.chunk_bytes, self.encoded_size - number * self.chunk_bytes)

    def check(self, number: int, chunk: bytes) -> None:
        """Raise DigestError unless `chunk` is chunk `number`."""
        if len(chunk) != self.length_of(number) or sha256(chunk) != self.chunks[number]:
            raise DigestError(f"chunk {number} of {self.digest[:12]} is not what its index names")


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One way to get a file. Devices skip kinds that they do not know."""

    kind: str
    """`full` in this version; `delta` and `mirror` are reserved."""
    blob: Digest
    encoded_size: Count


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """The sources of one file, best first: an unsigned hint."""

    digest: Digest
    size: Count
    sources: tuple[Source, ...]
    schema: Literal[1] = 1

    def __post_init__(self) -> None:
        for digest in (self.digest, *(s.blob for s in self.sources)):
            parse_digest(digest)

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Offer":
        """Parse an offer; raises ProtocolError."""
        return decode(raw, cls, limit_bytes=limits.MAX_OFFER_BYTES, what="offer")

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of the offer."""
        return encode(self)


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """A file made ready to publish."""

    blob: Digest
    index: ChunkIndex
    encoded: bytes

    def chunk(self, number: int) -> bytes:
        """Return the bytes of chunk `number`; raises IndexError."""
        if not 0 <= number < len(self.index.chunks):
            raise IndexError(number)
        start = number * self.index.chunk_bytes
        return self.encoded[start : start + self.index.chunk_bytes]

    @property
    def offer(self) -> Offer:
        """The offer that leads to this blob."""
        source = Source(kind="full", blob=self.blob, encoded_size=self.index.encoded_size)
        return Offer(digest=self.index.digest, size=self.index.size, sources=(source,))


def cut(data: bytes, chunk_bytes: int = limits.CHUNK_BYTES) -> Blob:
    """Compress `data` where that helps and cut it into chunks; raises LimitExceededError."""
    packed = compress(data)
    encoding: Encoding = "zstd" if len(packed) < len(data) else "identity"
    encoded = packed if encoding == "zstd" else data
    if not 0 < len(data) <= limits.MAX_FILE_BYTES:
        raise LimitExceededError(f"expected a file of 1 to {limits.MAX_FILE_BYTES:,} bytes, got {len(data):,}")
    index = ChunkIndex(
        digest=sha256(data),
        size=len(data),
        encoding=encoding,
        encoded_size=len(encoded),
        chunk_bytes=chunk_bytes,
        chunks=tuple(sha256(encoded[i : i + chunk_bytes]) for i in range(0, len(encoded), chunk_bytes)),
    )
    return Blob(blob=sha256(index.to_bytes()), index=index, encoded=encoded)
