"""What a service does for itself while it runs: telemetry is summed up, what is old is cleared away.

In the background, in short transactions, a little at a time. Whatever fails is logged and tried again later.
"""

import logging
import threading
from collections.abc import Iterator

from controller.config import RetentionConfig
from controller.core import Core
from controller.reports.rollup import forget_days, forget_intervals, sum_up_days, sum_up_hours
from controller.store.sweep import forget_files, forget_receipts

log = logging.getLogger(__name__)

EVERY_S = 300.0
_REST_S = 0.02
"""Between two transactions: everybody else comes first."""


class Upkeep:
    """One thread, which a service starts and closes."""

    def __init__(self, core: Core, keep: RetentionConfig) -> None:
        self._core = core
        self._keep = keep
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the transaction at hand."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def run_once(self, rest_s: float = 0.0) -> None:
        """Do all that is due; one kind of work that fails keeps no other from being done."""
        core, keep = self._core, self._keep
        work: tuple[tuple[str, Iterator[None]], ...] = (
            ("sum up hours", sum_up_hours(core)),
            ("forget intervals", forget_intervals(core, keep.telemetry_hours)),
            ("sum up days", sum_up_days(core, keep.hourly_days)),
            ("forget days", forget_days(core, keep.daily_days)),
            ("forget receipts", forget_receipts(core, keep.receipt_days)),
            ("forget files", forget_files(core, keep.unused_file_hours)),
        )
        for name, steps in work:
            try:
                for _ in steps:
                    if self._closing.wait(rest_s):
                        return
            except Exception:  # upkeep that fails must end neither the service nor the rest of the upkeep
                core.counters.add("upkeep.failed")
                log.exception("upkeep failed", extra={"work": name})

    def _run(self) -> None:
        while not self._closing.is_set():
            self.run_once(_REST_S)
            self._closing.wait(EVERY_S)
