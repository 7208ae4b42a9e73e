"""What the broker has yet to confirm on one connection: who waits for it, how many may, and for how long.

Knows packet ids and threads, no network: the connection tells what was sent, what was answered, and when it ended.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from controller.errors import BrokerError

Confirmation = Future[None]
_LOOK_S = 1.0


class Confirmations:
    """The confirmations of one connection. `on_stall` is called when the broker is silent for `timeout_s`."""

    def __init__(self, *, max_outstanding: int, timeout_s: float, on_stall: Callable[[str], None]) -> None:
        self._max_outstanding = max_outstanding
        self._slots = threading.Semaphore(max_outstanding)
        self._timeout_s = timeout_s
        self._on_stall = on_stall
        self._lock = threading.Lock()
        self._awaited: dict[int, Confirmation] = {}
        self._early: dict[int, str] = {}
        self._end_reason: str | None = None
        self._last_answer_s = 0.0

    def lower_limit(self, max_outstanding: int) -> None:
        """Let fewer publishes be outstanding, as the broker asks; call it before the first."""
        for _ in range(self._max_outstanding - max_outstanding):
            self._slots.acquire()

    def take_slot(self) -> None:
        """Wait until one more publish may be outstanding; raises BrokerError when the connection ends or stalls."""
        started_s = time.monotonic()
        while not self._slots.acquire(timeout=min(_LOOK_S, self._timeout_s)):
            self._check_progress(started_s)
        if self._end_reason is not None:
            self._slots.release()
            raise self._lost()

    def free_slot(self) -> None:
        """Give back what `take_slot` took."""
        self._slots.release()

    def expect(self, packet_id: int) -> Confirmation:
        """Return the confirmation of a packet that was just sent; it may have come already."""
        confirmation = Confirmation()
        with self._lock:
            refusal = self._early.pop(packet_id, None)
            if refusal is None and self._end_reason is None:
                self._awaited[packet_id] = confirmation
                return confirmation
        if refusal is None:
            confirmation.set_exception(self._lost())
        else:
            _settle(confirmation, refusal)
        return confirmation

    def answer(self, packet_id: int, refusal: str) -> None:
        """Note what the broker answered: an empty text is its confirmation."""
        self._last_answer_s = time.monotonic()
        with self._lock:
            confirmation = self._awaited.pop(packet_id, None)
            if confirmation is None:
                self._early[packet_id] = refusal
        if confirmation is not None:
            _settle(confirmation, refusal)

    def end(self, reason: str) -> None:
        """Note that the connection has ended: whatever still waits fails."""
        with self._lock:
            self._end_reason = reason
            left = list(self._awaited.values())
            self._awaited.clear()
        for confirmation in left:
            confirmation.set_exception(self._lost())

    def wait_for(self, confirmation: Confirmation) -> None:
        """Wait for an answer; raises BrokerError when it is a refusal, or when the connection ends or stalls."""
        started_s = time.monotonic()
        while True:
            try:
                return confirmation.result(timeout=min(_LOOK_S, self._timeout_s))
            except TimeoutError:
                self._check_progress(started_s)

    def _check_progress(self, started_s: float) -> None:
        if self._end_reason is not None:
            raise self._lost()
        silence_s = time.monotonic() - max(started_s, self._last_answer_s)
        if silence_s >= self._timeout_s:
            self._on_stall(f"the broker has confirmed nothing for {silence_s:.0f} s")

    def _lost(self) -> BrokerError:
        return BrokerError(
            f"the connection to the broker was lost before it confirmed: {self._end_reason}", hint="try again"
        )


def _settle(confirmation: Confirmation, refusal: str) -> None:
    if refusal:
        confirmation.set_exception(BrokerError(f"the broker refuses: {refusal}", hint="see its access rules and log"))
    else:
        confirmation.set_result(None)
