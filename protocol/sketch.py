"""A mergeable latency sketch with a bounded relative error.

After DDSketch (Masson, Rim, Lee: "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error
Guarantees", PVLDB 12, 2019): value x falls into bucket ceil(log_gamma x), and every quantile is within 1 % of a value
that was recorded. Sketches of many devices and intervals add up to the sketch of all of them.
"""

import math

import msgspec

from protocol.codec import Count
from protocol.errors import MalformedError

RELATIVE_ERROR = 0.01
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_LOG = 1 / math.log(_GAMMA)
MAX_US = 3_600_000_000
MAX_BUCKET = math.ceil(math.log(MAX_US) * _PER_LOG)


class SketchData(msgspec.Struct, frozen=True, kw_only=True):
    """A sketch on the wire; all values in microseconds."""

    count: Count
    sum_us: Count
    max_us: Count
    buckets: tuple[tuple[Count, Count], ...]
    """(bucket, count), in ascending order of bucket."""

    def __post_init__(self) -> None:
        numbers = [bucket for bucket, _ in self.buckets]
        if (
            numbers != sorted(set(numbers))
            or any(n > MAX_BUCKET for n in numbers)
            or any(count == 0 for _, count in self.buckets)
            or sum(count for _, count in self.buckets) != self.count
            or self.max_us > MAX_US
        ):
            raise MalformedError("latency sketch: buckets out of order, out of range or not adding up")


class LatencySketch:
    """Counts durations from 1 µs to an hour; longer ones count as an hour."""

    __slots__ = ("_buckets", "count", "max_us", "sum_us")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.sum_us = 0
        self.max_us = 0

    def record(self, duration_us: int) -> None:
        """Count one duration."""
        value = min(max(duration_us, 1), MAX_US)
        bucket = math.ceil(math.log(value) * _PER_LOG)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.sum_us += value
        self.max_us = max(self.max_us, value)

    def merge(self, other: SketchData) -> None:
        """Add everything that `other` counted."""
        for bucket, count in other.buckets:
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self.count += other.count
        self.sum_us += other.sum_us
        self.max_us = max(self.max_us, other.max_us)

    def quantile_us(self, fraction: float) -> float | None:
        """Return the duration below which `fraction` of all lie, within 1 %; None when nothing was counted."""
        if not self.count:
            return None
        rank = fraction * (self.count - 1)
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen > rank:
                return min(2 * _GAMMA**bucket / (_GAMMA + 1), float(self.max_us))
        raise AssertionError("a sketch's buckets add up to its count")

    def data(self) -> SketchData:
        """Return the sketch as it goes on the wire."""
        return SketchData(
            count=self.count,
            sum_us=self.sum_us,
            max_us=self.max_us,
            buckets=tuple(sorted(self._buckets.items())),
        )
