"""A connection to the broker that is kept up for ever, and hands over what arrives in order.

Owns the threads, the reconnecting and the order of events; knows no MQTT library. A received message is confirmed to
the broker when `on_message` has returned, so that it comes again to a controller that was killed over it. Only when
very many wait are the oldest confirmed before their turn; a report is safe all the same, because a device keeps it
until the service acknowledges it.
"""

import logging
import queue
import random
import ssl
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, NamedTuple, Protocol

import msgspec

from controller.delivery.broker_address import BrokerAddress
from controller.delivery.confirmations import Confirmation, Confirmations
from controller.errors import BrokerError
from protocol import limits

log = logging.getLogger(__name__)

MqttVersion = Literal["3.1.1", "5"]
OnMessage = Callable[[str, bytes, bool], None]
"""Called with topic, payload, and whether the message was a retained one."""

_SUBSCRIBE_AT_ONCE = 100


class LinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of a link."""

    max_message_bytes: int = limits.MAX_REPORT_BYTES
    """A larger received message is dropped."""
    max_outstanding: int = 200
    """How many publishes may wait for the broker's confirmation; others wait for their turn."""
    max_unread: int = 10_000
    """How many received messages may wait for `on_message`; what comes then is dropped, and devices send it again."""
    max_unread_bytes: int = 64 * limits.MIB
    max_unconfirmed: int = 50
    """How many of them stay unconfirmed. Brokers send only so many (20 to 100) before they wait, and the embedded one
    then holds back its own confirmations as well: a handler that publishes would wait for ever."""
    ack_timeout_s: float = 30.0
    """When the broker confirms nothing for so long, the connection is given up."""
    connect_timeout_s: float = 10.0
    """When the broker does not answer a connection for so long, it is tried again."""
    keepalive_s: int = 30
    session_expiry_s: int = 86_400
    """How long the broker keeps messages for a controller that is away."""


class Outgoing(NamedTuple):
    """A message to publish."""

    topic: str
    payload: bytes
    retain: bool = False


class Incoming(NamedTuple):
    """A received message; `topic` is None when it is to be dropped."""

    number: int
    """Counts the messages of one connection."""
    topic: str | None
    payload: bytes
    retained: bool


class Connection(Protocol):
    """One connection, from CONNECT to its end, as a link needs it."""

    version: MqttVersion
    is_version_refused: bool
    ended: threading.Event
    confirmations: Confirmations

    def open(self) -> str:
        """Connect, and return an empty text when the broker has accepted, else why not."""

    def release(self) -> None:
        """Free what a connection that has ended still holds."""

    def leave(self) -> None:
        """End the connection politely, or else abruptly."""

    def abort(self, reason: str) -> None:
        """Cut the connection; may be called from any thread."""

    def publish(self, message: Outgoing) -> Confirmation:
        """Send a message when its turn comes, and return its confirmation to come; raises BrokerError."""

    def subscribe(self, topics: list[str]) -> Confirmation:
        """Ask for topics, and return the answer to come; raises BrokerError."""

    def unsubscribe(self, topic: str) -> Confirmation:
        """Give up a topic, and return the answer to come; raises BrokerError."""

    def confirm(self, number: int) -> None:
        """Tell the broker that this message, and all before it, are done with; unconfirmed ones come again."""


_DEFAULT_SETTINGS = LinkSettings()


