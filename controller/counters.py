"""Counts what the service drops or refuses: nothing vanishes silently."""

import threading
from collections import Counter


class Counters:
    """Thread-safe counts by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, n: int = 1) -> int:
        """Count `n` more; return how many that are now."""
        with self._lock:
            self._counts[name] += n
            return self._counts[name]

    def add_noteworthy(self, name: str) -> int:
        """Count one more; return how many that are when it is worth a line in the log, else 0.

        The first, the second, the fourth, the eighth: who floods the service does not fill its disk with log lines.
        """
        n = self.add(name)
        return n if n & (n - 1) == 0 else 0

    def get(self, name: str) -> int:
        """Return one count."""
        with self._lock:
            return self._counts[name]

    def all(self) -> dict[str, int]:
        """Return every count."""
        with self._lock:
            return dict(self._counts)
