"""A model that remembers, called over HTTP: one call after another, each on what the one before left."""

import json
import struct
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.cli import main
from agent.client import LocalClient, SequenceLostError
from agent.host import InferResult, ModelHost
from agent.runtime import Zygote
from agent.serving.gate import Gate
from agent.serving.listeners import UnixListener
from agent.serving.openinference import RequestParameters
from agent.serving.sequences import IDLE_S, SequenceError, Sequences
from agent.serving.service import LocalService
from agent.usage import UsageMeter
from tests.agent.rig import wait_for
from tests.agent.serving.callers import RESET, SUM, Raw, Status, activate, request_body

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


def call(raw: Raw, value: float, **parameters: Any) -> float | str:
    """Return the model's answer, or what is wrong with the call."""
    status, headers, reply = raw.ask("POST", INFER, request_body(value, 0, **parameters))
    assert "connection" not in headers
    if status == 200:
        return float(reply["outputs"][0]["data"][0])
    assert (409, "wrong_sequence") == (status, reply["code"])
    return str(reply["error"])


@pytest.mark.usefixtures("stateful")
def test_a_call_that_starts_forgets_what_came_before(raw: Raw) -> None:
    """Without an id it is a plain reset; a batch forgets before its first item alone."""
    assert [3.0, 7.0] == [call(raw, 3), call(raw, 4)]
    assert [1.0, 3.0] == [call(raw, 1, sequence_start=True), call(raw, 2)]
    batch = request_body(*[1, 0] * 3, items=3, sequence_start=True)
    assert [1.0, 2.0, 3.0] == raw.ask("POST", INFER, batch)[2]["outputs"][0]["data"][::2]


@pytest.mark.usefixtures("stateful")
@pytest.mark.parametrize("name", [1, (1 << 64) - 1, "camera-2"])
def test_calls_of_others_are_kept_out_of_a_sequence(raw: Raw, name: int | str) -> None:
    """A model has one state: who would disturb it, or go on from it unknowingly, hears so and changes nothing."""
    wanted = "digits: expected a call that starts a sequence, got one of"
    assert str(call(raw, 1, sequence_id=name)).startswith(wanted)
    assert 1.0 == call(raw, 1, sequence_id=name, sequence_start=True)
    for other in ({}, {"sequence_id": 0}, {"sequence_id": ""}, {"sequence_id": 2}, {"sequence_id": "x"}):
        assert f"expected a call of the sequence {name!r}, got one of" in str(call(raw, 9, **other))
    assert 3.0 == call(raw, 2, sequence_id=name)
    assert 6.0 == call(raw, 3, sequence_id=name, sequence_end=True)
    assert str(call(raw, 1, sequence_id=name)).startswith(wanted)
    assert 1.0 == call(raw, 1, sequence_start=True)


@pytest.mark.usefixtures("stateful")
def test_a_new_sequence_takes_over(raw: Raw) -> None:
    """A program that died in the middle of a sequence locks nobody out, and would hear of it if it lived."""
    assert 1.0 == call(raw, 1, sequence_id=1, sequence_start=True)
    assert 5.0 == call(raw, 5, sequence_id=2, sequence_start=True)
    assert "expected a call of the sequence 2, got one of 1" in str(call(raw, 1, sequence_id=1))
    assert 6.0 == call(raw, 1, sequence_id=2)
    assert 7.0 == call(raw, 7, sequence_start=True)
    assert "got one of 2" in str(call(raw, 1, sequence_id=2))


