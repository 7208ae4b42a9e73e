"""How the device and its models fared in an interval: what /proc says, and what the usage meter counted."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from agent.usage import TrapCounter
from protocol import limits
from protocol.codec import encode
from protocol.messages import DeviceUsage, ModelUsage, TelemetryRecord
from protocol.sketch import LatencySketch

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Meter(Protocol):
    """What counts the use of models."""

    def take(self) -> tuple[ModelUsage, ...]:
        """Return what was counted since the last call."""


class _CpuTimes(msgspec.Struct, frozen=True, kw_only=True):
    busy: int
    total: int


class Telemetry:
    """Takes one record for each interval; intervals follow each other without a gap."""

    def __init__(self, meter: Meter, *, session: int, now_ms: int, proc: Path = _PROC) -> None:
        self._meter = meter
        self._session = session
        self._from_ms = now_ms
        self._proc = proc
        self._cpu = self._cpu_times()
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, str], ModelUsage] = {}
        self._answered: dict[str, int] = {}

    def answered(self) -> dict[str, int]:
        """Return how many inferences each model has answered since the start. From any thread."""
        with self._lock:
            self._absorb()
            return dict(self._answered)

    def take(self, now_ms: int) -> list[TelemetryRecord]:
        """Return the interval since the last call, in as many records as fit a message each."""
        with self._lock:
            self._absorb()
            usages, self._pending = list(self._pending.values()), {}
        device = self._device()
        from_ms, self._from_ms = min(self._from_ms, now_ms), now_ms
        return [
            TelemetryRecord(
                seq=1, session=self._session, from_ms=from_ms, to_ms=now_ms, device=device, models=tuple(models)
            )
            for models in _portions(usages)
        ]

    def _absorb(self) -> None:
        for usage in self._meter.take():
            key = (usage.model, usage.version)
            self._answered[usage.model] = self._answered.get(usage.model, 0) + usage.inferences
            known = self._pending.get(key)
            self._pending[key] = _merged(known, usage) if known else usage

    def _device(self) -> DeviceUsage:
        cpu = self._cpu_times()
        total = max(cpu.total - self._cpu.total, 1)
        permille = min(max(cpu.busy - self._cpu.busy, 0) * 1000 // total, 1000)
        self._cpu = cpu
        memory_total, memory_used = self._memory()
        return DeviceUsage(
            cpu_permille=permille,
            memory_used_bytes=memory_used,
            memory_total_bytes=memory_total,
            agent_memory_bytes=int((self._proc / "self/statm").read_text().split()[1]) * _PAGE_BYTES,
            uptime_s=int(float((self._proc / "uptime").read_text().split()[0])),
        )

    def _cpu_times(self) -> _CpuTimes:
        # proc(5): user nice system idle iowait irq softirq steal, in clock ticks since the machine started.
        ticks = [int(n) for n in (self._proc / "stat").read_text().splitlines()[0].split()[1:9]]
        return _CpuTimes(busy=sum(ticks) - ticks[3] - ticks[4], total=sum(ticks))

    def _memory(self) -> tuple[int, int]:
        lines = (self._proc / "meminfo").read_text().splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        total = kib["MemTotal"] * 1024
        return total, max(total - kib.get("MemAvailable", kib["MemFree"]) * 1024, 0)


def _merged(first: ModelUsage, second: ModelUsage) -> ModelUsage:
    latency = LatencySketch()
    latency.merge(first.latency)
    latency.merge(second.latency)
    errors = dict(first.errors)
    for code, count in second.errors.items():
        errors[code] = errors.get(code, 0) + count
    return ModelUsage(
        model=first.model,
        version=first.version,
        inferences=first.inferences + second.inferences,
        errors=errors,
        latency=latency.data(),
        memory_peak_bytes=max(first.memory_peak_bytes, second.memory_peak_bytes),
        traps=TrapCounter((*first.traps, *second.traps)).counts(),
    )


def _portions(usages: list[ModelUsage]) -> Iterator[list[ModelUsage]]:
    """Part `usages` so that each part, signed and encoded, fits a message; at least one part, also of nothing."""
    portion: list[ModelUsage] = []
    size = 0
    for usage in usages:
        usage_bytes = len(encode(usage))
        if portion and (
            size + usage_bytes > limits.MAX_REPORT_BYTES // 2 or len(portion) == 2 * limits.MAX_MODELS_PER_DEVICE
        ):
            yield portion
            portion, size = [], 0
        portion.append(usage)
        size += usage_bytes
    yield portion
