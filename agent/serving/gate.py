"""Who may run a model now: one caller after another, in the order in which they came, and a bounded number that waits.

A model runs one call at a time, so that a queue is where latency comes from. What does not fit in it is refused at
once, which tells the caller more than an answer that comes too late. The bodies of all requests together are bounded
too: they are the most that callers can make the agent hold.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from agent.errors import AgentError

MAX_WAITING: Final = 32
"""How many callers wait for one model, besides the one whose turn it is, where the policy says nothing."""
LONGEST_QUEUE: Final = 64
"""The most that a policy may ask for: as many as the connections of one kind that are open at a time."""
MAX_BODIES_BYTES: Final = 64 * 1024 * 1024


class OverloadedError(AgentError):
    """There is no place to wait in; the same request may do in a moment."""

    code = "overloaded"


class RequestTimeoutError(AgentError):
    """The request's time was over before its turn came; the model did not run."""

    code = "request_timeout"


class _Lane:
    """The callers of one model. A turn is a lock that is released by whoever had the turn before."""

    def __init__(self) -> None:
        self.is_taken = False
        self.waiting: deque[threading.Lock] = deque()


class Gate:
    """Gives turns, a model apart from all others. Safe to use from many threads."""

    def __init__(self, max_waiting: int = MAX_WAITING, max_bodies_bytes: int = MAX_BODIES_BYTES) -> None:
        self.max_waiting = max_waiting
        """May change at any time; those who wait already keep their places."""
        self._max_bodies_bytes = max_bodies_bytes
        self._bodies_bytes = 0
        self._lanes: dict[str, _Lane] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def turn(self, model: str, until_s: float) -> Iterator[None]:
        """Wait for the turn to run `model`, at most until `until_s` of the monotonic clock.

        Raises:
            OverloadedError: too many wait already.
            RequestTimeoutError: the turn did not come in time.
        """
        turn = self._enter(model)
        if turn is not None and not turn.acquire(timeout=max(until_s - time.monotonic(), 0)):
            self._give_up(model, turn)
        try:
            yield
        finally:
            self._leave(model)

    @contextlib.contextmanager
    def room(self, size_bytes: int) -> Iterator[None]:
        """Hold room for a body of at most `size_bytes`; raises OverloadedError when there is none now."""
        with self._lock:
            if self._bodies_bytes and self._bodies_bytes + size_bytes > self._max_bodies_bytes:
                raise OverloadedError("the requests under way are as much as this device holds: try again in a moment")
            self._bodies_bytes += size_bytes
        try:
            yield
        finally:
            with self._lock:
                self._bodies_bytes -= size_bytes

    def _enter(self, model: str) -> "threading.Lock | None":
        """Take the turn, or return what to wait for."""
        with self._lock:
            lane = self._lanes.setdefault(model, _Lane())
            if not lane.is_taken:
                lane.is_taken = True
                return None
            if len(lane.waiting) >= self.max_waiting:
                raise OverloadedError(
                    f"{model}: {len(lane.waiting)} callers wait for their turn already: try again in a moment"
                )
            turn = threading.Lock()
            turn.acquire()
            lane.waiting.append(turn)
            return turn

    def _give_up(self, model: str, turn: threading.Lock) -> None:
        """Leave the queue; raises RequestTimeoutError unless the turn came at the last moment."""
        with self._lock:
            waiting = self._lanes[model].waiting
            if turn in waiting:
                waiting.remove(turn)
                raise RequestTimeoutError(f"{model}: the request's time was over before its turn came")

    def _leave(self, model: str) -> None:
        with self._lock:
            lane = self._lanes[model]
            if lane.waiting:
                lane.waiting.popleft().release()
            else:
                del self._lanes[model]