def test_a_sequence_whose_state_is_gone_begins_again(raw: Raw, host: ModelHost, isolation: Zygote | None) -> None:
    """Going on from nothing would be a wrong answer: after a swap, a rollback and a fault the caller is told."""
    trap_at_9 = "(if (f32.eq (f32.load (i32.const 0)) (f32.const 9)) (then unreachable))" + SUM

    def start(version: str) -> None:
        activate(host, version, infer=trap_at_9, reset=RESET, isolation=isolation)

    start("1.0.0")
    gone = "the state of the sequence 1 is gone, since a release was swapped or the model went wrong"
    for lose in (
        lambda: start("2.0.0"),
        lambda: host.rollback("digits"),
        lambda: raw.ask("POST", INFER, request_body(9, 0, sequence_id=1)),
    ):
        assert 1.0 == call(raw, 1, sequence_id=1, sequence_start=True)
        lose()
        assert gone in str(call(raw, 2, sequence_id=1))
        assert "expected a call that starts a sequence" in str(call(raw, 2, sequence_id=1))
    assert [2.0, 4.0] == [call(raw, 2), call(raw, 2)]


def test_a_sequence_that_nobody_continues_keeps_nobody_out(host: ModelHost) -> None:
    """After a minute without a call others come in; it goes on itself if none did, else it hears that it is over."""
    activate(host, infer=SUM, reset=RESET)
    now_s = 0.0
    sequences = Sequences(host, lambda: now_s)
    one = [[struct.pack("<2f", 1, 0)]]

    def total(**marks: Any) -> float:
        (result,) = sequences.run("digits", one, RequestParameters(**marks))
        return float(struct.unpack("<2f", result.outputs[0])[0])

    assert 1.0 == total(sequence_id=1, sequence_start=True)
    now_s += IDLE_S * 2
    assert 2.0 == total(sequence_id=1)
    now_s += IDLE_S - 1
    with pytest.raises(SequenceError, match="expected a call of the sequence 1, got one of none"):
        total()
    now_s += 1
    with pytest.raises(SequenceError, match="expected a call that starts a sequence, got one of 2"):
        total(sequence_id=2)
    assert 3.0 == total()
    with pytest.raises(SequenceError, match="expected a call that starts a sequence, got one of 1"):
        total(sequence_id=1)


class SwappingHost(ModelHost):
    """A host in which another release is swapped in right after the second call."""

    calls = 0

    def infer(self, model_name: str, inputs: Sequence[bytes], state: object | None = None) -> InferResult:
        result = super().infer(model_name, inputs, state)
        self.calls += 1
        if self.calls == 2:
            activate(self, "2.0.0", infer=SUM, reset=RESET)
        return result


def test_a_batch_is_of_one_release_and_its_state(path: Path) -> None:
    """When a release is swapped in within a batch, that answers all of it, once and from its own beginning."""
    host = SwappingHost(UsageMeter(), lambda *_: None)
    activate(host, infer=SUM, reset=RESET)
    service = LocalService([UnixListener(path)], host, Status)
    service.start()
    with Raw(path) as raw:
        _, _, reply = raw.ask("POST", INFER, request_body(*[1, 0] * 4, items=4))
        assert ("2.0.0", [1.0, 2.0, 3.0, 4.0]) == (reply["model_version"], reply["outputs"][0]["data"][::2])
        assert 5.0 == call(raw, 1)
    service.close()
    host.close()


def test_a_call_that_waited_finds_the_release_of_its_turn(path: Path, host: ModelHost) -> None:
    """One that was let in to a release without a state keeps the rules of the one with a state that was swapped in."""
    activate(host)
    gate = Gate()
    service = LocalService([UnixListener(path)], host, Status, gate=gate)
    service.start()
    with Raw(path) as raw:
        answers: list[float | str] = []
        caller = threading.Thread(target=lambda: answers.append(call(raw, 1, sequence_id=5)))
        with gate.turn("digits", time.monotonic() + 20):
            caller.start()
            wait_for("the call waits", lambda: bool(gate._lanes["digits"].waiting))
            activate(host, "2.0.0", infer=SUM, reset=RESET)
        caller.join(20)
        (answer,) = answers
        assert "expected a call that starts a sequence, got one of 5" in str(answer)
    service.close()


