"""What a caller sends, read within bounds of time and size: no slow and no endless caller holds more than a thread.

Source: RFC 9112 (HTTP/1.1), sections 6 and 7, message body length and the chunked transfer coding.
"""

import io
import re
import socket
import struct
import time
import zlib
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from protocol.errors import LimitExceededError, MalformedError

BODY_TIMEOUT_S: Final = 15.0
MIN_BYTES_PER_S: Final = 256 * 1024
"""A large body gets the time that it takes at this speed on top."""
MAX_SEND_BYTES: Final = 64 * 1024
MAX_DRAIN_BYTES: Final = 16 * 1024 * 1024
"""How much of an unwanted body is read and thrown away, so that its sender gets to read why."""
_PIECE_BYTES: Final = 64 * 1024
_MAX_LINE_BYTES: Final = 1024
_MAX_TRAILERS: Final = 32
_CHUNK_HEAD: Final = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(;[^\r\n]*)?\r\n")
_TIMEVAL: Final = struct.Struct("@ll")
_CODINGS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class RequestError(Exception):
    """The request cannot be read, so that nothing behind it can be either."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class PatientSocket(io.RawIOBase):
    """A blocking socket that is read until a moment that its user moves on, and no more bytes than its user allows.

    The kernel keeps the time: a timeout of Python's own costs two more calls that give the interpreter lock away, and
    while a release is installed each of those may wait for it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._until_s = self._write_until_s = 0.0
        self._allowed_bytes = 0

    def allow(self, patience_s: float, size_bytes: int) -> None:
        """Wait at most so long in all from now on, and take at most so much."""
        self._until_s = time.monotonic() + patience_s
        self._allowed_bytes = size_bytes

    def allow_write(self, patience_s: float) -> None:
        """Let all that is written from now on take so long at most."""
        self._write_until_s = time.monotonic() + patience_s

    def readable(self) -> bool:
        """Say that there is a way to read."""
        return True

    def writable(self) -> bool:
        """Say that there is a way to write."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # io.BufferedReader gives a memoryview
        """Fill some of `buffer`; raises TimeoutError, or RequestError when the caller says too much."""
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if self._allowed_bytes <= 0:
            raise RequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "expected a shorter request head")
        _set_timeout(self._connection, socket.SO_RCVTIMEO, left_s)
        try:
            count = self._connection.recv_into(memoryview(buffer)[: self._allowed_bytes])
        except BlockingIOError:
            raise TimeoutError from None
        self._allowed_bytes -= count
        return count

    def write(self, data: memoryview) -> int:  # type: ignore[override] # io.BufferedWriter gives a memoryview
        """Send some of `data`; raises TimeoutError when its time is over, or was over before."""
        left_s = self._write_until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        _set_timeout(self._connection, socket.SO_SNDTIMEO, left_s)
        try:
            # A piece at a time: the kernel's patience begins anew whenever the other side takes something.
            return self._connection.send(data[:MAX_SEND_BYTES])
        except BlockingIOError:
            self._write_until_s = 0.0  # what follows would make no sense
            raise TimeoutError from None


def _set_timeout(connection: socket.socket, option: int, timeout_s: float) -> None:
    whole_s, part_s = divmod(timeout_s, 1)
    # A whole zero would be no limit at all.
    connection.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(int(whole_s), max(int(part_s * 1e6), 1)))


class Body:
    """The body of one request, not read yet. `length` is None when it comes in chunks."""

    def __init__(
        self,
        source: PatientSocket,
        file: io.BufferedIOBase,
        length: int | None,
        *,
        coding: str = "identity",
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._file = file
        self._length = length
        self._coding = coding
        self._before = before
        self._unread_bytes = length or 0
        self._is_whole = length == 0

    def most_bytes(self, limit_bytes: int) -> int:
        """Return how many bytes `read` returns at most."""
        return (
            min(self._length, limit_bytes) if self._coding == "identity" and self._length is not None else limit_bytes
        )

    def read(self, limit_bytes: int) -> bytes:
        """Return all of it, decompressed.

        Raises:
            LimitExceededError: it is larger than `limit_bytes`.
            MalformedError: it is not compressed as it says.
            RequestError: it is not in chunks as it says.
            ConnectionError, TimeoutError: the caller does not send it.
        """
        self._before()
        self._allow(limit_bytes)
        if self._length is None:
            raw = self._read_chunks(limit_bytes)
        else:
            _check_size(self._length, limit_bytes)
            raw = self._read(self._length)
            self._is_whole = True
        return raw if self._coding == "identity" else _decompress(raw, self._coding, limit_bytes)

    def drain(self) -> bool:
        """Throw the rest away; return False when it is too much: then what follows cannot be told from it."""
        if self._is_whole:
            return True
        if self._unread_bytes > MAX_DRAIN_BYTES:
            return False
        self._allow(MAX_DRAIN_BYTES)
        self._skip()
        if self._length is None:
            try:
                self._read_chunks(MAX_DRAIN_BYTES, is_kept=False)
            except LimitExceededError:
                return False
        self._is_whole = True
        return True

    def _allow(self, size_bytes: int) -> None:
        # As much again as framing, for chunks of a few bytes; the buffered reader may take a little of what follows.
        self._source.allow(BODY_TIMEOUT_S + size_bytes / MIN_BYTES_PER_S, 2 * size_bytes + 65_536)

    def _read(self, size_bytes: int) -> bytes:
        data = self._file.read(size_bytes)
        self._unread_bytes -= len(data)
        if len(data) < size_bytes:
            raise ConnectionAbortedError("the caller hung up in the middle of a request")
        return data

    def _skip(self, but_bytes: int = 0) -> None:
        """Throw away what is known to come, but for the last `but_bytes`, and never hold much of it."""
        while self._unread_bytes > but_bytes:
            self._read(min(self._unread_bytes - but_bytes, _PIECE_BYTES))

    def _read_chunks(self, limit_bytes: int, *, is_kept: bool = True) -> bytes:
        parts: list[bytes] = []
        total = 0
        while size := self._begin_chunk():
            total += size
            _check_size(total, limit_bytes, is_all=False)
            if is_kept:
                parts.append(self._read(size))
            else:
                self._skip(but_bytes=2)
            if self._read(2) != b"\r\n":
                raise _no_chunk()
        for _ in range(_MAX_TRAILERS):
            if self._line() == b"\r\n":
                self._is_whole = True
                return b"".join(parts)
        raise _no_chunk()

    def _begin_chunk(self) -> int:
        match = _CHUNK_HEAD.fullmatch(self._line())
        if match is None:
            raise _no_chunk()
        size = int(match[1], 16)
        self._unread_bytes = size + 2 if size else 0
        return size

    def _line(self) -> bytes:
        line = self._file.readline(_MAX_LINE_BYTES)
        if not line:
            raise ConnectionAbortedError("the caller hung up in the middle of a request")
        return line


class WholeBody:
    """A body that is here already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def most_bytes(self, limit_bytes: int) -> int:
        """Return how many bytes `read` returns at most."""
        return min(len(self._data), limit_bytes)

    def read(self, limit_bytes: int) -> bytes:
        """Return all of it; raises LimitExceededError when it is larger than `limit_bytes`."""
        _check_size(len(self._data), limit_bytes)
        return self._data


def _check_size(size_bytes: int, limit_bytes: int, *, is_all: bool = True) -> None:
    if size_bytes > limit_bytes:
        got = f"{size_bytes:,}{'' if is_all else ' or more'}"
        raise LimitExceededError(f"expected a request of at most {limit_bytes:,} bytes, got {got}")


def _no_chunk() -> RequestError:
    return RequestError(HTTPStatus.BAD_REQUEST, "expected a body in chunks, as Transfer-Encoding says")


def _decompress(raw: bytes, coding: str, limit_bytes: int) -> bytes:
    decoder = zlib.decompressobj(_CODINGS[coding])
    try:
        data = decoder.decompress(raw, limit_bytes + 1)
    except zlib.error as error:
        raise MalformedError(f"expected a body compressed with {coding}: {error}") from error
    _check_size(len(data), limit_bytes, is_all=False)
    if not decoder.eof or decoder.unused_data:
        raise MalformedError(f"expected a body compressed with {coding}, whole and nothing behind it")
    return data
