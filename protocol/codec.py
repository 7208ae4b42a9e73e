"""JSON in and out: canonical bytes for what is hashed or signed, bounded and typed parsing for what arrives."""

import hashlib
from typing import Annotated, TypeVar

import msgspec

from protocol import limits
from protocol.errors import LimitExceededError, MalformedError
from protocol.identifiers import Digest

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_INTEGER)]
"""A whole number as it may arrive: not negative, and exact in every language and database."""


def encode(value: object) -> bytes:
    """Return `value` as canonical JSON: keys sorted, no white space, UTF-8.

    The protocol has no floats and only ASCII keys, for which this equals RFC 8785.
    """
    return msgspec.json.encode(value, order="sorted")


def decode(raw: bytes, kind: type[T], *, limit_bytes: int, what: str) -> T:
    """Return the `kind` that `raw` spells.

    Unknown fields are ignored, so that an older reader understands a newer writer.

    Raises:
        LimitExceededError: `raw` is longer than `limit_bytes`; it was not parsed.
        MalformedError: `raw` is not JSON of that shape.
    """
    if len(raw) > limit_bytes:
        raise LimitExceededError(f"expected a {what} of at most {limit_bytes:,} bytes, got {len(raw):,}")
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # ValidationError is a DecodeError; its text names the path of the offending field.
        raise MalformedError(f"not a valid {what}: {error}") from error


def sha256(data: bytes | bytearray | memoryview) -> Digest:
    """Return the SHA-256 of `data` in hexadecimal."""
    return Digest(hashlib.sha256(data).hexdigest())
