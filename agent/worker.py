"""One thread for slow work, so that the main loop never waits for a disk or a compiler."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Worker(Generic[T]):
    """Runs jobs one after another and posts what each returns."""

    def __init__(self, post: Callable[[T], None]) -> None:
        self._post = post
        self._jobs: queue.SimpleQueue[Callable[[], T] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="install", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> None:
        """Run `job` after those before it. It should not raise: nothing is posted then."""
        self._jobs.put(job)

    def close(self, timeout_s: float) -> bool:
        """Wait for the job in hand, drop the others; return whether the thread ended in time."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                result = job()
            except Exception:  # noqa: BLE001 - the worker lives on
                _log.exception("a defect of the agent: a job ended in an unexpected error")
            else:
                self._post(result)
