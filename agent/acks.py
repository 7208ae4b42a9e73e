"""What the controller says it has stored: believed when the director signed it for this device and its memory.

An ack makes the device forget, so everything else is left alone: counted by reason, and logged now and then. An old ack
that a broker repeats covers less than what was forgotten already, and changes nothing.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from agent.errors import StateError
from agent.reports import Reports
from protocol.errors import ProtocolError
from protocol.messages import Ack

_log = logging.getLogger(__name__)


class AckStore(Protocol):
    """Where the reports are kept."""

    def acknowledge(self, ack: Ack) -> bool:
        """Forget what the controller has stored; return whether `ack` was about this memory and made sense."""


class Acks:
    """Takes acks as they arrive."""

    def __init__(self, open_ack: Callable[[bytes], Ack], store: AckStore, reports: Reports) -> None:
        self._open_ack = open_ack
        self._store = store
        self._reports = reports
        self._ignored: Counter[str] = Counter()

    @property
    def ignored(self) -> dict[str, int]:
        """How many acks were not obeyed since the start, by reason. From any thread."""
        return dict(self._ignored)

    def receive(self, raw: bytes, now_ms: int) -> bool:
        """Obey an ack that must be obeyed; return whether it was one."""
        if not raw:
            return False  # a retained message that was deleted
        try:
            ack = self._open_ack(raw)
            is_ours = self._store.acknowledge(ack)
        except ProtocolError as error:
            self._ignore(error.code, str(error))
            return False
        except StateError as error:
            self._ignore(error.code, f"{error}; the controller repeats it")
            return False
        if is_ours:
            self._reports.acknowledged(ack, now_ms)
        else:
            self._ignore("another_memory", "it is about reports that this memory never gave out")
        return is_ours

    def _ignore(self, code: str, message: str) -> None:
        self._ignored[code] += 1
        count = self._ignored[code]
        if count & (count - 1) == 0:  # the first, second, fourth, eighth: a flood fills no log
            _log.warning("ack ignored (%s, %d so far): %s", code, count, message)
