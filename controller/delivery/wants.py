"""What devices miss on the broker: asked by many, answered once, and only if it is ours to give.

A want is unsigned and therefore only a hint: it can make the service publish again what it has published before, at
most every few seconds, and nothing else.
"""

import threading
from collections import OrderedDict

import msgspec

from controller.counters import Counters
from controller.store.times import Clock, to_ms
from protocol.identifiers import DeviceId, Digest
from protocol.messages import Want

MAX_PENDING = 4_096
MAX_REMEMBERED = 65_536
QUIET_MS = 3_000
"""What was published this recently is on its way to everybody."""


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """One retained message that somebody misses."""

    kind: str
    """`metadata`, `director`, `offer`, `index` or `chunk`."""
    name: str = ""
    """The device of a director document, the file of an offer, the blob of an index or chunk."""
    number: int = 0


class Wants:
    """The pending wants of the whole fleet, from any thread."""

    def __init__(self, counters: Counters, now: Clock) -> None:
        self._counters = counters
        self._now = now
        self._lock = threading.Lock()
        self._pending: OrderedDict[Missing, None] = OrderedDict()
        self._answered: OrderedDict[Missing, int] = OrderedDict()

    def add(self, device: DeviceId, want: Want) -> None:
        """Note what `device` misses, unless it was published just now."""
        now_ms = to_ms(self._now())
        with self._lock:
            for missing in _parts(device, want):
                if now_ms - self._answered.get(missing, -QUIET_MS) < QUIET_MS:
                    self._counters.add("want.repeated")
                elif len(self._pending) >= MAX_PENDING:
                    self._counters.add("want.dropped")
                else:
                    self._pending[missing] = None

    def take(self, limit: int) -> list[Missing]:
        """Return the oldest, which now count as answered."""
        now_ms = to_ms(self._now())
        with self._lock:
            taken = [self._pending.popitem(last=False)[0] for _ in range(min(limit, len(self._pending)))]
            for missing in taken:
                self._answered[missing] = now_ms
                self._answered.move_to_end(missing)
            while len(self._answered) > MAX_REMEMBERED:
                self._answered.popitem(last=False)
        return taken


def _parts(device: DeviceId, want: Want) -> list[Missing]:
    match want.kind:
        case "metadata":
            return [Missing(kind="metadata")]
        case "director":
            return [Missing(kind="director", name=device)]
        case "offer":
            return [Missing(kind="offer", name=Digest(want.digest or ""))]
        case "blob":
            blob = Digest(want.digest or "")
            chunks = [Missing(kind="chunk", name=blob, number=n) for n in dict.fromkeys(want.chunks)]
            return chunks or [Missing(kind="index", name=blob)]
