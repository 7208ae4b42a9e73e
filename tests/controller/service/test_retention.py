"""What grows with time is summed up and cleared away: nothing is counted twice or lost, wherever it is interrupted."""

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from controller.api.schema import QueryRequest
from controller.commands import releases as release_commands
from controller.config import RetentionConfig
from controller.core import Core
from controller.queries.query import Queries
from controller.reads.rollouts import get_rollout
from controller.reports.rollup import forget_days, forget_intervals, sum_up_days, sum_up_hours
from controller.store.models import AckRow, FileRow, ReceiptRow, SampleRow, UsageErrorRow, UsageRow, UsageTrapRow
from controller.store.rollup_models import SampleRollupRow, UsageErrorRollupRow, UsageRollupRow, UsageTrapRollupRow
from controller.store.sweep import forget_files, forget_receipts
from controller.upkeep import Upkeep
from protocol.codec import sha256
from protocol.limits import MAX_INTEGER
from protocol.messages import ModelUsage, TrapCount
from protocol.sketch import SketchData
from tests.controller.service.fleet import HAPPY, OPERATOR, START, FleetCore, ScriptedDevice, bundle

TRAPS = tuple(TrapCount(kind="trap", layer=layer, count=n) for n, layer in ((1, ""), (2, "conv1")))
RAW = (SampleRow, UsageRow, UsageErrorRow, UsageTrapRow)
SUMS = (SampleRollupRow, UsageRollupRow, UsageErrorRollupRow, UsageTrapRollupRow)
TOTALS = """
SELECT model, version, sum(inferences), sketch_quantile(latency, 0.5), sketch_quantile(latency, 0.99),
       max(memory_peak_bytes), sum(errors), (SELECT sum(errors) FROM {errors}), count(DISTINCT device),
       (SELECT sum(traps) FROM trap_log WHERE layer = 'conv1'), (SELECT sum(traps) FROM trap_log WHERE layer IS NULL)
FROM {usage} GROUP BY model, version
"""


def rows(core: Core, *kinds: type) -> list[int]:
    """Return how many rows the tables have."""
    with core.store.read() as session:
        return [session.scalar(select(func.count()).select_from(kind)) or 0 for kind in kinds]


def totals(core: Core) -> list[tuple[object, ...]]:
    """Return what the fleet did, by both pairs of views; they must agree."""
    queries = Queries(core.store.path)
    log, summed = (
        queries.run(QueryRequest(sql=TOTALS.format(usage=usage, errors=errors))).rows
        for usage, errors in (("usage_log", "error_log"), ("usage_totals", "error_totals"))
    )
    assert log == summed
    return list(log)


def live(fleet: FleetCore, devices: list[ScriptedDevice], hours: int) -> None:
    """Have devices report four times an hour, of two releases."""
    releases = [bundle().manifest, bundle(version="2.0.0", counter=2).manifest]
    for turn in range(4 * hours):
        for number, device in enumerate(devices):
            usage = [(release, [100 * (number + 1), 1_000 + turn]) for release in releases]
            record = device.record(*usage, errors={"trap": 1, "deadline": turn % 2}, traps=TRAPS)
            fleet.say(device, "telemetry", device.telemetry(record))
        fleet.clock.advance(minutes=15)


@pytest.fixture
def devices(fleet: FleetCore) -> list[ScriptedDevice]:
    """Three, so that a batch has neighbours."""
    return [fleet.enroll(f"press-{n}") for n in range(3)]


def test_hours_and_days_add_up_to_the_same_at_every_step(fleet: FleetCore, devices: list[ScriptedDevice]) -> None:
    """After each transaction of the work, which may be the last one before the service is killed."""
    live(fleet, devices, hours=30)
    before = totals(fleet.core)
    assert [30 * 4 * 3 * n for n in (1, 2, 4, 4)] == rows(fleet.core, *RAW)
    work: tuple[Callable[[Core], Iterator[None]], ...] = (
        sum_up_hours,
        lambda core: forget_intervals(core, 1),
        lambda core: sum_up_days(core, 1),
    )
    fleet.clock.advance(days=2)
    for steps in (*work, *work):
        for _ in steps(fleet.core):
            assert before == totals(fleet.core)
            for _ in steps(fleet.core):  # begun anew, as after a kill
                break
        assert before == totals(fleet.core)
    assert [0, 0, 0, 0] == rows(fleet.core, *RAW)
    assert [2 * 3 * n for n in (1, 2, 4, 4)] == rows(fleet.core, *SUMS)


