"""Zstandard with a bound on what comes out, so that a small message cannot become a large one."""

import sys

from protocol.errors import LimitExceededError, MalformedError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_LEVEL = 10
_WINDOW_LOG = 22  # 4 MiB: the memory a device needs to decompress


def compress(data: bytes) -> bytes:
    """Return `data` as one Zstandard frame that any device can decompress in bounded memory."""
    return zstd.compress(
        data,
        options={
            zstd.CompressionParameter.compression_level: _LEVEL,
            zstd.CompressionParameter.window_log: _WINDOW_LOG,
        },
    )


class Decompressor:
    """Decompresses one frame piece by piece, and stops at `limit_bytes` of output."""

    def __init__(self, *, limit_bytes: int, what: str) -> None:
        self._frame = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
        self._left = limit_bytes
        self._limit = limit_bytes
        self._what = what

    def feed(self, piece: bytes) -> bytes:
        """Return what `piece` adds; raises MalformedError or LimitExceededError."""
        if self._frame.eof:
            raise MalformedError(f"{self._what}: bytes follow the end of the compressed data")
        try:
            out = self._frame.decompress(piece, max_length=self._left + 1)
        except zstd.ZstdError as error:
            raise MalformedError(f"{self._what} is not valid Zstandard data: {error}") from error
        self._left -= len(out)
        if self._left < 0:
            raise LimitExceededError(f"{self._what} is larger than {self._limit:,} bytes when decompressed")
        if self._frame.unused_data:
            raise MalformedError(f"{self._what}: bytes follow the end of the compressed data")
        return out

    def finish(self) -> None:
        """Raise MalformedError unless the frame is complete."""
        if not self._frame.eof:
            raise MalformedError(f"{self._what} is cut off")


def decompress(data: bytes, *, limit_bytes: int, what: str) -> bytes:
    """Return the content of one whole frame; raises MalformedError or LimitExceededError."""
    frame = Decompressor(limit_bytes=limit_bytes, what=what)
    out = frame.feed(data)
    frame.finish()
    return out
