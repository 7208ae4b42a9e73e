"""A real agent process on a real broker: the main job, restarts, and everything that must not stop it."""

import hashlib
import json
import re
import struct
import threading
import urllib.request
from pathlib import Path

import msgspec
import pytest

from agent.cli import main
from agent.client import ClientError, InferenceFailedError
from agent.runtime import assemble
from controller.broker import start_broker
from protocol.codec import sha256
from protocol.messages import TrapCount
from tests.agent.rig import Agent, Backend, wait_for
from tests.agent.signing import QUICK, Signing, bundle, removal, scale_wat

pytestmark = pytest.mark.needs("mosquitto")

PHASES = ["retrieved", "downloading", "downloaded", "verifying", "installing", "testing", "activated", "committing"]


def test_release_is_verified_installed_tested_swapped_and_committed(agent: Agent, backend: Backend) -> None:
    """The main job on one device: from the retained documents to a committed release that answers."""
    first = bundle()
    backend.release(first)
    backend.assign(first)
    agent.start()
    receipt = backend.wait_end(first)
    assert [*PHASES, "succeeded"] == backend.states("deploy-scale-1.0.0")
    assert {"download_ms", "verify_ms", "compile_ms", "self_test_ms", "swap_us"} == set(receipt.measures)
    assert ("1.0.0", 2.0) == agent.infer()
    assert 0 == agent.stop()
    assert [] == backend.errors


def test_update_under_load_loses_no_inference(agent: Agent, backend: Backend) -> None:
    """While a client asks without a pause, a new release takes over; every request is answered, by one or the other."""
    first, second = bundle(), bundle("1.1.0", 2, factor=3.0)
    backend.release(first, second)
    backend.assign(first)
    agent.start()
    backend.wait_end(first)
    answers: list[tuple[str, float]] = []
    is_over = threading.Event()

    def ask() -> None:
        with agent.client() as client:
            while not is_over.is_set():
                answer = client.infer("scale", {"x": [1.0]})
                answers.append((answer.version, answer.outputs["y"].values[0]))

    thread = threading.Thread(target=ask)
    thread.start()
    backend.assign(second)
    backend.wait_end(second)
    is_over.set()
    thread.join()
    assert {("1.0.0", 2.0), ("1.1.0", 3.0)} == set(answers)


def test_two_models_are_installed_side_by_side_and_one_is_removed(agent: Agent, backend: Backend) -> None:
    """A device runs several models; a removal takes one away and its files with it."""
    first, other = bundle(), bundle(model="other", factor=5.0)
    backend.release(first, other)
    backend.assign(first, other)
    agent.start()
    backend.wait_end(first)
    backend.wait_end(other)
    assert ("1.0.0", 5.0) == agent.infer(model="other")
    backend.direct(backend.signing.direct(backend.signing.assignment(first, removals=(removal("other", "1.0.0"),))))
    backend.wait("the removal", lambda: "removed" in backend.states("remove-other"))
    assert ["scale"] == [model["model"] for model in agent.status()["models"]]
    assert ("1.0.0", 2.0) == agent.infer()
    kept = {sha256(data) for data in (first.raw, *first.files)}
    wait_for("the files are gone", lambda: kept == {p.name for p in (agent.state_dir / "files").glob("[0-9a-f]*")})


def test_committed_release_is_served_before_there_is_any_network(
    agent: Agent, backend: Backend, tmp_path: Path
) -> None:
    """After a restart with no broker in reach the device answers from its disk."""
    first = bundle()
    backend.release(first)
    backend.assign(first)
    agent.start()
    backend.wait_end(first)
    assert 0 == agent.stop()
    enrollment = agent.state_dir / "identity/enrollment.json"
    enrollment.write_text(re.sub(r"127.0.0.1:\d+", "127.0.0.1:1", enrollment.read_text()))  # nobody listens there
    agent.start()
    agent.wait_serving()
    assert ("1.0.0", 2.0) == agent.infer()
    wait_for("the link says why", lambda: agent.status()["link_problem"])
    assert agent.status()["is_connected"] is False


def test_broker_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    """The agent starts with no broker, tries on, and does its work when the broker comes."""
    with start_broker("mosquitto", port=0, directory=tmp_path / "first") as broker:
        url = broker.url
    signing = Signing()
    signing.enroll(tmp_path / "state", url)
    agent = Agent(tmp_path / "state")
    agent.start()
    agent.wait_serving()
    port = int(url.rpartition(":")[2])
    try:
        with start_broker("mosquitto", port=port, directory=tmp_path / "second"):
            backend = Backend(url, signing)
            first = bundle()
            backend.release(first)
            backend.assign(first)
            backend.wait_end(first)
            backend.close()
    finally:
        agent.stop()


