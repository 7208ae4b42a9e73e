"""The daemon's one queue: network, worker and requests put in, the main loop takes out.

Bounded for those who can wait: a flood of messages holds up the network thread, and so the broker, instead of filling
the memory. Signals and requests never wait.
"""

import queue
import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """A queue with room for `capacity` items of those who wait."""

    def __init__(self, capacity: int) -> None:
        self._items: queue.SimpleQueue[tuple[T, bool]] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._capacity = capacity
        self._taken = 0
        """Room that is in use."""
        self._is_closed = False

    def put(self, item: T) -> None:
        """Put an item in, when there is room. Not from the thread that takes them out."""
        with self._room:
            self._room.wait_for(lambda: self._taken < self._capacity or self._is_closed)
            self._taken += 1
        self._items.put((item, True))

    def put_now(self, item: T) -> None:
        """Put a rare item in at once. Safe in a signal handler."""
        self._items.put((item, False))

    def take(self, timeout_s: float) -> T | None:
        """Return the next item, or None after `timeout_s`."""
        try:
            item, took_room = self._items.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            return None
        if took_room:
            with self._room:
                self._taken -= 1
                self._room.notify()
        return item

    def close(self) -> None:
        """Let everyone who waits go on; nobody takes items any more."""
        with self._room:
            self._is_closed = True
            self._room.notify_all()
