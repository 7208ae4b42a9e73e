"""What time it is, for a device whose clock may be wrong.

The trusted time never lies before a time that someone signed: the floor is the issue time of the newest director
document that was accepted, kept in the store, and the age of this program. The system's clock may only add to it. The
clock itself is never stored: one leap into the future must not make all later metadata look expired for ever. Nor does
a document's time outlive the next document: a controller whose clock was wrong, or a thief with its key, is healed.
"""

import time
from datetime import UTC, datetime
from typing import Final, Protocol

BUILD_TIME_MS: Final = int(datetime(2025, 6, 1, tzinfo=UTC).timestamp() * 1000)
"""No fleet signed anything for this program before."""
_CLOCK_SKEW_MS: Final = 3_600_000
"""Far below the validity of a timestamp, which must not end by it."""
_LATEST_MS: Final = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp() * 1000)
"""What a `datetime` can hold, whatever a clock says."""


class Clock(Protocol):
    """Two clocks: one that may be set, one that only runs."""

    def wall_ms(self) -> int:
        """Return Unix milliseconds, as right as the device knows."""

    def monotonic_ms(self) -> int:
        """Return milliseconds since some moment; never goes back."""


class SystemClock:
    """The clocks of the operating system."""

    def wall_ms(self) -> int:
        """Return Unix milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return milliseconds since some moment in the past."""
        return time.monotonic_ns() // 1_000_000


def trusted_now(wall_ms: int, signed_floor_ms: int) -> datetime:
    """Return the time to judge expiry by: never before what was signed, nor before this program was made."""
    return datetime.fromtimestamp(min(max(wall_ms, signed_floor_ms, BUILD_TIME_MS), _LATEST_MS) / 1000, UTC)


def believable_ms(issued_at_ms: int, wall_ms: int) -> int:
    """Return how much of a signed time to remember: a clock that seems right is not led astray by a wrong one."""
    return min(issued_at_ms, wall_ms + _CLOCK_SKEW_MS) if wall_ms >= BUILD_TIME_MS else issued_at_ms
