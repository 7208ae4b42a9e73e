"""The controller's link, on every broker: it stays up, confirms what was handled, and drops what is too large."""

import itertools
import queue
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from controller.broker import BrokerProcess
from controller.delivery.mqtt import Outgoing
from controller.errors import BrokerError
from tests.contracts.conftest import DEADLINE_S, Received, wait_until


def port_of(broker: BrokerProcess) -> int:
    """Return the port of a broker's first listener."""
    return int(broker.url.rpartition(":")[2])


def test_it_speaks_the_version_it_was_asked_for(link, version):
    """MQTT 5 where 5 was asked for, else 3.1.1."""
    assert version == link[0].version
    assert link[0].is_connected


def test_mqtt_5_falls_back(brokers, make_link):
    """A broker that speaks 3.1.1 alone is found out at once."""
    broker = brokers.get("embedded")
    link, recorder = make_link(broker.url_for("3.1.1"), version="5")
    link.start()
    recorder.wait_for("up")
    assert "3.1.1" == link.version


def test_what_it_publishes_is_at_the_broker(link, connect, prefix):
    """When publish returns, the broker has the message, and keeps it when it is retained."""
    link[0].publish(f"{prefix}/a", b"kept", retain=True)
    link[0].publish(f"{prefix}/a", b"passing")
    peer = connect()
    peer.subscribe(f"{prefix}/a")
    link[0].publish(f"{prefix}/a", b"end")
    assert [b"kept", b"end"] == [m.payload for m in peer.receive(2)]


def test_many_threads_publish_many_messages(link, connect, prefix):
    """Eight threads publish 100 messages each, more than may be outstanding: all arrive, each thread's in order."""
    peer = connect()
    peer.subscribe(f"{prefix}/+")

    def publish(number: int) -> None:
        link[0].publish_all(Outgoing(f"{prefix}/{number}", b"%d" % n) for n in range(100))

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    received = peer.receive(800)
    for thread in threads:
        thread.join()
    for number in range(8):
        mine = [int(m.payload) for m in received if m.topic == f"{prefix}/{number}"]
        assert list(range(100)) == mine


def test_it_receives_and_can_answer_from_the_same_thread(url, make_link, connect, prefix):
    """Handling a message may publish, as the service does to acknowledge a report."""

    def answer(topic: str, payload: bytes, retained: bool) -> None:
        link.publish(topic.replace("/up/", "/down/"), payload[::-1], retain=retained)

    link, recorder = make_link(url, on_message=answer)
    link.subscribe(f"{prefix}/+/up/receipts")
    link.start()
    recorder.wait_for("up")
    device = connect()
    device.subscribe(f"{prefix}/press-7/down/receipts")
    for number in range(50):
        device.publish(f"{prefix}/press-7/up/receipts", b"no %d" % number)
    assert [b"%b on" % str(n)[::-1].encode() for n in range(50)] == [m.payload for m in device.receive(50)]


def test_subscriptions_come_and_go(link, connect, prefix):
    """A topic is heard from when subscribe returns until unsubscribe does."""
    its_link, recorder = link
    device = connect()
    for number in range(3):
        its_link.subscribe(f"{prefix}/a")
        device.publish(f"{prefix}/a", b"heard %d" % number)
        assert [b"heard %d" % number] == [m.payload for m in recorder.receive()]
        its_link.unsubscribe(f"{prefix}/a")
        device.publish(f"{prefix}/a", b"not heard")
    its_link.subscribe(f"{prefix}/a")
    device.publish(f"{prefix}/a", b"end", retain=True)
    assert [b"end"] == [m.payload for m in recorder.receive()]


def test_what_is_too_large_is_dropped_and_counted(url, make_link, connect, prefix):
    """A message above the bound is not handed over; the next one is."""
    link, recorder = make_link(url, settings={"max_message_bytes": 1_000})
    link.subscribe(f"{prefix}/+")
    link.start()
    recorder.wait_for("up")
    device = connect()
    for size in (1_001, 1_000_000, 1_000):
        device.publish(f"{prefix}/a", b"x" * size)
    assert [1_000] == [len(m.payload) for m in recorder.receive()]
    assert 2 == link.dropped


def test_an_error_of_the_handler_does_not_stop_the_next_message(url, make_link, connect, prefix, caplog):
    """It is logged with the topic, without the payload, and the message counts as handled."""
    received: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def handle(_topic: str, payload: bytes, _retained: bool) -> None:
        if payload == b"secret":
            raise ValueError("cannot handle that")
        received.put(payload)

    link, recorder = make_link(url, on_message=handle)
    link.subscribe(f"{prefix}/a")
    link.start()
    recorder.wait_for("up")
    device = connect()
    device.publish(f"{prefix}/a", b"secret")
    device.publish(f"{prefix}/a", b"good")
    assert b"good" == received.get(timeout=DEADLINE_S)
    assert f"error while handling {prefix}/a" in caplog.text
    assert "secret" not in caplog.text


