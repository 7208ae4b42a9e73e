"""Brings the broker what the database says it must have.

The outbox forgets a row only after the broker has taken its message. So a killed service goes on where it was, a
broker that was down gets everything when it is back, and publishing something twice is the worst that can happen.
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import chain

from controller.core import Core
from controller.delivery.assigning import assign, mark_due
from controller.delivery.broadcast import Broadcast
from controller.delivery.link import Outgoing
from controller.delivery.memory import BrokerMemory, republish_everything
from controller.delivery.metadata import renew_when_due
from controller.delivery.outlet import Outlet
from controller.delivery.recovery import learn_from_broker
from controller.delivery.wants import Wants
from controller.errors import BrokerError, UnreadableError
from controller.store import outbox
from controller.store.models import FileRow
from controller.store.outbox import Item, Kind
from protocol.topics import Topics

log = logging.getLogger(__name__)

BATCH = 200
MARKER_TIMEOUT_S = 30.0
RETRY_S = 2.0
REFUSED_PAUSE = timedelta(minutes=1)
RENEW_EVERY = timedelta(minutes=1)


class Publisher:
    """One thread that signs, publishes, renews, and answers wants."""

    def __init__(self, core: Core, topics: Topics, link: Outlet, wants: Wants) -> None:
        self._core = core
        self._topics = topics
        self._link = link
        self._wants = wants
        self._broadcast = Broadcast(core, topics)
        self.memory = BrokerMemory(core, topics, link)
        self._wake = threading.Event()
        self._is_closing = False
        self._is_memory_unknown = True
        self._refused: dict[tuple[Kind, str], datetime] = {}
        """What the broker refused although it is there, or the disk does not give, and when it is tried again."""
        self._renewed_at = core.now() - RENEW_EVERY
        self._thread = threading.Thread(target=self._run, name="publisher")

    def start(self) -> None:
        """Begin to publish."""
        self._wake.set()
        self._thread.start()

    def close(self) -> None:
        """Stop after the message at hand; what is left is published after the next start."""
        self._is_closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """Look at once whether there is something to do; from any thread."""
        self._wake.set()

    def on_up(self) -> None:
        """Take note that the broker is back: it may have forgotten."""
        self._is_memory_unknown = True
        self._refused.clear()
        self._wake.set()

    def _run(self) -> None:
        while not self._is_closing:
            try:
                self.run_once()
            except BrokerError as error:
                log.warning("the broker did not take a message", extra={"reason": str(error)})
                self._wake.clear()
                self._wake.wait(RETRY_S)
                self._wake.set()
            except Exception:  # what is published is hostile to nobody: one bug must not silence a fleet for ever
                log.exception("publishing failed")
                self._core.counters.add("publish.failed")
                self._wake.clear()
                self._wake.wait(RETRY_S)
                self._wake.set()

    def run_once(self) -> None:
        """Do what there is to do, then wait to be woken; raises BrokerError when the broker went away."""
        self._wake.wait(RENEW_EVERY.total_seconds())
        self._wake.clear()
        self.settle()

    def settle(self) -> None:
        """Sign, renew and publish until nothing is left, or the broker is away; raises BrokerError."""
        self._renew()
        while not self._is_closing and self._assign():
            pass
        if not self._link.is_connected:
            return
        if self._is_memory_unknown:
            self._is_memory_unknown = False
            self._check_memory()
        while not self._is_closing and (self._answer() or self._assign() or self._publish()):
            pass
        if self.memory.is_changing and not self._is_closing:
            self.memory.seal()

    def _renew(self) -> None:
        if timedelta(0) <= self._core.now() - self._renewed_at < RENEW_EVERY:
            return
        self._renewed_at = self._core.now()
        with self._core.store.write() as session:
            renew_when_due(session, self._core)
            mark_due(session, self._core.now_ms())

    def _check_memory(self) -> None:
        try:
            if self.memory.is_kept(MARKER_TIMEOUT_S):
                return
            learn_from_broker(self._core, self._topics, self.memory)
        except BrokerError:
            self._is_memory_unknown = True
            raise
        with self._core.store.write() as session:
            republish_everything(session)
        self.memory.expect_change()

    def _answer(self) -> bool:
        wanted = self._wants.take(BATCH)
        if not wanted:
            return False
        found = [list(self._broadcast.missing(missing)) for missing in wanted]
        self._core.counters.add("want.answered", sum(1 for messages in found if messages))
        self._core.counters.add("want.unknown", sum(1 for messages in found if not messages))
        self._link.publish_all(chain.from_iterable(found))
        return True

    def _assign(self) -> bool:
        with self._core.store.read() as session:
            items = outbox.take(session, "assign", BATCH)
        if not items:
            return False
        with self._core.store.write() as session:
            assign(session, self._core, [item.key for item in items])
            outbox.done(session, items)
        return True

    def _publish(self) -> bool:
        """Publish the next things of the first kind that has any; return whether there were."""
        for kind in outbox.KINDS:
            if kind == "assign":
                continue
            with self._core.store.read() as session:
                items = outbox.take(session, kind, BATCH + len(self._refused))
            items = [item for item in items if not self._is_postponed(item)][: 1 if kind == "file" else BATCH]
            if items:
                self._publish_all(kind, items)
                return True
        return False

    def _is_postponed(self, item: Item) -> bool:
        which = (item.kind, item.key)
        if which in self._refused and self._refused[which] <= self._core.now():
            del self._refused[which]
        return which in self._refused

    def _publish_all(self, kind: Kind, items: Sequence[Item]) -> None:
        """Publish `items`; what the broker refuses, or the disk does not give, waits, so that no other waits for it."""
        if kind != "ack":  # a lost acknowledgement mends itself: the device repeats its report
            self.memory.expect_change()
        try:
            self._publish_items(kind, items)
        except BrokerError as error:
            if not self._link.is_connected:
                raise
            if len(items) > 1:
                for item in items:
                    self._publish_all(kind, [item])
                return
            self._core.counters.add("publish.refused")
            log.error("the broker refuses a message", extra={"kind": kind, "key": items[0].key, "reason": str(error)})
            self._postpone(items)
        except UnreadableError:  # counted and logged where it happened
            self._postpone(items)

    def _postpone(self, items: Iterable[Item]) -> None:
        """Leave `items` in the outbox, and pass them over for a while."""
        for item in items:
            self._refused[item.kind, item.key] = self._core.now() + REFUSED_PAUSE

    def _publish_items(self, kind: Kind, items: Sequence[Item]) -> None:
        messages = self._broadcast.messages(kind, [item.key for item in items])
        self._link.publish_all(self._until_closing(messages))
        if self._is_closing:
            return
        with self._core.store.write() as session:
            if kind == "file":
                for item in items:
                    session.get_one(FileRow, item.key).published_at_ms = self._core.now_ms()
            outbox.done(session, items)

    def _until_closing(self, messages: Iterable[Outgoing]) -> Iterator[Outgoing]:
        for message in messages:
            if self._is_closing:
                return
            self._core.counters.add("publish.messages")
            yield message
