"""Every broker and every version of MQTT that we promise to work with, and a plain client to try them.

The brokers run as they do under `fleetctl up`, one of each kind for a whole test run; every test has topics of its
own. `embedded` needs only Python packages, `mosquitto` is skipped where it is not installed.
"""

import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from controller.broker import BrokerProcess, start_broker
from controller.delivery.mqtt import LinkSettings, MqttLink

Version = Literal["3.1.1", "5"]
DEADLINE_S = 20.0
KINDS = [pytest.param("mosquitto", marks=pytest.mark.needs("mosquitto")), "embedded"]


class Received(NamedTuple):
    """One message as a client got it."""

    topic: str
    payload: bytes
    retained: bool


class Peer:
    """A plain MQTT client: what a device written by somebody else would be."""

    def __init__(
        self,
        url: str,
        version: Version,
        *,
        client_id: str | None = None,
        is_lasting: bool = False,
        will: tuple[str, bytes] | None = None,
    ) -> None:
        self.messages: queue.SimpleQueue[Received] = queue.SimpleQueue()
        self.is_session_present: bool | None = None
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._ended = threading.Event()
        is_5 = version == "5"
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or f"peer-{secrets.token_hex(6)}",
            clean_session=None if is_5 else not is_lasting,
            protocol=MQTTProtocolVersion.MQTTv5 if is_5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = lambda *_: self._ended.set()
        self._client.on_message = lambda _c, _d, m: self.messages.put(Received(m.topic, bytes(m.payload), m.retain))
        self._client.on_subscribe = lambda _c, _d, _m, codes, _p: self._answers.put(
            not any(c.is_failure for c in codes)
        )
        self._client.on_unsubscribe = lambda *_: self._answers.put(True)
        self._client.on_publish = lambda _c, _d, _m, code, _p: self._answers.put(not code.is_failure)
        if will:
            self._client.will_set(*will, qos=1, retain=True)
        options: dict[str, Any] = {}
        if is_5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 3_600 if is_lasting else 0
            options = {"clean_start": not is_lasting, "properties": properties}
        host, _, port = url.removeprefix("mqtt://").rpartition(":")
        self._client.connect(host, int(port), 30, **options)
        opened = self._client.socket()
        assert isinstance(opened, socket.socket)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client.loop_start()
        assert self._answers.get(timeout=DEADLINE_S)

    def _on_connect(self, _client: object, _data: object, flags: Any, code: Any, _properties: object) -> None:
        self.is_session_present = flags.session_present
        self._answers.put(not code.is_failure)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> None:
        """Publish, and wait until the broker has it."""
        self._client.publish(topic, payload, qos, retain)
        assert self._answers.get(timeout=DEADLINE_S)

    def subscribe(self, *topics: str) -> None:
        """Subscribe to all topics in one packet."""
        self._client.subscribe([(topic, 1) for topic in topics])
        assert self._answers.get(timeout=DEADLINE_S)

    def unsubscribe(self, *topics: str) -> None:
        """Unsubscribe from all topics in one packet."""
        self._client.unsubscribe(list(topics))
        assert self._answers.get(timeout=DEADLINE_S)

    def receive(self, count: int = 1) -> list[Received]:
        """Return the next messages."""
        return [self.messages.get(timeout=DEADLINE_S) for _ in range(count)]

    def drop(self) -> None:
        """Lose the connection without a word, as when the power goes."""
        opened = self._client.socket()
        if isinstance(opened, socket.socket):
            opened.shutdown(socket.SHUT_RDWR)
        self._finish()

    def close(self) -> None:
        """Leave politely."""
        self._client.disconnect()
        self._finish()

    def _finish(self) -> None:
        assert self._ended.wait(DEADLINE_S)
        self._client.loop_stop()
        # paho closes the pair of sockets that wakes its thread only when it is collected.
        self._client._reset_sockets()


class Recorder:
    """What a controller's link told its owner."""

    def __init__(self) -> None:
        self.messages: queue.SimpleQueue[Received] = queue.SimpleQueue()
        self.events: list[str] = []
        self._changed = threading.Condition()

    def on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        """Keep a message."""
        self.messages.put(Received(topic, payload, retained))

    def note(self, event: str) -> None:
        """Keep an event."""
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, *events: str) -> None:
        """Wait until exactly these events have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.events) >= len(events), DEADLINE_S), self.events
            assert list(events) == self.events

    def receive(self, count: int = 1) -> list[Received]:
        """Return the next messages."""
        return [self.messages.get(timeout=DEADLINE_S) for _ in range(count)]


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    """Wait for a condition; fail when it does not come."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:.0f} s for: {what}"
        time.sleep(0.005)


class Brokers:
    """The brokers of one test run."""

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._folder = folder
        self._running: dict[str, BrokerProcess] = {}

    def get(self, kind: str) -> BrokerProcess:
        """Return the shared broker of a kind."""
        if kind not in self._running:
            self._running[kind] = self.start(kind)
        return self._running[kind]

    def start(self, kind: Any, port: int = 0, directory: Path | None = None) -> BrokerProcess:
        """Start a broker for one test."""
        return start_broker(kind, port=port, directory=directory or self._folder())

    def stop(self) -> None:
        """Stop the shared brokers."""
        for broker in self._running.values():
            broker.stop()


@pytest.fixture(scope="session")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """The brokers of this test run, stopped at its end."""
    brokers = Brokers(lambda: tmp_path_factory.mktemp("broker"))
    yield brokers
    brokers.stop()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which broker."""
    return request.param


@pytest.fixture(params=["3.1.1", "5"])
def version(request: pytest.FixtureRequest) -> Version:
    """Which version of MQTT."""
    return request.param


@pytest.fixture
def url(kind: str, version: Version, brokers: Brokers) -> str:
    """Where the shared broker speaks this version."""
    return brokers.get(kind).url_for(version)


@pytest.fixture
def prefix() -> str:
    """Topics that no other test uses."""
    return f"test-{os.getpid()}-{secrets.token_hex(4)}"


@pytest.fixture
def connect(url: str, version: Version) -> Iterator[Callable[..., Peer]]:
    """Makes plain clients, and closes them."""
    peers: list[Peer] = []

    def connect(**options: Any) -> Peer:
        peers.append(Peer(url, version, **options))
        return peers[-1]

    yield connect
    for peer in peers:
        peer.close()


@pytest.fixture
def make_link(version: Version) -> Iterator[Callable[..., tuple[MqttLink, Recorder]]]:
    """Makes controller links, and closes them."""
    links: list[MqttLink] = []

    def make(url: str, *, client_id: str | None = None, **options: Any) -> tuple[MqttLink, Recorder]:
        recorder = Recorder()
        settings = LinkSettings(**{"ack_timeout_s": 10.0, **options.pop("settings", {})})
        callbacks = {
            "on_message": recorder.on_message,
            "on_up": lambda: recorder.note("up"),
            "on_down": lambda: recorder.note("down"),
        }
        link = MqttLink(
            url,
            client_id or f"controller-{secrets.token_hex(6)}",
            settings=settings,
            **{"version": version, **callbacks, **options},
        )
        links.append(link)
        return link, recorder

    yield make
    for link in links:
        link.close()


@pytest.fixture
def link(url: str, make_link: Callable[..., tuple[MqttLink, Recorder]]) -> tuple[MqttLink, Recorder]:
    """A controller link that is up."""
    link, recorder = make_link(url)
    link.start()
    recorder.wait_for("up")
    return link, recorder