def test_what_comes_late_is_counted_once(fleet: FleetCore, devices: list[ScriptedDevice]) -> None:
    """A repeated batch whose intervals were cleared away, and one that comes while the clock is behind."""
    device, release = devices[0], bundle().manifest
    batch = device.telemetry(device.record((release, [100])))
    fleet.say(device, "telemetry", batch)
    fleet.clock.advance(hours=3)
    upkeep = Upkeep(fleet.core, RetentionConfig(telemetry_hours=1))
    upkeep.run_once()
    fleet.say(device, "telemetry", batch)
    assert 1 == totals(fleet.core)[0][2]
    fleet.clock.advance(minutes=-50)
    fleet.say(device, "telemetry", device.telemetry(device.record((release, [100, 100]))))
    assert 3 == totals(fleet.core)[0][2]
    fleet.clock.advance(hours=5)
    upkeep.run_once()
    assert 3 == totals(fleet.core)[0][2]
    assert [0, 0, 0, 0] == rows(fleet.core, *RAW)


def test_a_clock_that_was_far_ahead_stops_nothing(fleet: FleetCore, devices: list[ScriptedDevice]) -> None:
    """What was closed meanwhile is opened again."""
    upkeep = Upkeep(fleet.core, RetentionConfig(telemetry_hours=1))
    fleet.clock.advance(days=3_650)
    upkeep.run_once()
    fleet.clock.at = START
    upkeep.run_once()
    live(fleet, devices, hours=3)
    upkeep.run_once()
    assert 3 * 4 * 3 * 2 == totals(fleet.core)[0][2]
    assert 0 < rows(fleet.core, UsageRollupRow)[0]


def test_a_device_that_claims_impossible_numbers_stops_nothing(fleet: FleetCore, devices: list[ScriptedDevice]) -> None:
    """Each is within its bound, their sum is not."""
    liar, honest = devices[:2]
    sketch = SketchData(count=MAX_INTEGER, sum_us=MAX_INTEGER, max_us=1, buckets=((0, MAX_INTEGER),))
    for _ in range(3):
        record = liar.record()
        usage = ModelUsage(
            model="double",
            version="1.0.0",
            inferences=MAX_INTEGER,
            errors={"trap": MAX_INTEGER},
            latency=sketch,
            memory_peak_bytes=MAX_INTEGER,
        )
        fleet.say(liar, "telemetry", liar.telemetry(type(record)(**{**_fields(record), "models": (usage,)})))
    fleet.say(honest, "telemetry", honest.telemetry(honest.record((bundle().manifest, [100]))))
    fleet.clock.advance(days=20)
    Upkeep(fleet.core, RetentionConfig()).run_once()
    assert 0 == fleet.core.counters.get("upkeep.failed")
    found = Queries(fleet.core.store.path).run(
        QueryRequest(sql="SELECT device, inferences, period FROM usage_log ORDER BY device")
    )
    assert (("press-0", MAX_INTEGER, "day"), ("press-1", 1, "day")) == found.rows


def _fields(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}  # type: ignore[attr-defined]


def test_days_end_too(fleet: FleetCore, devices: list[ScriptedDevice]) -> None:
    """After their time, the oldest first."""
    live(fleet, devices, hours=2)
    fleet.clock.advance(days=10)
    live(fleet, devices, hours=2)
    fleet.clock.advance(days=10)
    keep = RetentionConfig(hourly_days=1, daily_days=15)
    Upkeep(fleet.core, keep).run_once()
    assert [1 * 3 * n for n in (1, 2, 4, 4)] == rows(fleet.core, *SUMS)
    for _ in forget_days(fleet.core, 1):
        pass
    assert [0, 0, 0, 0] == rows(fleet.core, *SUMS)


