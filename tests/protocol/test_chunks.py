"""Cutting files into chunks and putting them together again, honestly and otherwise."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.chunks import Blob, ChunkIndex, Offer, Source, cut
from protocol.codec import encode, sha256
from protocol.compression import decompress
from protocol.errors import DigestError, LimitExceededError, MalformedError, UnknownIdentifierError
from tests.protocol.test_compression import noise


def reassemble(blob: Blob) -> bytes:
    """Do what a device does: index by its digest, chunks by theirs, decode, compare with the signed digest."""
    index = ChunkIndex.from_bytes(blob.index.to_bytes(), blob.blob)
    encoded = b""
    for number in range(len(index.chunks)):
        chunk = blob.chunk(number)
        index.check(number, chunk)
        encoded += chunk
    assert index.encoded_size == len(encoded)
    data = encoded
    if index.encoding == "zstd":
        data = decompress(encoded, limit_bytes=index.size, what="file")
    assert (index.digest, index.size) == (sha256(data), len(data))
    return data


@pytest.mark.property
@given(st.binary(min_size=1, max_size=3_000), st.integers(1, 3_500))
def test_any_file_comes_back(data: bytes, chunk_bytes: int) -> None:
    """For every size of file and chunk, what was cut is put together again."""
    assert data == reassemble(cut(data, chunk_bytes))


@pytest.mark.parametrize("size_bytes", [1, 65_535, 65_536, 65_537, 200_000])
def test_chunks_of_the_usual_size(size_bytes: int) -> None:
    """Data that does not compress travels as it is, in chunks of 64 KiB, of which only the last is shorter."""
    data = noise(size_bytes)
    blob = cut(data)
    assert "identity" == blob.index.encoding
    lengths = [len(blob.chunk(n)) for n in range(len(blob.index.chunks))]
    assert [blob.index.length_of(n) for n in range(len(lengths))] == lengths
    assert size_bytes == sum(lengths)
    assert {limits.CHUNK_BYTES} >= set(lengths[:-1])
    assert data == reassemble(blob)


def test_zeros_are_compressed() -> None:
    """Compression is used where it helps."""
    assert "zstd" == cut(bytes(100_000)).index.encoding


def test_one_file_is_one_blob() -> None:
    """Two cuts of one file have the same name, so that the broker keeps it once."""
    assert cut(noise(100_000)).blob == cut(noise(100_000)).blob


def test_an_empty_file_is_refused() -> None:
    """No file of a bundle is empty."""
    with pytest.raises(LimitExceededError):
        cut(b"")


def test_a_chunk_that_does_not_exist() -> None:
    """Numbers outside the blob raise, and do not count from its end."""
    blob = cut(noise(1_000), 400)
    for number in (-1, 3):
        with pytest.raises(IndexError):
            blob.chunk(number)


def test_tampered_chunks() -> None:
    """A chunk that is changed, shortened, lengthened, swapped or of another blob is refused at once."""
    blob, other = cut(noise(1_000), 400), cut(noise(1_001)[1:], 400)
    chunk = blob.chunk(0)
    bad = [b"", chunk[:-1], chunk + b"\0", blob.chunk(1), other.chunk(0), bytes(len(chunk))]
    for attempt in bad + [bytes([*chunk[:n], chunk[n] ^ 1, *chunk[n + 1 :]]) for n in range(len(chunk))]:
        with pytest.raises(DigestError, match="chunk 0 of"):
            blob.index.check(0, attempt)


def test_an_index_of_another_name() -> None:
    """An index whose SHA-256 is not the name of the blob is refused before it is parsed."""
    blob = cut(noise(1_000))
    for raw in (b"", b"{}", blob.index.to_bytes() + b" "):
        with pytest.raises(DigestError):
            ChunkIndex.from_bytes(raw, blob.blob)


def test_an_oversize_index() -> None:
    """An index beyond its limit is not even hashed."""
    with pytest.raises(LimitExceededError):
        ChunkIndex.from_bytes(bytes(limits.MAX_CHUNK_INDEX_BYTES + 1), sha256(b""))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"size": 0}, LimitExceededError),
        ({"size": limits.MAX_FILE_BYTES + 1}, LimitExceededError),
        ({"chunk_bytes": 0}, LimitExceededError),
        ({"chunk_bytes": -1}, LimitExceededError),
        ({"chunk_bytes": limits.MAX_CHUNK_BYTES + 1}, LimitExceededError),
        ({"encoded_size": 0}, MalformedError),
        ({"encoded_size": -400}, MalformedError),
        ({"encoded_size": 1_300}, MalformedError),
        ({"encoded_size": 999}, MalformedError),
        ({"encoding": "zstd", "size": 999}, MalformedError),
        ({"encoding": "gzip"}, MalformedError),
        ({"chunks": []}, MalformedError),
        ({"chunks": ["00"] * 3}, UnknownIdentifierError),
        ({"digest": "x"}, UnknownIdentifierError),
        ({"schema": 2}, MalformedError),
    ],
)
def test_indexes_that_do_not_add_up(changes: dict[str, object], error: type[Exception]) -> None:
    """Sizes that contradict each other or exceed a limit are refused, whoever named the blob."""
    good = cut(noise(1_000), 400).index
    raw = encode({**json.loads(good.to_bytes()), **changes})
    with pytest.raises(error):
        ChunkIndex.from_bytes(raw, sha256(raw))


def test_the_largest_index_fits() -> None:
    """A file of the largest size in chunks of the usual size has an index within its limit."""
    count = limits.MAX_FILE_BYTES // limits.CHUNK_BYTES
    assert limits.MAX_CHUNKS == count
    index = ChunkIndex(
        digest=sha256(b""),
        size=limits.MAX_FILE_BYTES,
        encoding="identity",
        encoded_size=limits.MAX_FILE_BYTES,
        chunk_bytes=limits.CHUNK_BYTES,
        chunks=(sha256(b""),) * count,
    )
    assert len(index.to_bytes()) <= limits.MAX_CHUNK_INDEX_BYTES


def test_offers_round_trip() -> None:
    """An offer leads from the file to its blob, and leaves room for sources of kinds yet unknown."""
    blob = cut(noise(1_000))
    assert blob.offer == Offer.from_bytes(blob.offer.to_bytes())
    assert (blob.blob, "full") == (blob.offer.sources[0].blob, blob.offer.sources[0].kind)
    newer = Offer(
        digest=blob.offer.digest,
        size=1_000,
        sources=(Source(kind="delta", blob=blob.blob, encoded_size=10), *blob.offer.sources),
    )
    assert newer == Offer.from_bytes(newer.to_bytes())


@pytest.mark.parametrize(
    "changes", [{"digest": "0"}, {"sources": [{"kind": "full", "blob": "..", "encoded_size": 1}]}, {"size": -1}]
)
def test_hostile_offers(changes: dict[str, object]) -> None:
    """An offer is an unsigned hint: its names are checked before they become topics."""
    raw = encode({**json.loads(cut(b"x").offer.to_bytes()), **changes})
    with pytest.raises((UnknownIdentifierError, MalformedError)):
        Offer.from_bytes(raw)
