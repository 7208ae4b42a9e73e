"""Instants: aware datetimes in the code, Unix milliseconds in the database, RFC 3339 in the API."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns now, in UTC."""


def to_ms(at: datetime) -> int:
    """Return `at` in Unix milliseconds."""
    return round(at.timestamp() * 1000)


def from_ms(at_ms: int) -> datetime:
    """Return the instant of `at_ms`."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def rfc3339(at_ms: int) -> str:
    """Return `at_ms` as the API writes it."""
    return from_ms(at_ms).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_or_none(at_ms: int | None) -> str | None:
    """Return `at_ms` as the API writes it, or None."""
    return None if at_ms is None else rfc3339(at_ms)