CONTROLLER = """
    import sys, time
    from controller.delivery.mqtt import MqttLink

    def handle(topic, payload, retained):
        print("handling", payload.decode(), flush=True)
        time.sleep(60 if payload == b"3" else 0)

    url, version, name, topic = sys.argv[1:]
    link = MqttLink(url, name, version=version, on_message=handle, on_up=lambda: print("up", flush=True))
    link.subscribe(topic)
    link.start()
    time.sleep(60)
"""


def test_what_a_killed_controller_was_handling_comes_again(url, version, make_link, connect, prefix):
    """A message is confirmed when it has been handled: after SIGKILL the next controller gets it and what follows."""
    name, topic = f"controller-{prefix}", f"{prefix}/a"
    command = [sys.executable, "-c", textwrap.dedent(CONTROLLER), url, version, name, topic]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout or ())
        assert "up\n" == next(lines)
        device = connect()
        for number in range(40):
            device.publish(topic, b"%d" % number)
        assert [f"handling {number}\n" for number in range(4)] == [next(lines) for _ in range(4)]
        process.kill()
    link, recorder = make_link(url, client_id=name)
    link.start()
    received = [int(recorder.receive()[0].payload)]
    while received[-1] != 39:
        received.append(int(recorder.receive()[0].payload))
    # The confirmation of the one before may have been on its way: at least once, never less.
    assert received[0] <= 3
    assert list(range(received[0], 40)) == received


def test_a_slow_controller_is_not_flooded(url, make_link, connect, prefix):
    """While one message is handled, publishing goes on and nothing of 500 messages is lost."""
    started, may_go_on = threading.Event(), threading.Event()
    seen: list[int] = []

    def handle(_topic: str, payload: bytes, _retained: bool) -> None:
        started.set()
        may_go_on.wait(DEADLINE_S)
        seen.append(int(payload))

    link, recorder = make_link(url, on_message=handle)
    link.subscribe(f"{prefix}/a")
    link.start()
    recorder.wait_for("up")
    device = connect()
    for number in range(500):
        device.publish(f"{prefix}/a", b"%d" % number)
    assert started.wait(DEADLINE_S)
    link.publish(f"{prefix}/other", b"not held up")
    assert [] == seen
    may_go_on.set()
    wait_until(lambda: len(seen) >= 500, "every message handled")
    assert list(range(500)) == seen


def test_a_handler_may_publish_however_much_waits(url, make_link, connect, prefix):
    """300 messages wait while the handler publishes: it is not held up by what the broker still has for it."""
    may_go_on = threading.Event()
    seen: list[int] = []

    def handle(_topic: str, payload: bytes, _retained: bool) -> None:
        may_go_on.wait(DEADLINE_S)
        link.publish(f"{prefix}/answer", payload)
        seen.append(int(payload))

    link, recorder = make_link(url, on_message=handle)
    link.subscribe(f"{prefix}/a")
    link.start()
    recorder.wait_for("up")
    device = connect()
    for number in range(300):
        device.publish(f"{prefix}/a", b"%d" % number)
    may_go_on.set()
    wait_until(lambda: len(seen) >= 300, "every message handled")
    assert list(range(300)) == seen


@pytest.mark.parametrize("settings", [{"max_unread": 10}, {"max_unread_bytes": 10_000}], ids=["count", "bytes"])
def test_more_than_fits_is_dropped_and_counted(url, make_link, connect, prefix, settings):
    """A flood costs bounded memory: what finds no room is dropped, the rest is handled, and the link stays up."""
    may_go_on = threading.Event()
    seen: list[bytes] = []

    def handle(_topic: str, payload: bytes, _retained: bool) -> None:
        may_go_on.wait(DEADLINE_S)
        seen.append(payload)

    link, recorder = make_link(url, on_message=handle, settings=settings)
    link.subscribe(f"{prefix}/a")
    link.start()
    recorder.wait_for("up")
    device = connect()
    for number in range(200):
        device.publish(f"{prefix}/a", b"%1000d" % number)
    wait_until(lambda: link.dropped >= 180, "most messages dropped")
    may_go_on.set()
    wait_until(lambda: link.dropped + len(seen) == 200, "all accounted for")
    device.publish(f"{prefix}/a", b"end")
    wait_until(lambda: seen[-1:] == [b"end"], "the next message handled")
    assert ["up"] == recorder.events


def test_a_broker_that_is_down_at_start_is_found_later(kind, version, brokers, make_link, prefix):
    """Down at the start is no error: publish says so, subscribe waits, and all works when the broker comes."""
    broker = brokers.start(kind)
    port, directory = port_of(broker), brokers._folder()
    broker.stop()
    link, recorder = make_link(f"mqtt://127.0.0.1:{port}", version=version)
    link.subscribe(f"{prefix}/a")
    link.start()
    assert not link.is_connected
    assert link.version is None
    with pytest.raises(BrokerError, match=r"no connection to the broker at mqtt://127\.0\.0\.1") as caught:
        link.publish(f"{prefix}/a", b"x")
    assert caught.value.hint
    with brokers.start(kind, port, directory):
        recorder.wait_for("up")
        link.publish(f"{prefix}/a", b"x")
        assert [Received(f"{prefix}/a", b"x", False)] == [m._replace(retained=False) for m in recorder.receive()]


