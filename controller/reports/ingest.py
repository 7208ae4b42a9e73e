"""What devices say: checked, stored once, acknowledged.

Whatever arrives on an uplink is hostile until it is within its size, on a known device's topic and signed with that
device's key. What is not is counted and logged by its reason alone, and nothing else happens. A batch of messages is
one transaction; the acknowledgement goes out after it, because the device then forgets.
"""

import logging
import queue
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import select
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from controller.core import Core
from controller.reports.receive import Consequences, prefetch, receive_liveness, receive_receipts, receive_telemetry
from controller.store.models import DeviceRow
from protocol import limits
from protocol.errors import LimitExceededError, ProtocolError
from protocol.identifiers import DeviceId
from protocol.messages import Want, open_liveness, open_receipts, open_telemetry
from protocol.topics import Topics, Uplink

log = logging.getLogger(__name__)

QUEUE_MESSAGES = 1_000
BATCH_MESSAGES = 200
ATTEMPTS = 3
RETRY_S = 1.0
_LIMIT_BYTES: dict[Uplink, int] = {
    "liveness": limits.MAX_LIVENESS_BYTES,
    "receipts": limits.MAX_REPORT_BYTES,
    "telemetry": limits.MAX_REPORT_BYTES,
    "want": limits.MAX_WANT_BYTES,
}


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message within its size, on an uplink of some device."""

    device: DeviceId
    uplink: Uplink
    payload: bytes


class _Outcome:
    """What became of a batch; told when it is stored."""

    def __init__(self) -> None:
        self.then = Consequences()
        self.counts: Counter[str] = Counter()
        self.wants: list[tuple[DeviceId, Want]] = []
        self.refused: list[tuple[Message, ProtocolError]] = []
        self.strangers: list[DeviceId] = []


class Ingest:
    """Takes messages from the link's thread and stores them on its own."""

    def __init__(self, core: Core, topics: Topics, answer_want: Callable[[DeviceId, Want], None]) -> None:
        self._core = core
        self._topics = topics
        self._answer_want = answer_want
        self._queue: queue.Queue[Message | None] = queue.Queue(QUEUE_MESSAGES)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest")

    def start(self) -> None:
        """Begin to store what comes."""
        self._thread.start()

    def close(self) -> None:
        """Store what came, then stop."""
        self._closing.set()
        if self._thread.is_alive():
            self._queue.put(None)  # the thread empties the queue: there will be room
            self._thread.join()

    def offer(self, topic: str, payload: bytes) -> None:
        """Take one message, from the link's thread, which waits here while the disk is slower than the fleet."""
        try:
            device, uplink = self._topics.parse_up(topic)
            limit = _LIMIT_BYTES[uplink]
            if len(payload) > limit:
                raise LimitExceededError(f"expected at most {limit:,} bytes, got {len(payload):,}")
        except ProtocolError as error:
            self._refuse(topic, error)
            return
        if not payload:
            return  # a retained message was deleted
        message = Message(device=device, uplink=uplink, payload=payload)
        while not self._closing.is_set():
            try:
                self._queue.put(message, timeout=1.0)
            except queue.Full:
                continue
            return

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            is_last = False
            while len(batch) < BATCH_MESSAGES and not self._queue.empty():
                message = self._queue.get()
                if message is None:
                    is_last = True
                    break
                batch.append(message)
            self._store_or_drop(batch)
            if is_last:
                return

    def _store_or_drop(self, batch: Sequence[Message]) -> None:
        """Store `batch`, and outlive what nobody thought of: without this thread nothing is heard any more."""
        try:
            self.store(batch)
        except Exception as error:  # noqa: BLE001 - one bug must not make a fleet unheard: the rest is stored
            if len(batch) > 1:
                for message in batch:
                    self._store_or_drop([message])
                return
            # The error's words may quote the message: only its kind and its place are told.
            self._core.counters.add("ingest.broken")
            place = "".join(traceback.format_tb(error.__traceback__))
            told = {"device": batch[0].device, "uplink": batch[0].uplink, "reason": type(error).__name__}
            log.error("message dropped by a bug of the service", extra={**told, "place": place})

    def store(self, batch: Sequence[Message]) -> None:
        """Store `batch` in one transaction; try again when the disk is full or busy, then let the devices repeat it."""
        for attempt in range(ATTEMPTS):
            try:
                changed = self._store(batch)
            except SQLAlchemyError:
                self._core.counters.add("ingest.failed")
                log.exception("batch not stored", extra={"messages": len(batch), "attempt": attempt + 1})
                self._closing.wait(RETRY_S * (attempt + 1))
            else:
                self._core.changes.announce(changed)
                self._core.wake_publisher()
                return

    def _store(self, batch: Sequence[Message]) -> set[str]:
        """Store what is genuine; return the rollouts that changed.

        All of it is written at once, which takes a third of the time; when the database refuses something in it, each
        message is written for itself, so that none keeps those of other devices from being stored.
        """
        try:
            outcome = self._write(batch, is_single=False)
        except (IntegrityError, DataError):
            outcome = self._write(batch, is_single=True)
        for name, n in outcome.counts.items():
            self._core.counters.add(f"ingest.{name}", n)
        for device, want in outcome.wants:
            self._answer_want(device, want)
        for message, error in outcome.refused:
            self._refuse(self._topics.up(message.device, message.uplink), error)
        for device in outcome.strangers:
            if n := self._core.counters.add_noteworthy("ingest.unknown_device"):
                log.warning("message of an unknown device", extra={"device": device, "so_far": n})
        return outcome.then.rollouts

    def _write(self, batch: Sequence[Message], *, is_single: bool) -> "_Outcome":
        """Write `batch` in one transaction."""
        outcome = _Outcome()
        with self._core.store.write() as session:
            senders = {message.device for message in batch}
            rows = {row.id: row for row in session.scalars(select(DeviceRow).where(DeviceRow.id.in_(senders)))}
            kept = prefetch(session, list(rows))
            for message in batch:
                row = rows.get(message.device)
                if row is None:
                    outcome.strangers.append(message.device)
                    continue
                try:
                    with session.begin_nested() if is_single else session.no_autoflush:
                        found, counted, n = self._take(session, row, message, outcome.wants)
                    outcome.then.add(found)
                    outcome.counts[counted] += n
                except ProtocolError as error:
                    outcome.refused.append((message, error))
                except (IntegrityError, DataError):
                    if not is_single:
                        raise
                    outcome.counts["unstorable"] += 1
                    log.exception("message not stored", extra={"device": message.device, "uplink": message.uplink})
            outcome.then.settle(session, self._core.now_ms())
            del kept  # until here the session found these rows without asking the database
        return outcome

    def _take(
        self, session: Session, row: DeviceRow, message: Message, wants: list[tuple[DeviceId, Want]]
    ) -> tuple[Consequences, str, int]:
        """Store one message; return what follows, and how many of what it brought.

        Raises ProtocolError when it is not genuine, before anything was changed.
        """
        device, payload, at_ms = message.device, message.payload, self._core.now_ms()
        key = Ed25519PublicKey.from_public_bytes(row.public_key)
        then = Consequences()
        match message.uplink:
            case "want":
                wants.append((device, Want.from_bytes(payload)))
                counted, n = "want", 1
            case "liveness":
                is_news = receive_liveness(session, row, open_liveness(payload, device, key), then, at_ms)
                counted, n = "liveness" if is_news else "stale_liveness", 1
            case "telemetry":
                counted = "telemetry"
                n = receive_telemetry(session, row, open_telemetry(payload, device, key), then, at_ms)
            case "receipts":
                counted = "receipts"
                n = receive_receipts(session, row, open_receipts(payload, device, key), then, at_ms)
        return then, counted, n

    def _refuse(self, topic: str, error: ProtocolError) -> None:
        # The topic may be the attacker's own words: it is cut, and the payload never shown.
        if n := self._core.counters.add_noteworthy(f"ingest.{error.code}"):
            log.warning("message refused", extra={"topic": topic[:200], "reason": error.code, "so_far": n})
