"""The link outlives what a broken or hostile broker sends."""

import contextlib
import queue
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.mqtt import Endpoint, Link, LinkDown, LinkEvent, LinkUp, Message

TIMEOUT_S = 20.0
_CONNACK = b"\x20\x02\x00\x00"
_GOOD = b"\x30\x06\x00\x01ayes"
_TOPIC_NOT_UTF8 = b"\x30\x05\x00\x02\xff\xfeX"
_BAD = b"\x30\x06\x00\x01abad"
_SUBSCRIPTION_REFUSED = b"\x90\x03\x00\x01\x80"


class _Broker:
    """Accepts every connection, and sends the first one `bad` before `_GOOD`."""

    def __init__(self, bad: bytes) -> None:
        self._bad = bad
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.accepted: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(TIMEOUT_S)
        for connection in self.accepted:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted.append(connection)
            connection.recv(4096)
            bad = self._bad if len(self.accepted) == 1 else b""
            connection.sendall(_CONNACK + bad + _GOOD)


@pytest.fixture
def events() -> queue.Queue[LinkEvent]:
    """What the link says."""
    return queue.Queue()


@contextlib.contextmanager
def linked(folder: Path, bad: bytes, post: Callable[[LinkEvent], None]) -> Iterator[Link]:
    broker = _Broker(bad)
    endpoint = Endpoint(url=f"mqtt://127.0.0.1:{broker.port}", client_id="d", identity_folder=folder, protocol="3.1.1")
    link = Link(endpoint, lambda: ("will", b""), post, random.Random(1))
    link.subscribe({"a": 10})
    link.start()
    try:
        yield link
    finally:
        link.close(timeout_s=1.0)
        broker.close()


def test_link_comes_back_when_the_network_thread_dies(tmp_path: Path, events: queue.Queue[LinkEvent]) -> None:
    """An exception on the network thread costs one connection, not the device."""

    def post(event: LinkEvent) -> None:
        if event == Message(topic="a", payload=b"bad"):
            raise RuntimeError("a defect")
        events.put(event)

    with linked(tmp_path, _BAD, post) as link:
        assert LinkUp() == events.get(timeout=TIMEOUT_S)
        assert isinstance(events.get(timeout=TIMEOUT_S), LinkDown)
        assert LinkUp() == events.get(timeout=TIMEOUT_S)
        assert Message(topic="a", payload=b"yes") == events.get(timeout=TIMEOUT_S)
        assert link.is_connected


def test_message_whose_topic_is_no_text_is_dropped(tmp_path: Path, events: queue.Queue[LinkEvent]) -> None:
    """The connection stands, and the next message is heard."""
    with linked(tmp_path, _TOPIC_NOT_UTF8, events.put) as link:
        assert LinkUp() == events.get(timeout=TIMEOUT_S)
        assert Message(topic="a", payload=b"yes") == events.get(timeout=TIMEOUT_S)
        assert link.is_connected


def test_refused_subscription_is_told_once(
    tmp_path: Path, events: queue.Queue[LinkEvent], caplog: pytest.LogCaptureFixture
) -> None:
    """An operator finds in the log why nothing comes, and is not flooded with it."""
    with linked(tmp_path, 2 * _SUBSCRIPTION_REFUSED, events.put):
        assert LinkUp() == events.get(timeout=TIMEOUT_S)
        assert Message(topic="a", payload=b"yes") == events.get(timeout=TIMEOUT_S)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("the broker refused a subscription: ")