def test_birth_and_death_name_the_session(agent: Agent, backend: Backend) -> None:
    """A birth says what the device is and holds; a clean stop says death, and a kill has the broker say it."""
    agent.start()
    birth = backend.wait("a birth", lambda: next((m for m in backend.liveness if m.online), None))
    assert birth.capacity is not None
    assert (1, (1,), ()) == (birth.session, birth.protocol_versions, birth.slots)
    assert 0 == agent.stop()
    death = backend.wait("a death", lambda: next((m for m in backend.liveness if not m.online), None))
    assert (1, birth.stream) == (death.session, death.stream)
    assert birth.stream
    agent.start()
    backend.wait("the second birth", lambda: any(m.online and m.session == 2 for m in backend.liveness))
    agent.kill()
    backend.wait("the second death", lambda: any(not m.online and m.session == 2 for m in backend.liveness))


def test_birth_names_the_slots_after_a_commit(agent: Agent, backend: Backend) -> None:
    """When the slots change the retained birth says so."""
    first = bundle()
    backend.release(first)
    backend.assign(first)
    agent.start()
    backend.wait_end(first)
    backend.wait(
        "the slots",
        lambda: any([("scale", "1.0.0")] == [(s.model, s.active) for s in m.slots] for m in backend.liveness),
    )


def test_telemetry_counts_what_was_asked_and_survives_a_time_without_controller(agent: Agent, backend: Backend) -> None:
    """Inferences are counted once each, also across a restart while nobody acknowledges."""
    backend.is_acknowledging = False
    first = bundle()
    backend.release(first)
    backend.assign(first)
    agent.start()
    backend.wait_end(first)
    for _ in range(5):
        agent.infer()
    assert 0 == agent.stop()
    agent.start()
    agent.wait_serving()
    for _ in range(3):
        agent.infer()
    assert 0 == agent.stop()

    def inferences() -> int:
        return sum(usage.inferences for record in backend.telemetry for usage in record.models)

    backend.wait("all inferences", lambda: inferences() >= 8)
    assert 8 == inferences()
    assert [] == backend.errors


def test_acknowledged_reports_are_forgotten(agent: Agent, backend: Backend) -> None:
    """The retained ack empties the device's outbox."""
    first = bundle()
    backend.release(first)
    backend.assign(first)
    agent.start()
    backend.wait_end(first)
    wait_for("an empty outbox", lambda: agent.status()["unsent_receipts"] == 0)


def test_second_agent_on_the_same_state_is_refused(agent: Agent, backend: Backend) -> None:
    """Two agents would spoil each other's state: the second one says so and ends."""
    agent.start()
    agent.wait_serving()
    second = Agent(agent.state_dir)
    second.start()
    assert 1 == second.process.wait(10)
    assert "another fleet-agent runs" in agent.log()


def test_release_that_fails_while_it_answers_is_rolled_back_and_no_request_is_lost(
    agent: Agent, backend: Backend
) -> None:
    """A trap during the soak is answered by the release before; the deployment is rolled back, its layer named."""
    trap_above_10 = "(if (f32.gt (f32.load (i32.const 0)) (f32.const 10)) (then unreachable))" + _scale(3)
    first = bundle()
    second = bundle("1.1.0", 2, wasm=assemble(scale_wat(3.0, infer=trap_above_10)))
    backend.release(first, second)
    backend.assign(first)
    agent.start()
    backend.wait_end(first)
    patient = backend.signing.assignment(second, config=msgspec.structs.replace(QUICK, soak_ms=60_000))
    backend.direct(backend.signing.direct(patient))
    backend.wait("the activation", lambda: "activated" in backend.states("deploy-scale-1.1.0"))
    assert ("1.1.0", 3.0) == agent.infer(1.0)
    assert ("1.0.0", 22.0) == agent.infer(11.0)
    receipt = backend.wait_end(second, "rolled_back")
    assert receipt.reason is not None
    assert "trap" == receipt.reason.code
    assert "layer" in receipt.reason.message
    assert ("1.0.0", 2.0) == agent.infer(1.0)


def test_damaged_file_of_the_active_release_is_fetched_again(agent: Agent, backend: Backend) -> None:
    """A release whose file went bad on the disk is not run; the device gets it anew and serves it again."""
    first = bundle()
    backend.release(first)
    backend.assign(first)
    agent.start()
    backend.wait_end(first)
    assert 0 == agent.stop()
    reported = len(backend.receipts)
    (agent.state_dir / "files" / sha256(first.files[0])).write_bytes(b"bad")
    agent.start()
    agent.wait_serving()
    wait_for("the repair", lambda: [m["active"] for m in agent.status()["models"]] == ["1.0.0"], agent.log)
    assert ("1.0.0", 2.0) == agent.infer()
    assert reported == len(backend.receipts)