class Link(ABC):
    """A connection to the broker that comes back by itself.

    `on_message`, `on_up` and `on_down` are called from one thread of the link, one at a time and in order; `on_up` when
    the subscriptions are in force. They may publish and subscribe. What they raise is logged, and the message counts as
    handled.
    """

    def __init__(  # noqa: PLR0913 - three callbacks, each with its own type, and options with defaults
        self,
        url: str,
        client_id: str,
        *,
        on_message: OnMessage,
        on_up: Callable[[], None] = lambda: None,
        on_down: Callable[[], None] = lambda: None,
        version: MqttVersion = "5",
        tls: ssl.SSLContext | None = None,
        settings: LinkSettings = _DEFAULT_SETTINGS,
    ) -> None:
        self.address = BrokerAddress.parse(url)
        self.client_id = client_id
        self.preferred_version = version
        self.tls = tls
        self.settings = settings
        self.dropped = 0
        """How many received messages were too large, had no valid topic, or found no room."""
        self._on_message = on_message
        self._on_up = on_up
        self._on_down = on_down
        self._topics: dict[str, None] = {}
        self._current: Connection | None = None
        self._trying: Connection | None = None
        self._lock = threading.Lock()
        self._unread_bytes = 0
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._stay_connected, name=f"{client_id}-connect", daemon=True),
            threading.Thread(target=self._handle_events, name=f"{client_id}-events", daemon=True),
        ]

    @abstractmethod
    def connection(self, version: MqttVersion) -> Connection:
        """Return a new connection, not yet open."""

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there now."""
        return self._current is not None

    @property
    def version(self) -> MqttVersion | None:
        """The version of MQTT in use, or None without a connection."""
        connection = self._current
        return connection.version if connection else None

    def start(self) -> None:
        """Begin to connect; a broker that is not there is tried again for ever."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Leave the broker; a second time does nothing. Messages not yet handled come again to the next link."""
        self._closing.set()
        self._events.put(None)
        if connection := self._trying:
            connection.leave()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join()

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Publish a message, and wait until the broker has it.

        Raises:
            BrokerError: there is no connection, it was lost first (the broker may have the message or not), or the
                broker refuses.
        """
        self.publish_all([Outgoing(topic, payload, retain)])

    def publish_all(self, messages: Iterable[Outgoing]) -> None:
        """Publish messages in order, many at a time, and wait until the broker has all of them; raises BrokerError."""
        connection = self._current
        if connection is None:
            raise BrokerError(
                f"no connection to the broker at {self.address}",
                hint="see whether the broker runs; the service connects again by itself",
            )
        waiting: deque[Confirmation] = deque()
        for message in messages:
            waiting.append(connection.publish(message))
            while waiting and waiting[0].done():
                connection.confirmations.wait_for(waiting.popleft())
        for confirmation in waiting:
            connection.confirmations.wait_for(confirmation)

    def subscribe(self, *topics: str) -> None:
        """Subscribe now and after every reconnect; without a connection it is done when there is one.

        Raises:
            BrokerError: the broker refuses, or the connection was lost; the subscriptions stay wanted.
        """
        with self._lock:
            self._topics |= dict.fromkeys(topics)
            connection = self._current
        if connection:
            for part in _parts(topics):
                connection.confirmations.wait_for(connection.subscribe(part))

    def unsubscribe(self, *topics: str) -> None:
        """Stop receiving what `subscribe` asked for; raises BrokerError."""
        with self._lock:
            # The embedded broker does not answer when it is asked to forget what it does not know.
            wanted = [topic for topic in topics if topic in self._topics]
            for topic in wanted:
                del self._topics[topic]
            connection = self._current
        if connection:
            for answer in [connection.unsubscribe(topic) for topic in wanted]:
                connection.confirmations.wait_for(answer)

    def went_up(self, connection: Connection) -> None:
        """Called by a connection, on its own thread, when the broker has accepted it."""
        with self._lock:
            self._current = connection
            topics = list(self._topics)
        subscribed = [connection.subscribe(part) for part in _parts(topics)]
        self._events.put(partial(self._tell_up, connection, subscribed))
        log.info("connected to %s with MQTT %s", self.address, connection.version)

    def went_down(self, connection: Connection, reason: str) -> None:
        """Called by a connection, on its own thread, when it has ended."""
        with self._lock:
            was_up = self._current is connection
            if was_up:
                self._current = None
        if was_up and not self._closing.is_set():
            self._events.put(partial(_guarded, "the loss of the broker", self._on_down))
            log.warning("lost the broker at %s: %s", self.address, reason)

    def received(self, connection: Connection, incoming: Incoming) -> None:
        """Called by a connection, on its own thread, for every message."""
        with self._lock:
            unread_bytes = self._unread_bytes + len(incoming.payload)
            has_room = (
                unread_bytes <= self.settings.max_unread_bytes and self._events.qsize() < self.settings.max_unread
            )
            if has_room:
                self._unread_bytes = unread_bytes
        if incoming.topic is None or not has_room:
            self.dropped += 1
        if has_room:
            self._events.put(partial(self._handle, connection, incoming))
        else:
            connection.confirm(incoming.number)

    def _stay_connected(self) -> None:
        failures = 0
        while not self._closing.is_set():
            failure = self._serve_once()
            if failure and not failures:
                log.warning("cannot reach the broker at %s: %s; trying again", self.address, failure)
            failures = failures + 1 if failure else 0
            self._closing.wait(backoff_s(failures, random.random()))  # noqa: S311 - spreads load, guards nothing

    def _serve_once(self) -> str:
        """Connect, and return when the connection has ended: an empty text, or why there was none.

        A broker that does not speak MQTT 5 is asked with 3.1.1 at once.
        """
        failure = ""
        versions: list[MqttVersion] = ["5", "3.1.1"] if self.preferred_version == "5" else ["3.1.1"]
        for version in versions:
            connection = self._trying = self.connection(version)
            try:
                failure = connection.open()
                if not failure and self._closing.is_set():
                    connection.leave()
                if not failure:
                    connection.ended.wait()
            finally:
                connection.release()
            if not connection.is_version_refused or self._closing.is_set():
                break
        return failure

    def _handle_events(self) -> None:
        while (event := self._events.get()) is not None and not self._closing.is_set():
            event()

    def _tell_up(self, connection: Connection, subscribed: list[Confirmation]) -> None:
        for confirmation in subscribed:
            _guarded("a subscription", partial(connection.confirmations.wait_for, confirmation))
        _guarded("the connection to the broker", self._on_up)

    def _handle(self, connection: Connection, incoming: Incoming) -> None:
        with self._lock:
            self._unread_bytes -= len(incoming.payload)
        if incoming.topic is not None:
            handle = partial(self._on_message, incoming.topic, incoming.payload, incoming.retained)
            _guarded(incoming.topic, handle)
        connection.confirm(incoming.number)


def _parts(topics: Sequence[str]) -> list[list[str]]:
    return [list(topics[at : at + _SUBSCRIBE_AT_ONCE]) for at in range(0, len(topics), _SUBSCRIBE_AT_ONCE)]


def _guarded(what: str, call: Callable[[], None]) -> None:
    try:
        call()
    except BrokerError as error:
        log.warning("while handling %s: %s", what, error)
    except Exception:  # whatever one message does, the next one must be handled
        log.exception("error while handling %s", what)


def backoff_s(failures: int, share: float) -> float:
    """Return how long to wait after so many failures in a row: doubling up to 30 s, `share` (0 to 1) of half random."""
    return float(min(30.0, 0.25 * 2 ** min(failures, 10)) * (0.5 + share / 2))
