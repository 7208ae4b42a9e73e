"""Files that people name, read to a bound: a path may lead to anything, also to what never ends."""

from pathlib import Path
from typing import BinaryIO

from protocol.errors import LimitExceededError


def read_file(path: Path, limit_bytes: int) -> bytes:
    """Return the bytes of the file at `path`.

    Raises:
        OSError: it cannot be read.
        LimitExceededError: it has more than `limit_bytes`.
    """
    with path.open("rb") as stream:
        return read_stream(stream, limit_bytes, str(path))


def read_stream(stream: BinaryIO, limit_bytes: int, name: str) -> bytes:
    """Return what is left in `stream`, which an error calls `name`; raises OSError or LimitExceededError."""
    raw = stream.read(limit_bytes + 1)
    if len(raw) > limit_bytes:
        raise LimitExceededError(f"expected at most {limit_bytes:,} bytes in {name}, got more")
    return raw


def why_unread(name: str, error: OSError | LimitExceededError) -> str:
    """Return in words why what is called `name` was not read."""
    return f"cannot read {name}: {error.strerror}" if isinstance(error, OSError) else str(error)
