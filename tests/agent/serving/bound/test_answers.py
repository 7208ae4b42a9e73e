"""Bound inputs: what comes on a topic is answered on another, whatever it is."""

import logging
import re
import struct
from collections.abc import Callable
from typing import Any

import pytest

from agent.bindings import Binding
from agent.host import ModelHost
from agent.mqtt import LinkDown, LinkUp, Message, Oversize
from agent.serving.body import WholeBody
from agent.serving.bound import MAX_MESSAGE_BYTES
from agent.serving.routes import Request
from agent.serving.service import LocalService
from tests.agent.serving.bound.conftest import JSON, RAW, Broker, Inputs, request
from tests.agent.serving.callers import RESET, SPIN, SUM, Status, activate

ADD = "(f32.store (i32.const 64) (f32.add (f32.load (i32.const 0)) (f32.load (i32.const 4)))) (i32.const 0)"


def test_request_is_answered_with_its_id(bind: Callable[..., Inputs], broker: Broker, host: ModelHost) -> None:
    """The answer is the response of the Open Inference Protocol, on the topic of the binding."""
    activate(host)
    inputs = bind(JSON)
    inputs.say("in/json", request(1.5, -4, id="reading-7"))
    expected = {
        "id": "reading-7",
        "model_name": "digits",
        "model_version": "1.0.0",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [3.0, -8.0]}],
    }
    assert ("out/json", expected) == broker.next()
    inputs.wait((1, 0, 0, 0))


def test_raw_tensors_are_answered_with_raw_tensors(
    bind: Callable[..., Inputs], broker: Broker, host: ModelHost
) -> None:
    """Nothing but little-endian numbers goes in and out."""
    activate(host)
    inputs = bind(RAW)
    inputs.say("in/raw", struct.pack("<2f", 1.5, -4))
    assert ("out/raw", struct.pack("<2f", 3, -8)) == broker.answers.get(timeout=20)
    inputs.wait((1, 0, 0, 0))


@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [
        (b"", "malformed", "truncated"),
        (b"{", "malformed", "truncated"),
        (b"\xff\xfe", "malformed", "not a valid inference request"),
        (b"[" * 100_000, "limit_exceeded", "at most 98,304 bytes, got 100,000"),
        (b"[" * 60_000, "malformed", "not a valid inference request"),
        (b"23.5", "malformed", "not a valid inference request"),
        (b'{"inputs": []}', "bad_input", "missing input x"),
        (request(1), "bad_input", r"expected shape \[1, 2\]"),
        (request(1, 2).replace(b"[1, 2]}", b"[[1], [2]]}"), "bad_input", "nested arrays of the shape"),
        (request(1, 2).replace(b"FP32", b"INT8"), "bad_input", "expected datatype FP32"),
        (request(1, 2, outputs=[{"name": "z"}]), "bad_input", "unknown output 'z'"),
        (request(1, 2, parameters={"binary_data_output": True}), "bad_input", "expected JSON outputs"),
        (bytes(1_000_000), "limit_exceeded", "expected a request of at most"),
    ],
)
def test_whatever_is_no_request_is_answered_with_an_error(
    bind: Callable[..., Inputs], broker: Broker, host: ModelHost, payload: bytes, code: str, reason: str
) -> None:
    """The error has the form of the protocol, and the next message is answered as ever."""
    activate(host)
    inputs = bind(JSON)
    inputs.say("in/json", payload)
    topic, error = broker.next()
    assert ("out/json", code) == (topic, error["code"])
    assert re.search(reason, error["error"]), error
    inputs.say("in/json", request(1, 2))
    assert [2.0, 4.0] == broker.next()[1]["outputs"][0]["data"]
    inputs.wait((1, 1, 0, 0))


