"""Reports reach the controller: signed, in order, again and again until they are acknowledged, within every bound."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.engine import State
from agent.engine.actions import EmitReceipt
from agent.reports import FIRST_PATIENCE_MS, GATHER_MS, MAX_OPEN_BATCHES, Outbox, Reports
from agent.store import Store
from agent.telemetry import Telemetry
from agent.usage import UsageMeter
from protocol import limits
from protocol.messages import Ack, Progress, Reason, open_receipts, open_telemetry
from protocol.sketch import LatencySketch
from tests.agent.signing import DEVICE

KEY = Ed25519PrivateKey.generate()


class Sender:
    """The reports of a device, and what was published of them."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "agent.db")
        self.sent: list[tuple[Outbox, bytes]] = []
        self.is_connected = True
        self.reports = Reports(self.store, DEVICE, KEY, self._publish)

    def _publish(self, outbox: Outbox, raw: bytes) -> bool:
        if self.is_connected:
            self.sent.append((outbox, raw))
        return self.is_connected

    def add(self, count: int, text: str = "") -> None:
        reason = Reason.of("test", text) if text else None
        emits = [
            EmitReceipt(model="m", deployment_id=f"d{n}", version="1.0.0", state="retrieved", reason=reason)
            for n in range(count)
        ]
        self.store.save(State(), State(), emits, at_ms=0, session=1)

    def add_progress(self) -> None:
        progress = Progress(done_bytes=1, total_bytes=2)
        emit = EmitReceipt(model="m", deployment_id="d", version="1.0.0", state="downloading", progress=progress)
        self.store.save(State(), State(), [emit], at_ms=0, session=1)

    def acknowledge(self, now_ms: int, *, receipts: int = 0, telemetry: int = 0) -> None:
        ack = Ack(device_id=DEVICE, stream=self.store.stream, receipts=receipts, telemetry=telemetry)
        self.store.acknowledge(ack)
        self.reports.acknowledged(ack, now_ms)

    def received(self) -> list[int]:
        """Return the numbers of the receipts that were sent, in order."""
        batches = [open_receipts(raw, DEVICE, KEY.public_key()) for outbox, raw in self.sent if outbox == "receipts"]
        return [receipt.seq for batch in batches for receipt in batch.receipts]


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[Sender]:
    """A device with an empty outbox."""
    sender = Sender(tmp_path)
    yield sender
    sender.store.close()


def test_new_receipts_are_sent_once_per_connection(sender: Sender) -> None:
    """Nothing is repeated while the connection stands and the patience lasts."""
    sender.add(3)
    sender.reports.flush(0)
    sender.reports.flush(1)
    sender.add(1)
    sender.reports.flush(2)
    assert [1, 2, 3, 4] == sender.received()