def test_receipts_end_and_the_outcome_stays(fleet: FleetCore) -> None:
    """Of a deployment that ended; one that goes on keeps them, and repeated ones are not taken for new."""
    release = fleet.release(bundle())
    one, two = fleet.enroll("press-1"), fleet.enroll("press-2")
    rollout = fleet.roll_out("double", "1.0.0")
    ended, unfinished = (d.id for d in rollout.deployments)
    report = one.report(ended, release, HAPPY)
    fleet.say(one, "receipts", report)
    fleet.say(two, "receipts", two.report(unfinished, release, HAPPY[:3]))
    fleet.clock.advance(days=31)
    for _ in forget_receipts(fleet.core, 30):
        pass
    fleet.say(one, "receipts", report)
    with fleet.core.store.read() as session:
        assert ["press-2"] * 3 == list(session.scalars(select(ReceiptRow.device_id)))
        states = {d.device: (d.state, d.measures) for d in get_rollout(session, rollout.id).deployments}
        assert len(HAPPY) == session.get_one(AckRow, ("press-1", one.stream)).receipts_cleared
    assert {"press-1": ("succeeded", {"swap_us": 12}), "press-2": ("downloaded", {})} == states


def test_files_that_no_release_names_end(fleet: FleetCore) -> None:
    """After a grace, in which a push may still sign the release; killed in between, nothing is left for ever."""
    fleet.release(bundle())
    fleet.upload(given_up := bundle("given-up"))
    fleet.upload(begun := bundle("begun"))
    blob, _ = fleet.core.files.cut(sha256(given_up.files[0]))
    folder = fleet.core.files.path(sha256(b"")).parent
    lost = folder / sha256(b"lost")
    lost.write_bytes(b"lost")
    fleet.clock.advance(hours=25)
    for path in fleet.core.files.names():
        os.utime(path, (0, 0))
    assert release_commands.has_file(fleet.core, sha256(begun.files[0]))
    killed = forget_files(fleet.core, 24)
    next(killed)
    killed.close()
    Upkeep(fleet.core, RetentionConfig()).run_once()
    left = {path.name for path in fleet.core.files.names()}
    released = {sha256(data) for data in bundle().files}
    with fleet.core.store.read() as session:
        assert left == set(session.scalars(select(FileRow.digest))) == released | {sha256(begun.files[0])}
    assert f"{blob}.index" not in left
    fleet.release(given_up)
    release_commands.record_file(fleet.core, sha256(begun.files[0]), 1, OPERATOR)


def test_an_upload_under_way_is_not_swept(fleet: FleetCore) -> None:
    """Its row comes a moment after its file."""
    with fleet.core.files.upload(digest := sha256(b"new")) as upload:
        upload.write(b"new")
        upload.commit()
    for _ in forget_files(fleet.core, 24):
        pass
    assert fleet.core.files.has(digest)


def test_work_that_fails_is_logged_and_the_rest_is_done(
    fleet: FleetCore, devices: list[ScriptedDevice], tmp_path: Path
) -> None:
    """A folder of files that cannot be read does not keep telemetry from being summed up, nor end the thread."""
    live(fleet, devices, hours=2)
    folder = fleet.core.files.path(sha256(b"")).parent
    folder.rename(tmp_path / "aside")
    fleet.clock.advance(days=2)
    upkeep = Upkeep(fleet.core, RetentionConfig())
    upkeep.run_once()
    assert (1, 0) == (fleet.core.counters.get("upkeep.failed"), rows(fleet.core, UsageRow)[0])
    (tmp_path / "aside").rename(folder)
    upkeep.start()
    upkeep.close()


def test_spans_that_contradict_each_other_are_refused() -> None:
    """An hour cannot be kept longer than the day that replaces it."""
    with pytest.raises(ValueError, match="telemetry_hours within hourly_days"):
        RetentionConfig(telemetry_hours=24 * 8)
    assert timedelta(hours=RetentionConfig().telemetry_hours) < timedelta(days=RetentionConfig().hourly_days)
