"""A sensor that knows only a topic is answered on another: before a model, across an update, after an outage."""

import json
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contracts.conftest import Peer
from tests.system.rig import Device, Rig, wait_for

pytestmark = pytest.mark.needs("mosquitto")

POLICY = """
[[bindings]]
model     = "affine"
subscribe = "plant/line1/pressure"
publish   = "plant/line1/forecast"

[[bindings]]
model     = "affine"
subscribe = "plant/line2/pressure"
publish   = "plant/line2/forecast"
format    = "raw"
"""
IN_FLIGHT = 16
"""Fewer than a binding lets wait, so that none may be dropped, however slow the machine is."""


class Sensor(Peer):
    """Publishes readings and hears the answers."""

    def __init__(self, rig: Rig) -> None:
        assert rig.broker is not None
        super().__init__(rig.broker.url, "5")
        self.subscribe("plant/line1/forecast", "plant/line2/forecast")

    def say(self, value: float, name: str, *, retain: bool = False) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [value]}
        self.publish("plant/line1/pressure", json.dumps({"id": name, "inputs": [tensor]}).encode(), retain=retain)

    def say_raw(self, value: float) -> None:
        self.publish("plant/line2/pressure", struct.pack("<f", value))

    def answer(self) -> Any:
        (message,) = self.receive()
        return json.loads(message.payload) if message.topic == "plant/line1/forecast" else message.payload


@pytest.fixture
def device(rig: Rig) -> Device:
    """A running device with two bindings, and no model yet."""
    device = rig.enroll("edge-1")
    (device.state / "policy.toml").write_text(POLICY)
    device.start()
    wait_for("a connection", lambda: device.status()["is_connected"])
    return device


@pytest.fixture
def sensor(rig: Rig) -> Iterator[Sensor]:
    with Sensor(rig) as sensor:
        yield sensor


def ask(sensor: Sensor, name: str) -> Any:
    """Return the answer to a retained reading: it waits for a subscription that follows the connection by a moment."""
    sensor.say(10, name, retain=True)
    while (answer := sensor.answer()).get("id", name) != name:
        pass  # of a reading that the broker retained before
    return answer


def test_readings_are_answered_before_during_and_after_an_update(rig: Rig, device: Device, sensor: Sensor) -> None:
    """Each reading is answered exactly once, by the old release, then by the new one; every call is counted."""
    assert "unknown_model" == ask(sensor, "too early")["code"]
    rig.push(2)
    asked: list[str] = []
    answers: dict[str, Any] = {}
    is_pushed = threading.Event()
    pushing = threading.Thread(target=lambda: (rig.push(3), is_pushed.set()))
    pushing.start()
    after = 0
    while after < IN_FLIGHT:
        name = str(len(asked))
        asked.append(name)
        sensor.say(float(name), name)
        while len(asked) - len(answers) >= IN_FLIGHT or (not sensor.messages.empty()):
            answer = sensor.answer()
            assert answer["id"] not in answers, "answered twice"
            answers[answer["id"]] = answer
        after += is_pushed.is_set()
        time.sleep(0.005)
    pushing.join()
    while len(answers) < len(asked):
        answer = sensor.answer()
        assert answer["id"] not in answers, "answered twice"
        answers[answer["id"]] = answer

    assert asked == list(answers)
    releases = [answers[name]["model_version"] for name in asked]
    assert ["2.0.0", "3.0.0"] == list(dict.fromkeys(releases)), "each release answered, the older one first"
    for name, release in zip(asked, releases, strict=True):
        assert [float(name) * int(release[0])] == answers[name]["outputs"][0]["data"]
    assert sensor.messages.empty()
    wait_for("the last one is counted", lambda: device.status()["bindings"][0]["answered"] == len(asked))
    said = device.status()
    assert (1, 0, 0) == tuple(said["bindings"][0][count] for count in ("failed", "dropped", "unsent"))
    assert len(asked) == said["models"][0]["inferences"]


def test_raw_readings_and_a_retained_one(rig: Rig, device: Device, sensor: Sensor) -> None:
    """Bytes in, bytes out; a retained reading is answered again at the next start, which SIGTERM makes a clean one."""
    rig.push(2)
    sensor.say_raw(21)
    assert struct.pack("<f", 42) == sensor.answer()
    sensor.publish("plant/line2/pressure", struct.pack("<f", 4), retain=True)
    assert struct.pack("<f", 8) == sensor.answer()
    device.stop()
    sensor.say_raw(5)  # nobody is there
    device.start()
    assert struct.pack("<f", 8) == sensor.answer()
    sensor.say_raw(6)
    assert struct.pack("<f", 12) == sensor.answer()


def test_bindings_come_back_with_the_broker(rig: Rig, device: Device, sensor: Sensor) -> None:
    """After the broker died and came back, readings are answered again."""
    rig.push(2)
    assert [20.0] == ask(sensor, "before")["outputs"][0]["data"]
    assert rig.broker is not None
    rig.broker.kill()
    wait_for("the loss is noticed", lambda: not device.status()["is_connected"])
    rig.start_broker()
    wait_for("a connection", lambda: device.status()["is_connected"])
    with Sensor(rig) as again:
        assert [20.0] == ask(again, "after")["outputs"][0]["data"]
