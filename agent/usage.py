"""What each release did since the last report: calls, errors by code, latency, memory."""

import threading
from typing import Final

from protocol.limits import MAX_MODELS_PER_DEVICE
from protocol.messages import ModelUsage
from protocol.sketch import LatencySketch

MAX_USAGES: Final = 2 * MAX_MODELS_PER_DEVICE
"""How many releases one telemetry record holds."""


class _Usage:
    """The counters of one release."""

    __slots__ = ("errors", "latency", "memory_peak_bytes")

    def __init__(self) -> None:
        self.errors: dict[str, int] = {}
        self.latency = LatencySketch()
        self.memory_peak_bytes = 0


class UsageMeter:
    """Counts from many threads. What one `take` returned, no other returns, and nothing is lost in between."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._usages: dict[tuple[str, str], _Usage] = {}

    def record(self, model: str, version: str, latency_us: int, memory_bytes: int = 0) -> None:
        """Count one answered call, and the memory that the module had behind it."""
        with self._lock:
            usage = self._usage(model, version)
            usage.latency.record(latency_us)
            usage.memory_peak_bytes = max(usage.memory_peak_bytes, memory_bytes)

    def record_error(self, model: str, version: str, code: str) -> None:
        """Count one call that failed."""
        with self._lock:
            errors = self._usage(model, version).errors
            errors[code] = errors.get(code, 0) + 1

    def note_memory(self, model: str, version: str, memory_bytes: int) -> None:
        """Note how much memory the module has, also when it is not called."""
        with self._lock:
            usage = self._usage(model, version)
            usage.memory_peak_bytes = max(usage.memory_peak_bytes, memory_bytes)

    def take(self) -> tuple[ModelUsage, ...]:
        """Return what was counted since the last time, oldest release first; more than fit wait for the next time."""
        with self._lock:
            keys = list(self._usages)[:MAX_USAGES]
            taken = {key: self._usages.pop(key) for key in keys}
        return tuple(
            ModelUsage(
                model=model,
                version=version,
                inferences=usage.latency.count,
                errors=usage.errors,
                latency=usage.latency.data(),
                memory_peak_bytes=usage.memory_peak_bytes,
            )
            for (model, version), usage in taken.items()
        )

    def _usage(self, model: str, version: str) -> _Usage:
        usage = self._usages.get((model, version))
        if usage is None:
            usage = self._usages[model, version] = _Usage()
        return usage