@pytest.mark.parametrize("payload", [b"", b"1234567", b"123456789", bytes(16), bytes(1_000_000)])
def test_raw_bytes_of_another_size_are_counted_and_logged(
    bind: Callable[..., Inputs],
    broker: Broker,
    host: ModelHost,
    payload: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There is no room for an error among raw tensors: none is published. The log tells, once a minute."""
    activate(host)
    inputs = bind(RAW)
    with caplog.at_level(logging.WARNING, "agent"):
        inputs.say("in/raw", payload)
        inputs.say("in/raw", payload)
        inputs.wait((0, 2, 0, 0))
    assert broker.answers.empty()
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"binding of digits to in/raw: expected a message of 8 bytes, those of x, got {len(payload):,}" == told


def test_message_that_the_link_did_not_take_is_answered_too(
    bind: Callable[..., Inputs], broker: Broker, host: ModelHost
) -> None:
    """Who sends too much hears it."""
    inputs = bind(JSON, RAW)
    for topic in ("in/json", "in/raw"):
        assert inputs.offer(Oversize(topic=topic, size_bytes=5_000_000, limit_bytes=MAX_MESSAGE_BYTES))
    topic, error = broker.next()
    assert ("out/json", "limit_exceeded") == (topic, error["code"])
    inputs.wait((0, 1, 0, 0))
    inputs.wait((0, 1, 0, 0), 1)


@pytest.mark.parametrize("first", [JSON, RAW])
def test_before_a_model_is_there_the_answer_is_that_none_is(
    bind: Callable[..., Inputs], broker: Broker, host: ModelHost, first: Binding
) -> None:
    """A sensor may speak before the first release; once it is active, the same binding answers."""
    inputs = bind(first)
    payload = request(1, 2) if first is JSON else struct.pack("<2f", 1, 2)
    inputs.say(first.subscribe, payload)
    inputs.wait((0, 1, 0, 0))
    if first is JSON:
        assert "unknown_model" == broker.next()[1]["code"]
    activate(host)
    inputs.say(first.subscribe, payload)
    inputs.wait((1, 1, 0, 0))


def test_failing_model_is_told_and_ends_nothing(bind: Callable[..., Inputs], broker: Broker, host: ModelHost) -> None:
    """A trap and a missed deadline are errors with their place, as on the local API."""
    inputs = bind(JSON)
    for infer, code in (("unreachable", "trap"), (SPIN, "deadline_exceeded")):
        activate(host, infer=infer)
        inputs.say("in/json", request(1, 2))
        error = broker.next()[1]
        assert (code, "run") == (error["code"], error["fault"]["layer"])
    inputs.wait((0, 2, 0, 0))


def test_raw_follows_a_swap_to_other_inputs(bind: Callable[..., Inputs], broker: Broker, host: ModelHost) -> None:
    """What the bytes mean is what the release that answers says."""
    activate(host, "1.0.0")
    inputs = bind(RAW)
    inputs.say("in/raw", struct.pack("<2f", 1, 2))
    assert struct.pack("<2f", 2, 4) == broker.answers.get(timeout=20)[1]
    activate(host, "2.0.0", n=3)
    inputs.say("in/raw", struct.pack("<3f", 1, 2, 3))
    assert struct.pack("<2f", 2, 4) == broker.answers.get(timeout=20)[1][:8]


def add(inputs: Inputs, broker: Broker, value: float, **marks: Any) -> float | str:
    """Return what a stateful model answers to a message, or the error's code."""
    inputs.say("in/json", request(value, 0, parameters=marks))
    _, reply = broker.next()
    return reply["code"] if "code" in reply else float(reply["outputs"][0]["data"][0])


def test_messages_are_a_sequence_of_their_own(bind: Callable[..., Inputs], broker: Broker, host: ModelHost) -> None:
    """Who tries a stateful model by hand does not disturb what a sensor's readings add up to, whatever their form."""
    activate(host, infer=SUM, reset=RESET)
    host.infer("digits", [struct.pack("<2f", 5, 0)])
    inputs = bind(JSON, RAW)
    assert [1.0, 3.0] == [add(inputs, broker, 1), add(inputs, broker, 2)]
    inputs.say("in/raw", struct.pack("<2f", 3, 0))
    assert ("out/raw", struct.pack("<2f", 6, 0)) == broker.answers.get(timeout=20)
    body = WholeBody(request(9, 0))
    reply = inputs.answer(Request(method="POST", path="/v2/models/digits/infer", body=body))
    assert (409, True) == (reply.status, b"expected a call of the sequence 'mqtt', got one of none" in reply.body)
    assert 7.0 == add(inputs, broker, 1)


def test_messages_go_on_from_nothing_by_themselves(
    bind: Callable[..., Inputs], broker: Broker, host: ModelHost
) -> None:
    """A sensor cannot be told to begin again: after an update and a fault the next reading is the first."""
    trap_at_9 = "(if (f32.eq (f32.load (i32.const 0)) (f32.const 9)) (then unreachable))" + SUM
    activate(host, infer=trap_at_9, reset=RESET)
    inputs = bind(JSON)
    assert [1.0, 3.0] == [add(inputs, broker, 1), add(inputs, broker, 2)]
    activate(host, "2.0.0", infer=trap_at_9, reset=RESET)
    assert [1.0, 3.0] == [add(inputs, broker, 1), add(inputs, broker, 2)]
    assert ["trap", 1.0] == [add(inputs, broker, 9), add(inputs, broker, 1)]


def test_message_may_say_where_its_sequence_begins(
    bind: Callable[..., Inputs], broker: Broker, host: ModelHost
) -> None:
    """Marks of the message itself count, and a sequence that they name keeps the unnamed ones out until it ends."""
    activate(host, infer=SUM, reset=RESET)
    inputs = bind(JSON)
    assert [1.0, 2.0] == [add(inputs, broker, 1), add(inputs, broker, 2, sequence_start=True)]
    assert "wrong_sequence" == add(inputs, broker, 1, sequence_id="b")
    assert 4.0 == add(inputs, broker, 4, sequence_id="b", sequence_start=True)
    assert "wrong_sequence" == add(inputs, broker, 1)
    assert 5.0 == add(inputs, broker, 1, sequence_id="b", sequence_end=True)
    assert 1.0 == add(inputs, broker, 1)


def test_raw_message_that_meets_a_swap_is_asked_again(host: ModelHost, broker: Broker) -> None:
    """A release with other inputs that is swapped in between the look and the call is no error of the sender's."""
    activate(host, "1.0.0")
    service = LocalService([], host, Status)
    swaps = iter([lambda: activate(host, "2.0.0", n=3)])

    def manifest_and_swap(model: str) -> Any:
        known = host.manifest(model)
        next(swaps, lambda: None)()
        return known

    inputs = Inputs(service.answer, manifest_and_swap, broker)
    inputs.bind([RAW])
    inputs.say("in/raw", struct.pack("<3f", 1, 2, 3))
    inputs.wait((1, 0, 0, 0))
    inputs.close()


def test_two_models_answer_one_topic(bind: Callable[..., Inputs], broker: Broker, host: ModelHost) -> None:
    """Each binding of a topic gets each message, and waits for no other."""
    activate(host)
    activate(host, name="sum", infer=ADD)
    inputs = bind(JSON, Binding(model="sum", subscribe="in/json", publish="out/sum"))
    inputs.say("in/json", request(1, 2))
    answers = dict(broker.next() for _ in range(2))
    assert {"out/json": "digits", "out/sum": "sum"} == {t: a["model_name"] for t, a in answers.items()}


def test_other_topics_are_not_taken(bind: Callable[..., Inputs]) -> None:
    """What is the agent's own goes to the agent."""
    inputs = bind(JSON)
    for event in (Message(topic="in/json/x", payload=b""), LinkUp(), LinkDown(reason="gone")):
        assert not inputs.offer(event)