def test_it_comes_back_when_the_broker_does(kind, version, brokers, make_link, prefix):
    """Killed and started again, the broker finds the link with its subscriptions; owners hear down and up."""
    directory = brokers._folder()
    with brokers.start(kind, 0, directory) as broker:
        link, recorder = make_link(broker.url, version=version)
        link.subscribe(f"{prefix}/a")
        link.start()
        recorder.wait_for("up")
        broker.kill()
        recorder.wait_for("up", "down")
        assert not link.is_connected
        with pytest.raises(BrokerError):
            link.publish(f"{prefix}/a", b"lost")
    with brokers.start(kind, port_of(broker), directory):
        recorder.wait_for("up", "down", "up")
        link.publish(f"{prefix}/a", b"here again")
        assert [b"here again"] == [m.payload for m in recorder.receive()]


def test_a_broker_that_hangs_is_left_and_found_again(kind, version, brokers, make_link, prefix, caplog):
    """A broker that falls silent with its connections open is noticed and named; when it goes on, all works."""
    with brokers.start(kind) as broker:
        settings = {"keepalive_s": 1, "connect_timeout_s": 1.0}
        link, recorder = make_link(broker.url, version=version, settings=settings)
        link.subscribe(f"{prefix}/a")
        link.start()
        recorder.wait_for("up")
        with broker.hung():
            recorder.wait_for("up", "down")
            assert not link.is_connected
            wait_until(lambda: "cannot reach the broker" in caplog.text, "the silence to be said")
        recorder.wait_for("up", "down", "up")
        link.publish(f"{prefix}/a", b"here again")
        assert [b"here again"] == [m.payload for m in recorder.receive()]
    assert f"lost the broker at {link.address}: it has not answered for 1 s" in caplog.text


def test_a_publish_fails_when_the_broker_dies_under_it(kind, version, brokers, make_link, prefix):
    """Who waits for a confirmation is told, and does not wait for ever."""
    with brokers.start(kind) as broker:
        link, recorder = make_link(broker.url, version=version)
        link.start()
        recorder.wait_for("up")
        threading.Timer(0.1, broker.kill).start()
        with pytest.raises(BrokerError, match="connection"):
            link.publish_all(Outgoing(f"{prefix}/a", b"x" * 10_000) for _ in itertools.count())


def test_a_message_that_no_broker_takes_is_refused_here(link, prefix):
    """Above the brokers' limit nothing is sent, and the link stays up."""
    its_link, recorder = link
    with pytest.raises(BrokerError, match="the broker takes 16,777,216"):
        its_link.publish(f"{prefix}/a", bytes(17_000_000))
    for topic in (f"{prefix}/+", ""):
        with pytest.raises(BrokerError, match="cannot publish to"):
            its_link.publish(topic, b"x")
    for topic in ("", "a/#/b"):
        with pytest.raises(BrokerError, match="not a topic filter"):
            its_link.subscribe(topic)
        its_link.unsubscribe(f"{prefix}/never")
    its_link.publish(f"{prefix}/a", b"still here")
    recorder.wait_for("up")


def test_closing_is_quick_and_may_be_repeated(url, make_link, prefix):
    """Close ends every thread, connected or not, and a closed link publishes nothing."""
    before = set(threading.enumerate())
    link, recorder = make_link(url)
    link.start()
    recorder.wait_for("up")
    absent, _ = make_link("mqtt://127.0.0.1:1")
    absent.start()
    never_started, _ = make_link(url)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        waiting, _ = make_link(f"mqtt://127.0.0.1:{mute.getsockname()[1]}", settings={"connect_timeout_s": 60.0})
        waiting.start()
        connection, _ = mute.accept()
        started = time.monotonic()
        with connection:
            for its_link in (link, absent, never_started, waiting):
                its_link.close()
                its_link.close()
                with pytest.raises(BrokerError, match="no connection"):
                    its_link.publish(f"{prefix}/a", b"x")
        assert time.monotonic() - started < 10
    assert before >= set(threading.enumerate())


def test_a_server_that_never_answers_is_left(make_link):
    """A port that takes the connection and says nothing is tried again and again."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        link, recorder = make_link(f"mqtt://127.0.0.1:{mute.getsockname()[1]}", settings={"connect_timeout_s": 0.05})
        link.start()
        mute.settimeout(DEADLINE_S)
        for _ in range(3):
            connection, _ = mute.accept()
            with connection:
                assert b"MQTT" in connection.recv(1_000)
                connection.settimeout(DEADLINE_S)
                while connection.recv(1_000):
                    pass
        link.close()
    assert [] == recorder.events
