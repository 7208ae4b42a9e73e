"""The device's link, on every broker: the same promises as the plain client, through the agent's own adapter."""

import os
import queue
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.mqtt import MAX_INFLIGHT, Endpoint, Link, LinkEvent, LinkUp, Message, Oversize
from tests.contracts.conftest import DEADLINE_S, wait_until

KIB = 1024


class Device:
    """An agent's link and what it told its daemon."""

    def __init__(self, url: str, version: Any, prefix: str) -> None:
        self.events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        endpoint = Endpoint(
            url=url, client_id=f"device-{prefix}", identity_folder=Path("/nonexistent"), protocol=version
        )
        self.link = Link(endpoint, lambda: (f"{prefix}/liveness", b"death"), self.events.put, random.Random(7))

    def next(self, kind: type[LinkEvent]) -> Any:
        """Return the next event, which must be of this kind."""
        event = self.events.get(timeout=DEADLINE_S)
        assert isinstance(event, kind), event
        return event


@pytest.fixture
def make_device(version, prefix) -> Iterator[Callable[..., Device]]:
    """Makes devices, and closes their links."""
    devices: list[Device] = []

    def make(url: str, protocol: str = version) -> Device:
        devices.append(Device(url, protocol, prefix))
        return devices[-1]

    yield make
    for device in devices:
        device.link.close()


@pytest.fixture
def device(url, make_device) -> Device:
    """A device that is connected."""
    device = make_device(url)
    device.link.start()
    device.next(LinkUp)
    return device


def test_it_hears_what_is_retained_for_it(device, connect, prefix):
    """Subscribing delivers the retained documents, each within its own limit."""
    sender = connect()
    sender.publish(f"{prefix}/down/director", b"signed", retain=True)
    sender.publish(f"{prefix}/tuf/metadata", b"x" * 101, retain=True)
    device.link.subscribe({f"{prefix}/down/director": 64 * KIB})
    assert Message(topic=f"{prefix}/down/director", payload=b"signed") == device.next(Message)
    device.link.subscribe({f"{prefix}/tuf/metadata": 100})
    assert Oversize(topic=f"{prefix}/tuf/metadata", size_bytes=101, limit_bytes=100) == device.next(Oversize)


def test_what_it_unsubscribes_from_is_heard_no_more(device, connect, prefix):
    """Of two topics only the one that is left is heard, also after everything is subscribed again."""
    device.link.subscribe({f"{prefix}/in": 10, f"{prefix}/other": 10})
    device.link.unsubscribe({f"{prefix}/other"})
    device.link.resubscribe()
    sender = connect()
    for topic in ("other", "in"):
        sender.publish(f"{prefix}/{topic}", b"reading", retain=True)
    assert Message(topic=f"{prefix}/in", payload=b"reading") == device.next(Message)


def test_a_window_fetches_a_blob(device, connect, prefix):
    """60 chunks of 64 KiB come through a window of eight exact topics."""
    chunks = [os.urandom(64 * KIB) for _ in range(60)]
    sender = connect()
    for number, chunk in enumerate(chunks):
        sender.publish(f"{prefix}/blob/{number}", chunk, retain=True)
    taken: dict[int, bytes] = {}
    while len(taken) < len(chunks):
        window = [number for number in range(len(chunks)) if number not in taken][:8]
        device.link.listen({f"{prefix}/blob/{number}": 64 * KIB for number in window})
        message = device.next(Message)
        taken[int(message.topic.rpartition("/")[2])] = message.payload
    assert chunks == [taken[number] for number in range(len(chunks))]


def test_what_it_publishes_arrives(device, connect, prefix):
    """A birth is retained, a report is delivered."""
    controller = connect()
    controller.subscribe(f"{prefix}/+")
    assert device.link.publish(f"{prefix}/receipts", b"report")
    assert [b"report"] == [m.payload for m in controller.receive()]


def test_it_comes_back_with_the_broker(kind, version, brokers, make_device, prefix):
    """After the broker was killed and came back, the device is told, subscribes again, and goes on."""
    topic, directory = f"{prefix}/down/director", brokers._folder()
    with brokers.start(kind, 0, directory) as broker:
        port = int(broker.url.rpartition(":")[2])
        # The embedded broker's other port changes with a restart: a device that prefers 5 falls back to 3.1.1 there.
        device = make_device(broker.url, "auto" if version == "5" else version)
        device.link.start()
        wait_until(lambda: device.link.is_connected, "a connection")
        device.link.subscribe({topic: 1_000})
        broker.kill()
        wait_until(lambda: not device.link.is_connected, "the loss to be noticed")
    with brokers.start(kind, port, directory):
        wait_until(lambda: device.link.is_connected, "a connection")
        device.link.resubscribe()
        assert device.link.publish(topic, b"again")
        events = [device.events.get(timeout=DEADLINE_S)]
        while not isinstance(events[-1], Message):
            events.append(device.events.get(timeout=DEADLINE_S))
        assert b"again" == events[-1].payload


def test_a_farewell_is_its_last_word(url, prefix, connect, make_device):
    """A device that is stopped says so itself; its will stays unsaid."""
    controller = connect()
    controller.subscribe(f"{prefix}/liveness")
    device = make_device(url)
    device.link.start()
    device.next(LinkUp)
    device.link.close((f"{prefix}/liveness", b"farewell"))
    controller.publish(f"{prefix}/liveness", b"end")
    assert [b"farewell", b"end"] == [m.payload for m in controller.receive(2)]


def test_auto_finds_a_version_that_the_broker_speaks(brokers, version, make_device):
    """Without a choice a device tries MQTT 5, then 3.1.1, whatever listens."""
    device = make_device(brokers.get("embedded").url_for(version), "auto")
    device.link.start()
    wait_until(lambda: device.link.is_connected, "a connection")


def test_what_is_published_in_turn_arrives_in_order(device, connect, prefix):
    """Far more than may be under way at a time comes through, in order, and none twice."""
    peer = connect()
    peer.subscribe(f"{prefix}/forecast")
    sent = [str(number).encode() for number in range(10 * MAX_INFLIGHT)]
    assert all(device.link.publish_in_turn(f"{prefix}/forecast", payload) for payload in sent)
    assert sent == [message.payload for message in peer.receive(len(sent))]


def test_who_waits_for_his_turn_is_freed_when_the_connection_ends(kind, version, brokers, make_device, prefix):
    """A broker that takes nothing holds the sender up; when it dies, the sender hears that there is no connection."""
    with brokers.start(kind) as broker:
        device = make_device(broker.url_for(version))
        device.link.start()
        device.next(LinkUp)
        sent: list[bool] = []
        payloads = [b"reading"] * (MAX_INFLIGHT + 1)
        sending = threading.Thread(
            target=lambda: sent.extend(device.link.publish_in_turn(f"{prefix}/forecast", p) for p in payloads)
        )
        with broker.hung():
            sending.start()
            wait_until(lambda: len(sent) == MAX_INFLIGHT, "as much as may be under way")
            sending.join(0.1)
            assert MAX_INFLIGHT == len(sent)
            broker.kill()
        sending.join(DEADLINE_S)
    assert [True] * MAX_INFLIGHT + [False] == sent