def test_receipts_in_quick_succession_share_a_batch(sender: Sender) -> None:
    """The first leaves at once; those within a short while after it leave together, in their time."""
    for now_ms in (1000, 1000 + GATHER_MS // 4, 1000 + GATHER_MS // 2):
        sender.add(1)
        sender.reports.flush_soon(now_ms)
    assert (1, 1000 + GATHER_MS) == (len(sender.sent), sender.reports.due_ms)
    sender.reports.tick(1000 + GATHER_MS - 1)
    assert [1] == sender.received()
    sender.reports.tick(1000 + GATHER_MS)
    assert ([1, 2, 3], 2, math.inf) == (sender.received(), len(sender.sent), sender.reports.due_ms)


def test_new_connection_sends_everything_that_was_not_acknowledged(sender: Sender) -> None:
    """What the broker may have lost is sent again; what is acknowledged is not."""
    sender.add(3)
    sender.reports.flush(0)
    sender.store.acknowledge(Ack(device_id=DEVICE, stream=sender.store.stream, receipts=2))
    sender.sent.clear()
    sender.reports.restart(1)
    assert [3] == sender.received()


def test_silence_is_answered_by_repetition_that_gets_rarer(sender: Sender) -> None:
    """Without an ack everything is sent again, after doubling pauses."""
    sender.add(1)
    sender.reports.flush(0)
    times = []
    for now_ms in range(0, 10 * FIRST_PATIENCE_MS, 1000):
        before = len(sender.sent)
        sender.reports.tick(now_ms)
        times += [now_ms] if len(sender.sent) > before else []
    assert [FIRST_PATIENCE_MS, 3 * FIRST_PATIENCE_MS, 7 * FIRST_PATIENCE_MS] == times


def test_nothing_is_sent_without_a_connection(sender: Sender) -> None:
    """A failed attempt counts for nothing."""
    sender.add(1)
    sender.is_connected = False
    sender.reports.flush(0)
    sender.is_connected = True
    sender.reports.flush(1)
    assert [1] == sender.received()


def test_backlog_is_sent_in_portions_that_wait_for_acks(sender: Sender) -> None:
    """A device that was away for long does not flood the broker."""
    total = (MAX_OPEN_BATCHES + 2) * limits.MAX_RECEIPTS_PER_BATCH
    sender.add(total)
    sender.reports.flush(0)
    assert MAX_OPEN_BATCHES == len(sender.sent)
    sender.acknowledge(1, receipts=sender.received()[-1])
    sender.reports.tick(GATHER_MS)
    assert list(range(1, total + 1)) == sender.received()


def test_ack_of_something_else_does_not_end_the_repetition(sender: Sender) -> None:
    """A receipt that was lost is sent again, however often newer telemetry is sent and acknowledged."""
    sender.add(1)
    sender.reports.flush(0)
    telemetry = Telemetry(UsageMeter(), session=1, now_ms=0)
    for number in range(1, 3):
        (record,) = telemetry.take(number)
        sender.store.add_telemetry(record)
        sender.acknowledge(number * FIRST_PATIENCE_MS // 3, telemetry=number - 1)
    sender.sent.clear()
    sender.reports.tick(FIRST_PATIENCE_MS - 1)
    assert [] == sender.received()
    sender.reports.tick(FIRST_PATIENCE_MS)
    assert [1] == sender.received()
    sender.acknowledge(FIRST_PATIENCE_MS + 1, receipts=1, telemetry=2)
    sender.sent.clear()
    sender.reports.tick(10 * FIRST_PATIENCE_MS)
    assert [] == sender.sent


def test_batch_of_long_reasons_stays_within_the_limit(sender: Sender) -> None:
    """Reasons of many bytes a character make the batch smaller, not larger than a message may be."""
    sender.add(200, "\U0001f4a5" * limits.MAX_REASON_CHARS)
    sender.reports.flush(0)
    assert max(len(raw) for _, raw in sender.sent) <= limits.MAX_REPORT_BYTES
    assert list(range(1, 201)) == sender.received()


def test_each_batch_names_the_number_that_it_follows(sender: Sender) -> None:
    """The controller can tell what was dropped from what is still on its way."""
    sender.add(3)
    sender.reports.flush(0)
    sender.store.acknowledge(Ack(device_id=DEVICE, stream=sender.store.stream, receipts=2))
    for _ in range(3):  # only the latest progress is kept: one that nobody has heard, perhaps
        sender.add_progress()
        sender.reports.flush(1)
    sender.reports.restart(2)
    batches = [open_receipts(raw, DEVICE, KEY.public_key()) for _, raw in sender.sent]
    found = [(batch.after, [receipt.seq for receipt in batch.receipts]) for batch in batches]
    assert [(0, [1, 2, 3]), (3, [4]), (4, [5]), (5, [6]), (2, [3, 6])] == found


def usage_meter(models: int, buckets: int = 1) -> UsageMeter:
    meter = UsageMeter()
    for model in range(models):
        for n in range(buckets):
            meter.record(f"model-{model}", "1.0.0", int(1.021**n) + n, 1000 + n)
        meter.record_error(f"model-{model}", "1.0.0", "trap")
    return meter


def test_telemetry_adds_up_and_each_call_is_counted_once() -> None:
    """The status may look at the counters at any time without taking anything from the telemetry."""
    meter = usage_meter(1, 10)
    telemetry = Telemetry(meter, session=4, now_ms=1_000)
    assert {"model-0": 10} == telemetry.answered()
    meter.record("model-0", "1.0.0", 7)
    assert {"model-0": 11} == telemetry.answered()
    (record,) = telemetry.take(61_000)
    (usage,) = record.models
    assert (11, 11, {"trap": 1}, 1009) == (usage.inferences, usage.latency.count, usage.errors, usage.memory_peak_bytes)
    assert (4, 1_000, 61_000) == (record.session, record.from_ms, record.to_ms)
    (empty,) = telemetry.take(62_000)
    assert ((), 61_000) == (empty.models, empty.from_ms)
    assert {"model-0": 11} == telemetry.answered()


def test_interval_of_many_models_is_parted_into_messages_that_fit(sender: Sender) -> None:
    """However many buckets the sketches have, each record fits a signed message, and nothing is lost."""
    telemetry = Telemetry(usage_meter(64, 1_000), session=1, now_ms=0)
    records = telemetry.take(1)
    assert len(records) > 1
    for record in records:
        sender.store.add_telemetry(record)
    while sender.store.backlog().telemetry:
        sender.sent.clear()
        sender.reports.restart(0)
        batches = [open_telemetry(raw, DEVICE, KEY.public_key()) for _, raw in sender.sent]
        sender.store.acknowledge(
            Ack(device_id=DEVICE, stream=sender.store.stream, telemetry=batches[-1].records[-1].seq)
        )
        total = LatencySketch()
        for batch in batches:
            for usage in (usage for record in batch.records for usage in record.models):
                total.merge(usage.latency)
    assert 64_000 == total.count


def test_device_usage_comes_from_proc(tmp_path: Path) -> None:
    """What /proc says ends up in the record, in the units of the protocol."""
    (tmp_path / "self").mkdir()
    (tmp_path / "stat").write_text("cpu  100 0 100 800 0 0 0 0 0 0\n")
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\n")
    (tmp_path / "self/statm").write_text("100 10 5 1 0 50 0\n")
    (tmp_path / "uptime").write_text("123.45 400.0\n")
    telemetry = Telemetry(UsageMeter(), session=1, now_ms=0, proc=tmp_path)
    (tmp_path / "stat").write_text("cpu  150 0 150 900 0 0 0 0 0 0\n")
    device = telemetry.take(1)[0].device
    assert (500, 600 * 1024, 1000 * 1024, 123) == (
        device.cpu_permille,
        device.memory_used_bytes,
        device.memory_total_bytes,
        device.uptime_s,
    )
    assert 0 < device.agent_memory_bytes
