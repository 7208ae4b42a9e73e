"""A month of 100 devices that report every minute: how large the database is, how long the dashboard's queries take.

python -m benchmarks.telemetry_month

The last day is single intervals, stored as rows and summed up by the service's own upkeep; the days before are written
as that upkeep leaves them. Queries run five times each, by the named queries of the API: median and spread are printed.
The limit for a query is `controller.queries.query.TIME_LIMIT_S`.
"""

import random
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from sqlalchemy import insert

from controller.api.schema import QueryRequest
from controller.config import RetentionConfig
from controller.core import Core, World
from controller.queries.query import Queries
from controller.reports.rollup import CLOSED_UNTIL, KEPT_FROM, SUMMED_UNTIL
from controller.store.engine import Store
from controller.store.files import FileStore
from controller.store.models import DeviceRow, SampleRow, UsageRow
from controller.store.rollup_models import DAY_MS, HOUR_MS, SampleRollupRow, UsageRollupRow
from controller.store.settings import put_setting
from controller.upkeep import Upkeep
from protocol.sketch import LatencySketch

DEVICES = 100
DAYS = 30
PER_MINUTE = 60
NOW = datetime(2026, 6, 1, tzinfo=UTC)
NOW_MS = round(NOW.timestamp() * 1000)
WHICH = {"model": "digits", "version": "1.0.0"}
FARED = {"cpu_permille": 100, "memory_used_bytes": 1, "memory_total_bytes": 2, "agent_memory_bytes": 1, "uptime_s": 60}
QUERIES = ("latency", "latency-by-device", "errors", "device-health", "fleet-status")


def sketches(minutes: int, rng: random.Random) -> list[str]:
    """Return twenty different sketches of that many minutes, of latencies around a millisecond."""
    made = []
    for _ in range(20):
        sketch = LatencySketch()
        for _ in range(min(PER_MINUTE * minutes, 20_000)):
            sketch.record(round(1_000 * rng.lognormvariate(0, 0.5)))
        made.append(msgspec.json.encode(sketch.data()).decode())
    return made


def fill(store: Store, rng: random.Random) -> None:
    """Write the month."""
    names = [f"device-{n}" for n in range(DEVICES)]
    minute, hour, day = (sketches(minutes, rng) for minutes in (1, 60, 1440))
    raw_from_ms, hours_from_ms = NOW_MS - DAY_MS, NOW_MS - 7 * DAY_MS
    with store.write() as session:
        session.add_all(
            DeviceRow(id=name, public_key=b"", certificate_serial="1", enrolled_at_ms=1, liveness="online")
            for name in names
        )
        session.flush()
        for start_ms in range(NOW_MS - DAYS * DAY_MS, raw_from_ms, HOUR_MS):
            length_ms = HOUR_MS if start_ms >= hours_from_ms else DAY_MS
            if start_ms % length_ms:
                continue
            kind, inferences = (hour, 3_600) if length_ms == HOUR_MS else (day, 86_400)
            period = [{"start_ms": start_ms, "length_ms": length_ms, "device_id": name} for name in names]
            session.execute(insert(SampleRollupRow), [{**p, **FARED, "intervals": inferences // 60} for p in period])
            done = {"inferences": inferences, "memory_peak_bytes": 65_536}
            session.execute(
                insert(UsageRollupRow), [{**p, **WHICH, **done, "latency_json": rng.choice(kind)} for p in period]
            )
        for key in (CLOSED_UNTIL, SUMMED_UNTIL, KEPT_FROM):
            put_setting(session, key, str(raw_from_ms))
    for name in names:
        which = [
            {"device_id": name, "stream": "s", "seq": n + 1, "received_at_ms": raw_from_ms + n * 60_000}
            for n in range(1440)
        ]
        done = {"inferences": PER_MINUTE, "memory_peak_bytes": 65_536}
        with store.write() as session:
            session.execute(insert(SampleRow), [{**w, **FARED, "session": 1, "from_ms": 0, "to_ms": 1} for w in which])
            session.execute(
                insert(UsageRow), [{**w, **WHICH, **done, "latency_json": rng.choice(minute)} for w in which]
            )


def measure(queries: Queries, name: str) -> str:
    """Return how long a named query takes: the median of five, and the spread."""
    parameters = {"model": "digits"} if "device" in name and name.startswith("latency") else {}
    times_s = []
    for _ in range(5):
        began_s = time.perf_counter()
        queries.run(QueryRequest(name=name, parameters=parameters))
        times_s.append(time.perf_counter() - began_s)
    return f"{name:<18} {statistics.median(times_s):6.2f} s   ({min(times_s):.2f} to {max(times_s):.2f})"


def main() -> None:
    """Run it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fleet.db"
        store = Store(f"sqlite:///{path}")
        store.migrate()
        fill(store, random.Random(1))
        world = World(now=lambda: NOW, random_hex=lambda n: "0" * n)
        core = Core(store, FileStore(Path(folder) / "files"), None, world=world)  # type: ignore[arg-type] # signs nothing
        queries = Queries(path, time_limit_s=60)
        say = sys.stdout.write
        say(f"{DEVICES} devices, {DAYS} days: {path.stat().st_size / 1e6:.0f} MB before the last day is summed up\n")
        say(measure(queries, "latency") + "   before\n")
        began_s = time.perf_counter()
        Upkeep(core, RetentionConfig()).run_once()
        say(f"upkeep of one day   {time.perf_counter() - began_s:6.2f} s\n")
        for name in QUERIES:
            say(measure(queries, name) + "\n")
        say(f"{path.stat().st_size / 1e6:.0f} MB\n")
        store.close()


if __name__ == "__main__":
    main()
