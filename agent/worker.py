"""One thread for slow work, so that the main loop never waits for a disk or a compiler."""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Worker(Generic[T]):
    """Runs jobs one after another and posts what each returns."""

    def __init__(self, post: Callable[[T], None]) -> None:
        self._post = post
        self._jobs: queue.SimpleQueue[Callable[[], T] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="install", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> None:
        """Run `job` after those before it. It must not raise."""
        self._jobs.put(job)

    def close(self, timeout_s: float) -> bool:
        """Wait for the job in hand, drop the others; return whether the thread ended in time."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._post(job())
