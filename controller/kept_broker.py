"""A broker that is started again when it dies, ever more patiently, until that has not helped often enough.

What the service published is not kept here: the service finds that the broker forgot it, and publishes it again.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from controller.broker import BrokerProcess
from controller.errors import BrokerError

PAUSES_S = (0.1, 1.0, 2.0, 5.0, 10.0)
_LONG_LIFE_S = 60.0
_POLL_S = 0.1

log = logging.getLogger(__name__)


class Patience:
    """How long to wait before each new start; a broker that lived for long makes all before it forgotten."""

    def __init__(self, pauses_s: Sequence[float] = PAUSES_S, long_life_s: float = _LONG_LIFE_S) -> None:
        self._pauses_s = pauses_s
        self._long_life_s = long_life_s
        self.deaths = 0

    def after(self, lived_s: float) -> float | None:
        """Count one more death; return the pause before the next start, or None when it was one too many."""
        self.deaths = 1 if lived_s >= self._long_life_s else self.deaths + 1
        return self._pauses_s[self.deaths - 1] if self.deaths <= len(self._pauses_s) else None


class KeptBroker:
    """A running broker and a thread that watches it; leaving the `with` block ends both.

    `start_again` makes the next broker, at the same address. `say` is told, for people, what happens. `give_up` is
    called from the thread when no start helps; the `with` block then ends with the BrokerError.
    """

    def __init__(
        self,
        broker: BrokerProcess,
        start_again: Callable[[], BrokerProcess],
        *,
        say: Callable[[str], None],
        give_up: Callable[[], None],
        patience: Patience | None = None,
    ) -> None:
        self.kind = broker.kind
        self.url = broker.url
        self._broker = broker
        self._start_again = start_again
        self._say = say
        self._give_up = give_up
        self._patience = patience or Patience()
        self._is_ending = threading.Event()
        self._failure: BrokerError | None = None
        # Linux kills a broker when the thread that started it ends: this one outlives all that it starts.
        self._thread = threading.Thread(target=self._keep, name="broker keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_ending.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _keep(self) -> None:
        broker: BrokerProcess | None = self._broker
        while broker is not None:
            started_at = time.monotonic()
            while broker.is_alive() and not self._is_ending.wait(_POLL_S):
                pass
            if self._is_ending.is_set():
                broker.stop()
                return
            broker = self._next(BrokerError(broker.ending()), time.monotonic() - started_at)

    def _next(self, error: BrokerError, lived_s: float) -> BrokerProcess | None:
        """Return the next broker that came up, or None when there is none any more."""
        while (pause_s := self._patience.after(lived_s)) is not None:
            self._say(f"{error}; starting it again{f' in {pause_s:g} s' if pause_s >= 1 else ''}")
            if self._is_ending.wait(pause_s):
                return None
            try:
                broker = self._start_again()
            except BrokerError as failed:
                error, lived_s = failed, 0.0
                continue
            self._say(f"the {broker.kind} broker is back at {broker.url}")
            return broker
        self._failure = BrokerError(
            f"the broker died {self._patience.deaths} times in a row, and is not started again: {error}",
            hint=error.hint or "see its log, or run a broker of your own and `fleetctl serve`",
        )
        self._give_up()
        return None
