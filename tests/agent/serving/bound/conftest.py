"""A broker, and bindings that answer what it brings."""

import json
import queue
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest

from agent.bindings import Binding
from agent.host import ModelHost
from agent.mqtt import Message
from agent.serving.bound import MAX_MESSAGE_BYTES, BoundInputs
from agent.serving.gate import Gate
from agent.serving.routes import Reply, Request
from agent.serving.service import LocalService
from tests.agent.rig import wait_for
from tests.agent.serving.callers import Status

JSON = Binding(model="digits", subscribe="in/json", publish="out/json")

RAW = Binding(model="digits", subscribe="in/raw", publish="out/raw", format="raw")


class Broker:
    """Takes answers, as the link does; may be away, or take nothing for a while."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self.is_there = True
        self.topics: set[str] = set()
        self.takes = threading.Event()
        self.takes.set()

    def subscribe(self, topics: dict[str, int]) -> None:
        assert {MAX_MESSAGE_BYTES} >= set(topics.values())
        self.topics |= topics.keys()

    def unsubscribe(self, topics: Collection[str]) -> None:
        self.topics -= set(topics)

    def publish_in_turn(self, topic: str, payload: bytes) -> bool:
        assert self.takes.wait(20)
        if self.is_there:
            self.answers.put((topic, payload))
        return self.is_there

    def next(self) -> tuple[str, Any]:
        topic, payload = self.answers.get(timeout=20)
        return topic, json.loads(payload)


class Inputs(BoundInputs):
    """Bindings, and short words to feed them."""

    answer: Callable[[Request], Reply]
    """What callers of the local API get."""

    def say(self, topic: str, payload: bytes) -> None:
        assert self.offer(Message(topic=topic, payload=payload))

    def counts(self, number: int = 0) -> tuple[int, int, int, int]:
        status = self.statuses()[number]
        return status.answered, status.failed, status.dropped, status.unsent

    def wait(self, expected: tuple[int, int, int, int], number: int = 0) -> None:
        wait_for(f"{expected}", lambda: self.counts(number) == expected, lambda: str(self.counts(number)))


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def bind(host: ModelHost, broker: Broker) -> Iterator[Callable[..., Inputs]]:
    """Makes bindings that answer, and closes them."""
    made: list[Inputs] = []

    def bind(*bindings: Binding, gate: Gate | None = None) -> Inputs:
        service = LocalService([], host, Status, gate=gate)
        made.append(Inputs(service.answer, host.manifest, broker))
        made[-1].answer = service.answer
        made[-1].bind(bindings)
        return made[-1]

    yield bind
    broker.takes.set()
    for inputs in made:
        inputs.close()


def request(*x: float, **fields: Any) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(x)], "data": x}
    return json.dumps({"inputs": [tensor], **fields}).encode()
