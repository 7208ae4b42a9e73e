"""Tells listeners that a rollout changed: from any thread, to coroutines that stream events.

It carries no content; a listener reads the newest state itself, so many changes at once become one event.
"""

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Changes:
    """The meeting point of those who change rollouts and those who watch them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchers: dict[str, set[Watcher]] = {}
        self.is_closed = False

    def announce(self, rollouts: Iterable[str]) -> None:
        """Wake everybody who watches one of `rollouts`; from any thread, after the commit."""
        with self._lock:
            watchers = [w for rollout in rollouts for w in self._watchers.get(rollout, ())]
        for watcher in watchers:
            watcher.wake()

    @contextmanager
    def watch(self, rollout: str) -> Iterator["Watcher"]:
        """Listen to one rollout, on the running event loop."""
        watcher = Watcher(asyncio.get_running_loop())
        with self._lock:
            self._watchers.setdefault(rollout, set()).add(watcher)
        try:
            yield watcher
        finally:
            with self._lock:
                self._watchers[rollout].discard(watcher)
                if not self._watchers[rollout]:
                    del self._watchers[rollout]

    def close(self) -> None:
        """End every stream: each listener wakes and finds it closed."""
        self.is_closed = True
        with self._lock:
            rollouts = list(self._watchers)
        self.announce(rollouts)


class Watcher:
    """One listener."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Make `wait` return; from any thread."""
        self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_s: float) -> bool:
        """Return whether something changed within `timeout_s`, since the last call."""
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except TimeoutError:
            return False
        self._event.clear()
        return True
