"""Acks: only what the director signed for this device and this memory makes it forget a report."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.acks import Acks
from agent.engine import State
from agent.engine.actions import EmitReceipt
from agent.identity import load_identity
from agent.reports import Reports
from agent.store import Store
from agent.trust import Trust
from controller.trust.keys import generate_signer
from protocol.messages import Ack, open_receipts, seal_ack
from tests.agent.signing import DEVICE, Signing


class Desk:
    """A device with three receipts that the controller has not acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.signing = Signing()
        self.signing.enroll(folder, "mqtt://127.0.0.1:1")
        self.store = Store(folder / "agent.db")
        self.trust = Trust(load_identity(folder), folder / "tuf", self.store)
        self.sent: list[bytes] = []
        reports = Reports(self.store, DEVICE, self.signing.device_key, lambda _, raw: self.sent.append(raw) is None)
        self.acks = Acks(self.trust.open_ack, self.store, reports)
        emits = [EmitReceipt(model="m", deployment_id="d", version="1.0.0", state="retrieved")] * 3
        self.store.save(State(), State(), emits, at_ms=0, session=1)

    def ack(self, receipts: int = 3, *, device: str = DEVICE, stream: str = "") -> Ack:
        return Ack(device_id=device, stream=stream or self.store.stream, receipts=receipts)

    def kept(self) -> list[int]:
        return [receipt.seq for receipt in self.store.receipts(after=0, limit=10)]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A device that is enrolled, without a connection."""
    desk = Desk(tmp_path)
    yield desk
    desk.store.close()


def _old_key(desk: Desk) -> bytes:
    """Signed by a key that a newer root, which the device knows, has replaced."""
    raw = desk.signing.acknowledge(desk.ack())
    desk.signing.rotate_director()
    desk.trust.judge("metadata", desk.signing.metadata, int(desk.signing.now.timestamp() * 1000))
    return raw


BAD: dict[str, tuple[Callable[[Desk], bytes], str]] = {
    "unsigned, as agents of before took it": (lambda desk: desk.ack().to_bytes(), "malformed"),
    "another signer": (lambda desk: seal_ack(desk.ack(), generate_signer()), "bad_signature"),
    "the timestamp's key": (lambda desk: seal_ack(desk.ack(), desk.signing.timestamp_key), "bad_signature"),
    "a replaced key": (_old_key, "bad_signature"),
    "another device": (lambda desk: desk.signing.acknowledge(desk.ack(device="line-4-press")), "wrong_device"),
    "another memory": (lambda desk: desk.signing.acknowledge(desk.ack(stream="lost")), "another_memory"),
    "numbers never given": (lambda desk: desk.signing.acknowledge(desk.ack(4)), "another_memory"),
    "tampered": (
        lambda desk: desk.signing.acknowledge(desk.ack(1)).replace(b'"payload":"ey', b'"payload":"eY'),
        "bad_signature",
    ),
    "rubbish": (lambda _: b"\xff\0", "malformed"),
    "too large": (lambda _: b"x" * 2_000, "limit_exceeded"),
}


@pytest.mark.parametrize("name", BAD)
def test_ack_that_must_not_be_obeyed_is_counted_and_forgets_nothing(desk: Desk, name: str) -> None:
    """Each kind of attack: every report stays, and the status names the reason."""
    make, code = BAD[name]
    assert not desk.acks.receive(make(desk), 0)
    assert [1, 2, 3] == desk.kept()
    assert {code: 1} == desk.acks.ignored


def test_signed_ack_is_obeyed_and_the_rest_is_sent(desk: Desk) -> None:
    """What the controller stored is forgotten, nothing else."""
    assert desk.acks.receive(desk.signing.acknowledge(desk.ack(2)), 0)
    assert [3] == desk.kept()
    batch = open_receipts(desk.sent[-1], DEVICE, desk.signing.device_key.public_key())
    assert [3] == [receipt.seq for receipt in batch.receipts]
    assert {} == desk.acks.ignored


def test_repeated_old_ack_winds_nothing_back(desk: Desk) -> None:
    """A broker that gives back an older genuine ack changes neither what is kept nor what counts as told."""
    old, new = (desk.signing.acknowledge(desk.ack(n)) for n in (1, 3))
    assert desk.acks.receive(new, 0)
    desk.acks.receive(old, 0)
    assert ([], 3) == (desk.kept(), desk.store.acknowledged("receipts"))


def test_deleted_retained_ack_says_nothing(desk: Desk) -> None:
    """An empty payload is the broker's way to say that there is none."""
    assert not desk.acks.receive(b"", 0)
    assert {} == desk.acks.ignored


def test_flood_of_bad_acks_does_not_flood_the_log(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """The first, the second, the fourth, the eighth: each count is in the line."""
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            desk.acks.receive(b"{}", 0)
    assert {"malformed": 100} == desk.acks.ignored
    assert 7 == sum("ack ignored" in record.message for record in caplog.records)
