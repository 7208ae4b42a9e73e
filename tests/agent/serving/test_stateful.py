"""A model that remembers, called over HTTP: one call after another, each on what the one before left."""

import threading
from pathlib import Path

import pytest

from agent.client import LocalClient
from agent.host import ModelHost
from agent.runtime import Zygote
from agent.serving.service import LocalService
from tests.agent.serving.callers import RESET, SUM, Raw, activate, request_body

INFER = "/v2/models/digits/infer"


@pytest.fixture
def stateful(host: ModelHost, isolation: Zygote | None) -> None:
    """Let a model answer with the sum of all first numbers, on either isolation level."""
    activate(host, infer=SUM, reset=RESET, isolation=isolation)


@pytest.mark.usefixtures("stateful")
def test_concurrent_calls_see_the_state_of_the_call_before(service: LocalService, path: Path) -> None:
    """Calls are serial: each of all callers together adds one, none is lost and none counted twice."""
    seen: list[list[float]] = [[] for _ in range(8)]

    def call(mine: list[float]) -> None:
        with LocalClient(path) as client:
            mine.extend(client.infer("digits", {"x": [1, 0]}).outputs["y"].values[0] for _ in range(25))

    threads = [threading.Thread(target=call, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [float(n + 1) for n in range(200)] == sorted(value for mine in seen for value in mine)
    assert all(mine == sorted(mine) for mine in seen)


@pytest.mark.usefixtures("stateful")
def test_a_batch_is_one_turn(service: LocalService, path: Path) -> None:
    """Its items see each other in order, and no call of anybody else comes between them."""
    seen: list[list[float]] = []

    def call() -> None:
        with Raw(path) as raw:
            for _ in range(20):
                status, _, reply = raw.ask("POST", INFER, request_body(*[1, 0] * 5, items=5))
                assert 200 == status
                seen.append(reply["outputs"][0]["data"][::2])

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[5.0 * n + i for i in range(1, 6)] for n in range(80)] == sorted(seen)


@pytest.mark.usefixtures("stateful")
def test_inputs_that_do_not_fit_leave_the_state_alone(raw: Raw) -> None:
    """Not an item of a batch runs before all are good."""
    assert 200 == raw.ask("POST", INFER, request_body(3, 0))[0]
    for bad in (request_body(1, 0, 9), request_body(*[1, 0] * 4, items=3), b"{"):
        assert 400 == raw.ask("POST", INFER, bad)[0]
    assert 4.0 == raw.ask("POST", INFER, request_body(1, 0))[2]["outputs"][0]["data"][0]
