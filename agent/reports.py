"""Sending what the store has kept for the controller, in signed batches, until the controller says it has it.

The broker's own acknowledgement proves nothing: a batch counts as delivered when the retained Ack covers it. What
stays unanswered is sent again, ever more patiently, and at every new connection.
"""

import math
from collections.abc import Callable
from typing import Final, Literal, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent import faults
from agent.store import Store
from protocol import limits
from protocol.identifiers import DeviceId
from protocol.messages import Ack, Receipt, ReceiptBatch, TelemetryBatch, TelemetryRecord, seal_batch

MAX_OPEN_BATCHES: Final = 8
GATHER_MS: Final = 200
"""What comes within this time of the last batch goes into one: each batch is signed, and each ack is stored."""
FIRST_PATIENCE_MS: Final = 30_000
MAX_PATIENCE_MS: Final = 600_000

Outbox = Literal["receipts", "telemetry"]
Publish = Callable[[Outbox, bytes], bool]
T = TypeVar("T", Receipt, TelemetryRecord)


class _Open(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that was sent and that no ack has covered yet."""

    outbox: Outbox
    last_seq: int
    sent_ms: int

    def is_covered(self, ack: Ack) -> bool:
        return self.last_seq <= (ack.receipts if self.outbox == "receipts" else ack.telemetry)


class Reports:
    """What has been sent over the present connection, and when to send again."""

    def __init__(self, store: Store, device: DeviceId, key: Ed25519PrivateKey, publish: Publish) -> None:
        self._store = store
        self._device = device
        self._key = key
        self._publish = publish
        self._sent = self._acknowledged()
        self._open: list[_Open] = []  # oldest first
        self._patience_ms = FIRST_PATIENCE_MS
        self._sent_ms = -math.inf
        self.due_ms = math.inf
        """When to look again whether there is something to send."""

    def restart(self, now_ms: int) -> None:
        """A new connection: send everything again that was not acknowledged."""
        self._sent = self._acknowledged()
        self._open = []
        self.flush(now_ms)

    def acknowledged(self, ack: Ack, now_ms: int) -> None:
        """The controller answered: go on. What `ack` does not cover stays open, and is sent again in its time."""
        if self._open and self._open[0].is_covered(ack):
            self._patience_ms = FIRST_PATIENCE_MS
        self._open = [batch for batch in self._open if not batch.is_covered(ack)]
        self.flush_soon(now_ms)

    def tick(self, now_ms: int) -> None:
        """Send what has been gathered, and again what stayed unanswered for too long."""
        if now_ms >= self.due_ms:
            self.flush(now_ms)
        if self._open and now_ms - self._open[0].sent_ms >= self._patience_ms:
            self._patience_ms = min(self._patience_ms * 2, MAX_PATIENCE_MS)
            self.restart(now_ms)

    def flush_soon(self, now_ms: int) -> None:
        """Send what is new: at once if nothing was sent for a while, else with what comes until then."""
        if now_ms >= self._sent_ms + GATHER_MS:
            self.flush(now_ms)
        else:
            self.due_ms = self._sent_ms + GATHER_MS

    def flush(self, now_ms: int) -> None:
        """Send what is new, receipts first."""
        self.due_ms = math.inf
        while len(self._open) < MAX_OPEN_BATCHES and (self._send_receipts(now_ms) or self._send_telemetry(now_ms)):
            pass

    def _acknowledged(self) -> dict[Outbox, int]:
        return {
            "receipts": self._store.acknowledged("receipts"),
            "telemetry": self._store.acknowledged("telemetry"),
        }

    def _send_receipts(self, now_ms: int) -> bool:
        found = self._store.receipts(after=self._sent["receipts"], limit=limits.MAX_RECEIPTS_PER_BATCH)
        faults.reach("receipts.before_publish")
        is_sent = self._send("receipts", found, self._seal_receipts, now_ms)
        faults.reach("receipts.after_publish")
        return is_sent

    def _send_telemetry(self, now_ms: int) -> bool:
        found = self._store.telemetry(after=self._sent["telemetry"], limit=limits.MAX_RECEIPTS_PER_BATCH)
        return self._send("telemetry", found, self._seal_telemetry, now_ms)

    def _send(self, outbox: Outbox, found: tuple[T, ...], seal: Callable[[tuple[T, ...]], bytes], now_ms: int) -> bool:
        if not found:
            return False
        while len(raw := seal(found)) > limits.MAX_REPORT_BYTES and len(found) > 1:
            found = found[: len(found) // 2]
        if not self._publish(outbox, raw):
            return False
        self._sent_ms = now_ms
        self._sent[outbox] = found[-1].seq
        self._open.append(_Open(outbox=outbox, last_seq=found[-1].seq, sent_ms=now_ms))
        return True

    def _seal_receipts(self, receipts: tuple[Receipt, ...]) -> bytes:
        after = self._sent["receipts"]  # numbers between this one and the first were dropped
        batch = ReceiptBatch(
            device_id=self._device,
            stream=self._store.stream,
            after=after,
            acknowledged=self._store.acknowledged("receipts"),
            receipts=receipts,
        )
        return seal_batch(batch, self._key)

    def _seal_telemetry(self, records: tuple[TelemetryRecord, ...]) -> bytes:
        after = self._sent["telemetry"]
        batch = TelemetryBatch(
            device_id=self._device,
            stream=self._store.stream,
            after=after,
            acknowledged=self._store.acknowledged("telemetry"),
            records=records,
        )
        return seal_batch(batch, self._key)
