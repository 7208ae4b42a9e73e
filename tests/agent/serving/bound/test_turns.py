"""Bound inputs: in their order, and nobody who offers ever waits; bindings come and go."""

import logging
import struct
import threading
from collections.abc import Callable

import pytest

from agent.host import ModelHost
from agent.mqtt import Message
from agent.serving.bound import MAX_MESSAGE_BYTES, MAX_WAITING, MAX_WAITING_BYTES
from agent.serving.gate import Gate
from tests.agent.rig import wait_for
from tests.agent.serving.bound.conftest import JSON, RAW, Broker, Inputs, request
from tests.agent.serving.callers import activate


def test_answers_keep_the_order_of_their_messages(bind: Callable[..., Inputs], broker: Broker, host: ModelHost) -> None:
    """A binding answers one message after another."""
    activate(host)
    inputs = bind(JSON)
    for number in range(MAX_WAITING):
        inputs.say("in/json", request(number, 0, id=str(number)))
    assert [str(n) for n in range(MAX_WAITING)] == [broker.next()[1]["id"] for _ in range(MAX_WAITING)]


def test_newest_messages_survive_a_flood(
    bind: Callable[..., Inputs], broker: Broker, host: ModelHost, caplog: pytest.LogCaptureFixture
) -> None:
    """Who offers never waits; the oldest give way and are counted, and the log says so."""
    activate(host)
    inputs = bind(JSON)
    broker.takes.clear()
    inputs.say("in/json", request(0, 0, id="first"))
    wait_for("it is in work", lambda: not inputs._bound[0]._waiting)
    for number in range(MAX_WAITING + 10):
        inputs.say("in/json", request(number, 0, id=str(number)))
    assert (0, 0, 10, 0) == inputs.counts()
    with caplog.at_level(logging.WARNING, "agent"):
        broker.takes.set()
        inputs.wait((MAX_WAITING + 1, 0, 10, 0))
    ids = [broker.next()[1]["id"] for _ in range(MAX_WAITING + 1)]
    assert ["first", *(str(n) for n in range(10, MAX_WAITING + 10))] == ids
    assert ["messages come faster" in record.getMessage() for record in caplog.records] == [True]


def test_waiting_messages_are_bounded_in_bytes(bind: Callable[..., Inputs], broker: Broker) -> None:
    """A few of the largest messages are as much as a binding holds, and one always has room."""
    inputs = bind(JSON)
    broker.takes.clear()
    inputs.say("in/json", b"{}")
    wait_for("it is in work", lambda: not inputs._bound[0]._waiting)
    for size in (MAX_WAITING_BYTES // 2, MAX_WAITING_BYTES // 2, 1):
        inputs.say("in/json", bytes(size))
    assert 1 == inputs.statuses()[0].dropped
    inputs.say("in/json", bytes(MAX_MESSAGE_BYTES))
    assert 3 == inputs.statuses()[0].dropped
    assert 1 == len(inputs._bound[0]._waiting)


def test_answer_without_a_connection_is_counted(bind: Callable[..., Inputs], broker: Broker, host: ModelHost) -> None:
    """It is not kept: a newer reading will come."""
    activate(host)
    inputs = bind(JSON)
    broker.is_there = False
    inputs.say("in/json", request(1, 2))
    inputs.say("in/json", b"{")
    inputs.wait((0, 1, 0, 2))


def test_full_device_is_told(bind: Callable[..., Inputs], broker: Broker, host: ModelHost) -> None:
    """Bound messages queue at the same gate as the local API's callers, with the same limit."""
    activate(host)
    gate = Gate(max_waiting=0)
    inputs = bind(JSON, gate=gate)
    with gate.turn("digits", 0):
        inputs.say("in/json", request(1, 2))
        assert "overloaded" == broker.next()[1]["code"]
    inputs.say("in/json", request(1, 2))
    assert "outputs" in broker.next()[1]


@pytest.mark.parametrize("is_removed", [False, True])
def test_closing_ends_with_the_answer_in_work(
    bind: Callable[..., Inputs], broker: Broker, host: ModelHost, is_removed: bool
) -> None:
    """The call that runs is answered, also that of a binding which was just removed; what waits or is late is not."""
    activate(host)
    inputs = bind(JSON, RAW)
    (kept,) = [bound for bound in inputs._bound if bound.binding == RAW]
    broker.takes.clear()
    inputs.say("in/json", request(1, 2, id="in work"))
    wait_for("it is in work", lambda: not inputs._bound[0]._waiting)
    inputs.say("in/json", request(1, 2, id="waits"))
    if is_removed:
        inputs.bind([RAW])
        inputs.bind([RAW])  # what was removed before is not forgotten
    closing = threading.Thread(target=inputs.close)
    closing.start()
    wait_for("it ends", lambda: kept._is_ending)
    closing.join(0.05)
    assert closing.is_alive()
    assert is_removed != inputs.offer(Message(topic="in/json", payload=request(1, 2, id="late")))
    broker.takes.set()
    closing.join(20)
    assert not closing.is_alive()
    assert "in work" == broker.next()[1]["id"]
    inputs.close()
    assert broker.answers.empty()


def test_bindings_can_be_changed_while_they_answer(
    bind: Callable[..., Inputs], broker: Broker, host: ModelHost
) -> None:
    """What stays goes on with its counts, what is new begins, what is gone is not heard and its thread ends."""
    activate(host)
    inputs = bind(JSON)
    inputs.say("in/json", request(1, 2))
    broker.next()
    inputs.wait((1, 0, 0, 0))
    inputs.bind([RAW, JSON])
    inputs.say("in/raw", struct.pack("<2f", 1, 2))
    assert "out/raw" == broker.answers.get(timeout=20)[0]
    assert (1, 0, 0, 0) == inputs.counts(1)
    (thread,) = [bound._thread for bound in inputs._bound if bound.binding == JSON]
    inputs.bind([RAW])
    thread.join(20)
    assert not thread.is_alive()
    assert not inputs.offer(Message(topic="in/json", payload=request(1, 2)))
    assert {"in/raw"} == broker.topics
    inputs.wait((1, 0, 0, 0))


def test_device_without_bindings_starts_no_thread(bind: Callable[..., Inputs], broker: Broker) -> None:
    """Who binds nothing pays nothing."""
    before = threading.active_count()
    inputs = bind()
    assert (before, (), set()) == (threading.active_count(), inputs.statuses(), broker.topics)