def test_a_call_for_a_version_that_went_while_it_waited_changes_no_state(path: Path, host: ModelHost) -> None:
    """The release that was swapped in is not asked, and remembers what it did before."""
    activate(host)
    gate = Gate()
    service = LocalService([UnixListener(path)], host, Status, gate=gate)
    service.start()
    with Raw(path) as raw:
        statuses: list[int] = []
        old = "/v2/models/digits/versions/1.0.0/infer"
        caller = threading.Thread(target=lambda: statuses.append(raw.ask("POST", old, request_body(1, 0))[0]))
        with gate.turn("digits", time.monotonic() + 20):
            caller.start()
            wait_for("the call waits", lambda: bool(gate._lanes["digits"].waiting))
            activate(host, "2.0.0", infer=SUM, reset=RESET)
        caller.join(20)
        assert ([404], 1.0) == (statuses, call(raw, 1))
    service.close()


def test_a_model_without_a_state_takes_calls_of_any_sequence(raw: Raw, host: ModelHost) -> None:
    """Its calls do not depend on each other, whatever the caller says of them."""
    activate(host)
    for parameters in ({"sequence_id": 5}, {"sequence_start": True}, {"sequence_id": "a", "sequence_end": True}):
        assert 4.0 == call(raw, 2, **parameters)


@pytest.mark.parametrize(
    "parameters",
    [
        {"sequence_id": -1},
        {"sequence_id": 1 << 64},
        {"sequence_id": "a" * 129},
        {"sequence_id": [1]},
        {"sequence_start": 1},
        {"sequence_end": "yes"},
    ],
)
def test_marks_that_are_none_are_refused(raw: Raw, host: ModelHost, parameters: dict[str, Any]) -> None:
    """An id has at most 64 bits or 128 characters."""
    activate(host, infer=SUM, reset=RESET)
    assert 400 == raw.ask("POST", INFER, request_body(1, 0, **parameters))[0]


def test_a_reset_that_goes_wrong_is_a_fault_of_the_model(raw: Raw, host: ModelHost, isolation: Zygote | None) -> None:
    """It is told with its layer, and the state is gone as was asked: the next call has a fresh instance."""
    activate(host, infer=SUM, reset=RESET, isolation=isolation)
    trap = f"(if (f32.gt (f32.load (i32.const 128)) (f32.const 0)) (then unreachable)) {RESET}"
    activate(host, "2.0.0", infer=SUM, reset=trap, isolation=isolation)
    assert 3.0 == call(raw, 3)
    status, _, reply = raw.ask("POST", INFER, request_body(1, 0, sequence_start=True))
    assert (500, "trap", "reset") == (status, reply["code"], reply["fault"]["layer"])
    assert 1.0 == call(raw, 1)


@pytest.mark.usefixtures("stateful")
def test_client_starts_goes_on_and_ends(client: LocalClient, path: Path) -> None:
    """The marks are arguments of the call, and what does not fit has an error of its own."""

    def add(value: float, **marks: Any) -> float:
        return float(client.infer("digits", {"x": [value, 0]}, **marks).outputs["y"].values[0])

    assert [1.0, 3.0] == [add(1, sequence_id="a", sequence_start=True), add(2, sequence_id="a")]
    with pytest.raises(SequenceLostError, match="expected a call of the sequence 'a'") as lost:
        add(1)
    assert "wrong_sequence" == lost.value.code
    assert [6.0, 1.0] == [add(3, sequence_id="a", sequence_end=True), add(1, sequence_start=True)]


@pytest.mark.usefixtures("stateful", "service")
def test_the_command_starts_before_the_first_of_a_series(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fleet-agent infer --start`: one input, or a file of several; without it the model goes on."""
    series = tmp_path / "series.jsonl"
    series.write_text("[1, 0]\n[2, 0]\n")
    (tmp_path / "one.json").write_text("[5, 0]")
    command = ["infer", "digits", "--json", "--state", str(path.parent), "--input"]
    got = []
    for more in ([str(series), "--start"], [str(series)], [str(tmp_path / "one.json"), "--start"]):
        assert 0 == main([*command, *more])
        lines = capsys.readouterr().out.splitlines()
        got.append([json.loads(line)["outputs"]["y"]["values"][0] for line in lines])
    assert [[1.0, 3.0], [4.0, 6.0], [5.0]] == got
