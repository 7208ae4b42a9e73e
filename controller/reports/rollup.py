"""Telemetry grows with time; what is kept of it does not: hours and days are summed up, single intervals forgotten.

Each function is a generator that does one short transaction between two yields, so that the service can stop between
any two and other writers get their turn. Killed anywhere, the next run goes on: an hour is summed up from what it
holds as often as it takes, and counts only when all devices are done.

Time is that of arrival. Nothing is stored into an hour that was closed: see `arrival_ms`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from sqlalchemy import and_, delete, func, select
from sqlalchemy.orm import Session

from controller.core import Core
from controller.store.batches import batches
from controller.store.models import AckRow, SampleRow, UsageErrorRow, UsageRow, UsageTrapRow
from controller.store.rollup_models import (
    DAY_MS,
    HOUR_MS,
    SampleRollupRow,
    UsageErrorRollupRow,
    UsageRollupRow,
    UsageTrapRollupRow,
)
from controller.store.settings import get_setting, put_setting
from protocol.limits import MAX_INTEGER
from protocol.sketch import LatencySketch, SketchData

CLOSED_UNTIL = "telemetry_closed_until_ms"
"""No report is stored as of before."""
SUMMED_UNTIL = "telemetry_summed_until_ms"
"""Every hour before is summed up."""
KEPT_FROM = "telemetry_kept_from_ms"
"""Single intervals before are forgotten, or will be."""
GRACE_MS = 60_000
_DEVICES_AT_ONCE = 20
_ROWS_AT_ONCE = 500

Which = tuple[str, str, str]
"""Device, model, version."""
R = TypeVar("R", SampleRollupRow, UsageRollupRow, UsageErrorRollupRow, UsageTrapRollupRow)
_KINDS: tuple[Any, ...] = (SampleRollupRow, UsageRollupRow, UsageErrorRollupRow, UsageTrapRollupRow)


class Totals:
    """Sums of intervals, or of sums."""

    def __init__(self) -> None:
        self.samples: dict[str, _Sample] = {}
        self._sketches: dict[Which, LatencySketch] = defaultdict(LatencySketch)
        self._inferences: Counter[Which] = Counter()
        self._peaks: Counter[Which] = Counter()
        self._errors: Counter[tuple[Which, str]] = Counter()
        self._traps: Counter[tuple[Which, str, str]] = Counter()

    def add_sample(self, device: str, row: SampleRow | SampleRollupRow, intervals: int = 1) -> None:
        """Add how a device fared."""
        new = _Sample(
            intervals,
            row.cpu_permille * intervals,
            row.memory_used_bytes,
            row.memory_total_bytes,
            row.agent_memory_bytes,
            row.uptime_s,
        )
        old = self.samples.get(device, _Sample(0, 0, 0, 0, 0, 0))
        highest = (max(a, b) for a, b in zip(old[2:], new[2:], strict=True))
        self.samples[device] = _Sample(old.intervals + intervals, old.cpu_sum + new.cpu_sum, *highest)

    def add_usage(self, which: Which, row: UsageRow | UsageRollupRow) -> None:
        """Add what a release did."""
        sketch, more = self._sketches[which], msgspec.json.decode(row.latency_json, type=SketchData)
        # A device may claim any number: one that lies must not make sums that no database holds.
        if max(sketch.count + more.count, sketch.sum_us + more.sum_us) <= MAX_INTEGER:
            sketch.merge(more)
        self._inferences[which] = min(self._inferences[which] + row.inferences, MAX_INTEGER)
        self._peaks[which] = max(self._peaks[which], row.memory_peak_bytes)

    def add_errors(self, row: UsageErrorRow | UsageErrorRollupRow) -> None:
        """Add errors of one kind."""
        key = ((row.device_id, row.model, row.version), row.code)
        self._errors[key] = min(self._errors[key] + row.count, MAX_INTEGER)

    def add_traps(self, row: UsageTrapRow | UsageTrapRollupRow) -> None:
        """Add traps of one kind in one layer."""
        key = ((row.device_id, row.model, row.version), row.kind, row.layer)
        self._traps[key] = min(self._traps[key] + row.count, MAX_INTEGER)

    def save(self, session: Session, start_ms: int, length_ms: int) -> None:
        """Write the sums as those of this time, in place of what was there."""
        period = {"start_ms": start_ms, "length_ms": length_ms}
        for device, s in self.samples.items():
            session.merge(
                SampleRollupRow(
                    **period,
                    device_id=device,
                    intervals=s.intervals,
                    cpu_permille=round(s.cpu_sum / s.intervals),
                    memory_used_bytes=s.memory_used_bytes,
                    memory_total_bytes=s.memory_total_bytes,
                    agent_memory_bytes=s.agent_memory_bytes,
                    uptime_s=s.uptime_s,
                )
            )
        for (device, model, version), sketch in self._sketches.items():
            which = (device, model, version)
            session.merge(
                UsageRollupRow(
                    **period,
                    device_id=device,
                    model=model,
                    version=version,
                    inferences=self._inferences[which],
                    latency_json=msgspec.json.encode(sketch.data()).decode(),
                    memory_peak_bytes=self._peaks[which],
                )
            )
        for ((device, model, version), kind, layer), count in self._traps.items():
            named = {"device_id": device, "model": model, "version": version, "kind": kind, "layer": layer}
            session.merge(UsageTrapRollupRow(**period, **named, count=count))
        for ((device, model, version), code), count in self._errors.items():
            session.merge(
                UsageErrorRollupRow(**period, device_id=device, model=model, version=version, code=code, count=count)
            )


class _Sample(NamedTuple):
    intervals: int
    cpu_sum: int
    memory_used_bytes: int
    memory_total_bytes: int
    agent_memory_bytes: int
    uptime_s: int


def arrival_ms(session: Session, now_ms: int) -> int:
    """Return as of when a report that comes now is stored: never into an hour that was closed."""
    return max(now_ms, _instant(session, CLOSED_UNTIL))


def sum_up_hours(core: Core) -> Iterator[None]:
    """Sum up every hour that is over."""
    while (start_ms := _next_hour(core)) is not None:
        yield
        with core.store.read() as session:
            in_hour = (SampleRow.received_at_ms >= start_ms, SampleRow.received_at_ms < start_ms + HOUR_MS)
            devices = list(session.scalars(select(SampleRow.device_id).where(*in_hour).distinct()))
        for batch in batches(devices, _DEVICES_AT_ONCE):
            with core.store.write() as session:
                _sum_hour(session, batch, start_ms)
            yield
        with core.store.write() as session:
            put_setting(session, SUMMED_UNTIL, str(start_ms + HOUR_MS))


def sum_up_days(core: Core, hourly_days: int) -> Iterator[None]:
    """Put days in the place of the hours of days that lie further back than `hourly_days`."""
    while True:
        with core.store.read() as session:
            limit_ms = min(core.now_ms() - hourly_days * DAY_MS, _instant(session, KEPT_FROM))
            oldest = session.execute(
                select(SampleRollupRow.start_ms, SampleRollupRow.device_id)
                .where(SampleRollupRow.length_ms == HOUR_MS, SampleRollupRow.start_ms < limit_ms // DAY_MS * DAY_MS)
                .order_by(SampleRollupRow.start_ms)
                .limit(1)
            ).first()
            if oldest is None:
                return
            start_ms = oldest.start_ms // DAY_MS * DAY_MS
            devices = list(session.scalars(_hours(select(SampleRollupRow.device_id).distinct(), start_ms)))
        for batch in batches(devices, _DEVICES_AT_ONCE):
            with core.store.write() as session:
                _sum_day(session, batch, start_ms)
            yield


def forget_intervals(core: Core, raw_hours: int) -> Iterator[None]:
    """Drop single intervals that are older than `raw_hours` and summed up."""
    with core.store.write() as session:
        limit_ms = min((core.now_ms() - raw_hours * HOUR_MS) // HOUR_MS * HOUR_MS, _instant(session, SUMMED_UNTIL))
        if limit_ms > _instant(session, KEPT_FROM):
            put_setting(session, KEPT_FROM, str(limit_ms))
        limit_ms = _instant(session, KEPT_FROM)
    while True:
        yield
        with core.store.write() as session:
            old = list(
                session.scalars(select(SampleRow).where(SampleRow.received_at_ms < limit_ms).limit(_ROWS_AT_ONCE))
            )
            _forget(session, old)
        if len(old) < _ROWS_AT_ONCE:
            return


def forget_days(core: Core, daily_days: int) -> Iterator[None]:
    """Drop sums that are older than `daily_days`."""
    limit_ms = core.now_ms() - daily_days * DAY_MS
    for kind in _KINDS:
        while True:
            yield
            with core.store.write() as session:
                start_ms = session.scalar(select(func.min(kind.start_ms)))
                if start_ms is None or start_ms >= limit_ms:
                    break
                session.execute(delete(kind).where(kind.start_ms == start_ms))


def _next_hour(core: Core) -> int | None:
    """Return the beginning of the next hour to sum up, which is closed from now on, or None."""
    now_ms = core.now_ms()
    over_ms = (now_ms - GRACE_MS) // HOUR_MS * HOUR_MS
    with core.store.write() as session:
        summed_ms = _instant(session, SUMMED_UNTIL)
        if summed_ms > now_ms + HOUR_MS:  # the clock was set back: what was summed up meanwhile is summed up again
            summed_ms = over_ms
            put_setting(session, SUMMED_UNTIL, str(over_ms))
            put_setting(session, CLOSED_UNTIL, str(over_ms))
            put_setting(session, KEPT_FROM, str(min(over_ms, _instant(session, KEPT_FROM))))
        first = session.scalar(select(func.min(SampleRow.received_at_ms)).where(SampleRow.received_at_ms >= summed_ms))
        start_ms = over_ms if first is None else min(first // HOUR_MS * HOUR_MS, over_ms)
        if start_ms > summed_ms:
            put_setting(session, SUMMED_UNTIL, str(start_ms))
        if start_ms >= over_ms:
            return None
        if start_ms + HOUR_MS > _instant(session, CLOSED_UNTIL):
            put_setting(session, CLOSED_UNTIL, str(start_ms + HOUR_MS))
    return start_ms


def _sum_hour(session: Session, devices: Sequence[str], start_ms: int) -> None:
    totals = Totals()
    in_hour = (SampleRow.received_at_ms >= start_ms, SampleRow.received_at_ms < start_ms + HOUR_MS)
    for sample in session.scalars(select(SampleRow).where(SampleRow.device_id.in_(devices), *in_hour)):
        totals.add_sample(sample.device_id, sample)
    usage_in_hour = (
        UsageRow.device_id.in_(devices),
        UsageRow.received_at_ms >= start_ms,
        UsageRow.received_at_ms < start_ms + HOUR_MS,
    )
    for usage in session.scalars(select(UsageRow).where(*usage_in_hour)):
        totals.add_usage((usage.device_id, usage.model, usage.version), usage)
    for error in session.scalars(select(UsageErrorRow).join(UsageRow, _same(UsageErrorRow)).where(*usage_in_hour)):
        totals.add_errors(error)
    for trap in session.scalars(select(UsageTrapRow).join(UsageRow, _same(UsageTrapRow)).where(*usage_in_hour)):
        totals.add_traps(trap)
    totals.save(session, start_ms, HOUR_MS)


def _same(kind: Any) -> Any:
    """Return what joins errors or traps to the usage that they belong to."""
    key = ("device_id", "stream", "seq", "model", "version")
    return and_(*(getattr(kind, name) == getattr(UsageRow, name) for name in key))


def _sum_day(session: Session, devices: Sequence[str], start_ms: int) -> None:
    """The day and the end of its hours are one transaction: they are never both counted."""
    totals = Totals()
    for sample in _hourly(session, SampleRollupRow, devices, start_ms):
        totals.add_sample(sample.device_id, sample, sample.intervals)
    for usage in _hourly(session, UsageRollupRow, devices, start_ms):
        totals.add_usage((usage.device_id, usage.model, usage.version), usage)
    for error in _hourly(session, UsageErrorRollupRow, devices, start_ms):
        totals.add_errors(error)
    for trap in _hourly(session, UsageTrapRollupRow, devices, start_ms):
        totals.add_traps(trap)
    for kind in _KINDS:
        session.execute(_hours(delete(kind).where(kind.device_id.in_(devices)), start_ms, kind))
    totals.save(session, start_ms, DAY_MS)


def _hourly(session: Session, kind: type[R], devices: Sequence[str], start_ms: int) -> Iterable[R]:
    return list(session.scalars(_hours(select(kind).where(kind.device_id.in_(devices)), start_ms, kind)))


def _hours(statement: Any, start_ms: int, kind: Any = SampleRollupRow) -> Any:
    return statement.where(kind.length_ms == HOUR_MS, kind.start_ms >= start_ms, kind.start_ms < start_ms + DAY_MS)


def _forget(session: Session, old: Sequence[SampleRow]) -> None:
    numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in old:
        numbers[row.device_id, row.stream].append(row.seq)
    for (device, stream), seqs in numbers.items():
        # Numbers that are cleared are known all the same: a device may repeat them.
        if (ack := session.get(AckRow, (device, stream))) is not None:
            ack.telemetry_cleared = max(ack.telemetry_cleared, *seqs)
        for kind in (UsageTrapRow, UsageErrorRow, UsageRow, SampleRow):
            session.execute(delete(kind).where(kind.device_id == device, kind.stream == stream, kind.seq.in_(seqs)))


def _instant(session: Session, key: str) -> int:
    return int(get_setting(session, key, "0"))