def _scale(factor: float) -> str:
    return f"(f32.store (i32.const 64) (f32.mul (f32.const {factor}) (f32.load (i32.const 0)))) (i32.const 0)"


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_restart_takes_the_compiled_module_from_the_disk(agent: Agent, backend: Backend, isolation: str) -> None:
    """At either level of isolation a module is compiled once; after a restart it is mapped and answers."""
    (agent.state_dir / "policy.toml").write_text(f'isolation = "{isolation}"')
    first = bundle()
    backend.release(first)
    backend.assign(first)
    agent.start()
    backend.wait_end(first)
    compiled = {p.name: p.stat().st_mtime_ns for p in (agent.state_dir / "compiled").iterdir()}
    assert compiled
    assert 0 == agent.stop()
    agent.start()
    agent.wait_serving()
    assert ("1.0.0", 2.0) == agent.infer()
    assert compiled == {p.name: p.stat().st_mtime_ns for p in (agent.state_dir / "compiled").iterdir()}


def test_local_api_answers_on_a_port_where_the_owner_wants_it(agent: Agent, backend: Backend) -> None:
    """The policy names a loopback address; the status says which port it became."""
    first = bundle()
    backend.release(first)
    backend.assign(first)
    (agent.state_dir / "policy.toml").write_text('http_address = "127.0.0.1:0"\n')
    agent.start()
    backend.wait_end(first)
    unix, port = agent.status()["local_api"]
    assert str(agent.state_dir / "agent.sock") == unix
    with urllib.request.urlopen(f"http://{port}/v2/models/scale/ready", timeout=20) as reply:
        assert {"name": "scale", "ready": True} == json.load(reply)


def test_a_trap_is_told_counted_captured_and_reproduced(
    agent: Agent, backend: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the caller's error over telemetry to `fleet-agent replay`, the layer has one name."""
    infer = "(if (f32.lt (f32.load (i32.const 0)) (f32.const -5)) (then unreachable)) (i32.const 0)"
    first = bundle(wasm=assemble(scale_wat(1, infer=infer)))
    backend.release(first)
    backend.assign(first, config=QUICK)
    (agent.state_dir / "policy.toml").write_text("max_captures = 2\n")
    agent.start()
    backend.wait_end(first)
    with pytest.raises(InferenceFailedError, match="trap in layer 'layer': unreachable code reached"):
        agent.infer(-7.0)

    def traps() -> list[TrapCount]:
        return [trap for record in backend.telemetry for usage in record.models for trap in usage.traps]

    assert [TrapCount(kind="unreachable", layer="layer", count=1)] == backend.wait("the trap", traps)
    assert 0 == main(["captures", "--state", str(agent.state_dir)])
    name, _, _, said = capsys.readouterr().out.split(maxsplit=3)
    assert "trap in layer 'layer'" in said
    assert 0 == main(["replay", name, "--state", str(agent.state_dir)])
    assert "scale 1.0.0: reproduced" in capsys.readouterr().out
    assert 0 == agent.stop()
    assert hashlib.sha256(struct.pack("<f", -7.0)).hexdigest() in agent.log()


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize(
    ("limit", "excess", "message"),
    [
        ("max_deadline_ms = 50", "(loop $l (br $l))", "within 50 ms"),
        ("max_stack_kib = 100", "(call $deep (i32.const 9000))", "at most 64 KiB of stack"),
    ],
)
def test_owner_who_becomes_stricter_binds_what_is_installed(
    agent: Agent, backend: Backend, isolation: str, limit: str, excess: str, message: str
) -> None:
    """After a restart an installed release runs under the stricter of its contract and the device's policy."""
    deep = "(func $deep (param i32) (if (local.get 0) (then (call $deep (i32.sub (local.get 0) (i32.const 1))))))"
    infer = f"(if (f32.gt (f32.load (i32.const 0)) (f32.const 10)) (then {excess})) {_scale(2)}"
    wasm = assemble(f"{scale_wat(2.0, infer=infer)[:-1]} {deep})")
    first = bundle(wasm=wasm, deadline_ms=10_000, stack_kib=1024)
    backend.release(first)
    backend.assign(first)
    agent.start()
    backend.wait_end(first)
    if "stack" in limit:
        assert ("1.0.0", 22.0) == agent.infer(11.0)
    assert 0 == agent.stop()
    (agent.state_dir / "policy.toml").write_text(f'isolation = "{isolation}"\n{limit}\n')
    agent.start()
    agent.wait_serving()
    assert ("1.0.0", 2.0) == agent.infer(1.0)
    with pytest.raises(ClientError, match=message):
        agent.infer(11.0)
    assert ("1.0.0", 2.0) == agent.infer(1.0)
