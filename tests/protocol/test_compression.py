"""Zstandard within bounds: round trips, bombs, and every way to be cut off or continued."""

import contextlib
import hashlib
import sys
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.compression import Decompressor, compress, decompress
from protocol.errors import LimitExceededError, MalformedError, ProtocolError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def noise(size_bytes: int) -> bytes:
    """Return bytes that do not compress, always the same."""
    return hashlib.shake_128(b"noise").digest(size_bytes)


@pytest.mark.property
@given(st.binary(max_size=2_000), st.integers(1, 50))
def test_any_split_decompresses_the_same(data: bytes, piece_bytes: int) -> None:
    """What was compressed comes back, whole or fed in pieces of any size."""
    packed = compress(data)
    assert data == decompress(packed, limit_bytes=max(len(data), 1), what="file")
    frame = Decompressor(limit_bytes=len(data), what="file")
    parts = [frame.feed(packed[i : i + piece_bytes]) for i in range(0, len(packed), piece_bytes)]
    frame.finish()
    assert data == b"".join(parts)


@pytest.mark.parametrize("size_bytes", [1, 65_536, 5_000_000])
@pytest.mark.parametrize("kind", ["noise", "zeros"])
def test_large_files(size_bytes: int, kind: str) -> None:
    """Files beyond the window of 4 MiB come back, whether they compress or not."""
    data = noise(size_bytes) if kind == "noise" else bytes(size_bytes)
    assert data == decompress(compress(data), limit_bytes=size_bytes, what="file")


def test_compression_is_deterministic() -> None:
    """Two builds of one input are byte-identical."""
    assert compress(noise(100_000)) == compress(noise(100_000))


def test_the_limit_is_exact() -> None:
    """A file of exactly the limit passes; one byte more does not."""
    packed = compress(bytes(1000))
    assert bytes(1000) == decompress(packed, limit_bytes=1000, what="file")
    with pytest.raises(LimitExceededError, match="larger than 999 bytes"):
        decompress(packed, limit_bytes=999, what="file")


def test_a_bomb_stops_at_the_limit() -> None:
    """64 MiB in a few kilobytes are refused after 1 MiB."""
    bomb = compress(bytes(64 << 20))
    assert len(bomb) < 10_000
    with pytest.raises(LimitExceededError):
        decompress(bomb, limit_bytes=1 << 20, what="metadata set")


def test_a_bomb_in_pieces_stops_at_the_limit() -> None:
    """The bound holds over all pieces together."""
    packed = compress(bytes(10_000_000))
    frame = Decompressor(limit_bytes=1_000_000, what="file")
    with pytest.raises(LimitExceededError):
        deque(map(frame.feed, (packed[i : i + 1] for i in range(len(packed)))), maxlen=0)


def test_a_frame_that_needs_too_much_memory() -> None:
    """A window above 4 MiB is refused before it is allocated."""
    options = {
        zstd.CompressionParameter.window_log: 27,
        zstd.CompressionParameter.enable_long_distance_matching: 1,
    }
    packed = zstd.compress(noise(1 << 20) * 32, options=options)
    with pytest.raises(MalformedError, match="too much memory"):
        decompress(packed, limit_bytes=64 << 20, what="file")


def test_every_truncation_is_noticed() -> None:
    """A frame cut after any byte is malformed."""
    packed = compress(noise(300))
    for length in range(len(packed)):
        with pytest.raises(MalformedError):
            decompress(packed[:length], limit_bytes=1000, what="file")


def test_nothing_may_follow() -> None:
    """A second frame, padding or a skippable frame behind the first is malformed, also when fed on its own."""
    packed = compress(b"content")
    for tail in (b"\0", packed, (0x184D2A50).to_bytes(4, "little") + bytes(4)):
        with pytest.raises(MalformedError, match="bytes follow the end"):
            decompress(packed + tail, limit_bytes=1000, what="file")
        frame = Decompressor(limit_bytes=1000, what="file")
        assert b"content" == frame.feed(packed)
        with pytest.raises(MalformedError, match="bytes follow the end"):
            frame.feed(tail)


@pytest.mark.property
@given(st.integers(0, 400), st.integers(1, 255))
def test_a_flipped_byte_never_crashes(position: int, change: int) -> None:
    """Damage raises ProtocolError or yields bounded output; the digest catches the rest."""
    packed = bytearray(compress(noise(200) + bytes(200)))
    packed[position % len(packed)] ^= change
    with contextlib.suppress(ProtocolError):
        assert len(decompress(bytes(packed), limit_bytes=1000, what="file")) <= 1000
