"""Counts what the service drops or refuses: nothing vanishes silently."""

import threading
from collections import Counter


class Counters:
    """Thread-safe counts by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, n: int = 1) -> None:
        """Count `n` more."""
        with self._lock:
            self._counts[name] += n

    def get(self, name: str) -> int:
        """Return one count."""
        with self._lock:
            return self._counts[name]

    def all(self) -> dict[str, int]:
        """Return every count."""
        with self._lock:
            return dict(self._counts)
