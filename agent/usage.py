"""What each release did since the last report: calls, errors by code, latency, memory."""

import threading
from collections.abc import Iterable
from typing import Final

from protocol.limits import MAX_MODELS_PER_DEVICE, MAX_TRAPS_PER_USAGE
from protocol.messages import ModelUsage, TrapCount
from protocol.sketch import LatencySketch

MAX_USAGES: Final = 2 * MAX_MODELS_PER_DEVICE
"""How many releases one telemetry record holds."""
MAX_LAYERS: Final = MAX_TRAPS_PER_USAGE // 2
"""The other half is for kinds whose layer is not told; there are fewer kinds than that."""


class TrapCounter:
    """Counts by kind and layer. When there are too many layers the rest counts as one that has no name."""

    def __init__(self, traps: Iterable[TrapCount] = ()) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self.add(traps)

    def add(self, traps: Iterable[TrapCount]) -> None:
        """Add what was counted elsewhere."""
        for trap in traps:
            self.record(trap.kind, trap.layer, trap.count)

    def record(self, kind: str, layer: str, count: int = 1) -> None:
        """Count `count` more."""
        key = (kind, layer)
        if key not in self._counts and len(self._counts) >= MAX_LAYERS:
            key = (kind, "")
        if key in self._counts or len(self._counts) < MAX_TRAPS_PER_USAGE:
            self._counts[key] = self._counts.get(key, 0) + count

    def counts(self) -> tuple[TrapCount, ...]:
        """Return the counts, the first that happened first."""
        return tuple(TrapCount(kind=kind, layer=layer, count=n) for (kind, layer), n in self._counts.items())


class _Usage:
    """The counters of one release."""

    __slots__ = ("errors", "latency", "memory_peak_bytes", "traps")

    def __init__(self) -> None:
        self.errors: dict[str, int] = {}
        self.latency = LatencySketch()
        self.memory_peak_bytes = 0
        self.traps = TrapCounter()


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

    def record_trap(self, model: str, version: str, kind: str, layer: str) -> None:
        """Count where in the module a call went wrong; one that failed counts as an error besides."""
        with self._lock:
            self._usage(model, version).traps.record(kind, layer)

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
                traps=usage.traps.counts(),
            )
            for (model, version), usage in taken.items()
        )

    def _usage(self, model: str, version: str) -> _Usage:
        usage = self._usages.get((model, version))
        if usage is None:
            usage = self._usages[model, version] = _Usage()
        return usage
