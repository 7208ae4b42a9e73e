"""The owner of a device lowers its policy: what is installed obeys it too, with a reason, and never by a crash loop."""

import math
import re
import signal
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent.client import ClientError
from agent.runtime import assemble
from controller.broker import BrokerProcess
from protocol.messages import TrapCount
from tests.agent.rig import Agent, Backend, wait_for
from tests.agent.signing import Bundle, bundle, scale_wat
from tests.contracts.conftest import Peer

pytestmark = pytest.mark.needs("mosquitto")

PAGE = 65_536
SMALL = bundle()
LARGE = bundle("1.1.0", 2, factor=3.0, padding_bytes=2 * PAGE)
"""Needs three pages of memory."""


def allow(agent: Agent, memory_bytes: int) -> None:
    (agent.state_dir / "policy.toml").write_text(f"max_model_memory_bytes = {memory_bytes}")


def cut_off(agent: Agent) -> None:
    """Give the device, which is stopped, a broker that nobody can reach."""
    enrollment = agent.state_dir / "identity/enrollment.json"
    enrollment.write_text(re.sub(r"127.0.0.1:\d+", "127.0.0.1:1", enrollment.read_text()))


def by_restart(agent: Agent) -> None:
    assert 0 == agent.stop()
    agent.start()
    agent.wait_serving()


def by_signal(agent: Agent) -> None:
    agent.process.send_signal(signal.SIGHUP)


def install(agent: Agent, backend: Backend, *releases: Bundle) -> None:
    """Install one release after the other."""
    backend.release(*releases)
    agent.start()
    for release in releases:
        backend.assign(release)
        backend.wait_end(release)


def trouble(agent: Agent) -> str:
    """Return the code of what the status says of the model."""
    return str(agent.status()["problems"].get("model/scale", {}).get("code", ""))


def is_answered_by(agent: Agent, version: str) -> bool:
    try:
        return agent.infer()[0] == version
    except ClientError:
        return version == "none"


@pytest.mark.parametrize("apply", [by_restart, by_signal])
def test_release_above_the_new_cap_makes_way_for_the_one_before(
    agent: Agent, backend: Backend, apply: Callable[[Agent], None]
) -> None:
    """The previous release fits and answers; status and birth name the limit; when it is raised, all is as before."""
    install(agent, backend, SMALL, LARGE)
    allow(agent, PAGE)
    apply(agent)
    wait_for("the one before", lambda: is_answered_by(agent, "1.0.0"), agent.log)
    wait_for("the reason", lambda: trouble(agent) == "contract_exceeds_device", agent.log)
    told = backend.wait("the birth", lambda: next((b for b in backend.liveness if "model/scale" in b.problems), None))
    assert "the device allows 65,536" in told.problems["model/scale"].message
    allow(agent, 3 * PAGE)
    apply(agent)
    wait_for("the newer one", lambda: is_answered_by(agent, "1.1.0"), agent.log)
    wait_for("no problem", lambda: trouble(agent) == "", agent.log)
    backend.wait("a birth without it", lambda: backend.liveness[-1].online and not backend.liveness[-1].problems)


@pytest.mark.parametrize("apply", [by_restart, by_signal])
def test_release_without_one_before_is_stopped(agent: Agent, backend: Backend, apply: Callable[[Agent], None]) -> None:
    """Nothing answers for the model, the agent lives and says why; the release returns when it is allowed again."""
    install(agent, backend, LARGE)
    allow(agent, PAGE)
    apply(agent)
    wait_for("nothing answers", lambda: is_answered_by(agent, "none"), agent.log)
    wait_for("the reason", lambda: trouble(agent) == "contract_exceeds_device", agent.log)
    assert agent.process.poll() is None
    allow(agent, 3 * PAGE)
    apply(agent)
    wait_for("it answers again", lambda: is_answered_by(agent, "1.1.0"), agent.log)


@pytest.mark.parametrize("apply", [by_restart, by_signal])
def test_release_comes_back_without_a_network(agent: Agent, backend: Backend, apply: Callable[[Agent], None]) -> None:
    """A limit that was lowered by mistake costs a device nothing that it could not get again."""
    install(agent, backend, LARGE)
    assert 0 == agent.stop()
    cut_off(agent)
    agent.start()
    agent.wait_serving()
    allow(agent, PAGE)
    apply(agent)
    wait_for("nothing answers", lambda: is_answered_by(agent, "none"), agent.log)
    wait_for("the repair failed", lambda: "does not fit" in str(agent.status()["problems"]), agent.log)
    allow(agent, 3 * PAGE)
    apply(agent)
    wait_for("it answers again", lambda: is_answered_by(agent, "1.1.0"), agent.log)


def test_policy_that_is_not_valid_changes_nothing_while_the_agent_runs(agent: Agent, backend: Backend) -> None:
    """A slip of the pen must not stop a device: the log names it, the old limits stay."""
    install(agent, backend, SMALL)
    (agent.state_dir / "policy.toml").write_text("max_model_memory_bytes = none")
    by_signal(agent)
    wait_for("the log", lambda: "the policy stays as it was" in agent.log())
    assert ("1.0.0", 2.0) == agent.infer()


def test_release_that_fits_the_lower_cap_goes_on(agent: Agent, backend: Backend) -> None:
    """Only what exceeds the limit is stopped."""
    install(agent, backend, SMALL)
    allow(agent, PAGE)
    by_signal(agent)
    wait_for("the log", lambda: "policy read again" in agent.log())
    assert ("1.0.0", 2.0) == agent.infer()
    assert "" == trouble(agent)


def test_signal_changes_at_once_what_is_promised_and_nothing_else(agent: Agent, backend: Backend) -> None:
    """What the device offers to models follows the memory limit; the time limit waits for a restart."""
    install(agent, backend, SMALL)
    before = backend.liveness[-1].capacity
    assert before is not None
    (agent.state_dir / "policy.toml").write_text(f"max_model_memory_bytes = {PAGE}\nmax_deadline_ms = 50")
    by_signal(agent)
    backend.wait("the lower memory limit", lambda: _limits(backend) == (PAGE, before.max_deadline_ms))
    wait_for("the log", lambda: "these wait for the next start: max_deadline_ms" in agent.log())
    by_restart(agent)
    backend.wait("both limits", lambda: _limits(backend) == (PAGE, 50))


def test_nan_is_flagged_as_soon_as_the_policy_says_so(agent: Agent, backend: Backend) -> None:
    """The answer stays what it was, also of a release whose self-test promises NaN; telemetry counts it by output."""
    promises_nan = bundle("1.1.0", 2, vectors=struct.pack("<2f", math.nan, math.nan))
    install(agent, backend, SMALL)
    assert math.isnan(agent.infer(math.nan)[1])
    (agent.state_dir / "policy.toml").write_text('nan_outputs = "flag"')
    by_signal(agent)
    wait_for("the log", lambda: "policy read again" in agent.log())
    backend.release(promises_nan)
    backend.assign(promises_nan)
    backend.wait_end(promises_nan)
    answers = [agent.infer(value) for value in (1.0, math.nan, 2.0, math.nan)]
    assert [("1.1.0", "2.0"), ("1.1.0", "nan"), ("1.1.0", "4.0"), ("1.1.0", "nan")] == [(v, str(y)) for v, y in answers]
    assert 0 == agent.stop()
    traps = [(usage.version, trap) for record in backend.telemetry for usage in record.models for trap in usage.traps]
    assert [("1.1.0", TrapCount(kind="nan_output", layer="y", count=2))] == traps
    assert "1.1.0: NaN in output 'y'; input sha256" in agent.log()


def test_queue_is_as_long_as_the_policy_says(agent: Agent, backend: Backend) -> None:
    """Of two who call a model at once, one is refused where nobody may wait; after a SIGHUP that allows it, none is."""
    spin_at_9 = "(if (f32.eq (f32.load (i32.const 0)) (f32.const 9)) (then (loop $l (br $l))))"
    slow = assemble(scale_wat(2.0, infer=f"{spin_at_9} (i32.const 0)"))
    policy = agent.state_dir / "policy.toml"
    policy.write_text("max_queue = 0")
    install(agent, backend, bundle(wasm=slow, deadline_ms=600))
    assert ["deadline_exceeded", "overloaded"] == _call_at_once(agent, 2)
    policy.write_text("max_queue = 1")
    by_signal(agent)
    wait_for("the log", lambda: "policy read again" in agent.log())
    assert ["deadline_exceeded", "deadline_exceeded"] == _call_at_once(agent, 2)


def _call_at_once(agent: Agent, count: int) -> list[str]:
    """Return the codes of the errors, sorted, that as many callers get who run into the model's deadline together."""
    start = threading.Barrier(count)

    def call(_: int) -> str:
        with agent.client() as client:
            client.metadata("scale")
            start.wait(20)
            with pytest.raises(ClientError) as caught:
                client.infer("scale", {"x": [9.0]})
        return caught.value.code

    with ThreadPoolExecutor(count) as callers:
        return sorted(callers.map(call, range(count)))


def _limits(backend: Backend) -> tuple[int, int] | None:
    capacity = backend.liveness[-1].capacity
    return None if capacity is None else (capacity.max_model_memory_bytes, capacity.max_deadline_ms)


def test_bindings_follow_at_once(agent: Agent, backend: Backend, broker: BrokerProcess) -> None:
    """A binding that is added answers after a SIGHUP, one that is taken away does not any more, and nothing waits."""
    install(agent, backend, SMALL)
    plant = f"plant-{backend.topics.prefix}"
    policy = agent.state_dir / "policy.toml"
    with Peer(broker.url, "5") as sensor:
        sensor.subscribe(f"{plant}/out")
        for topic, reading in (("first", 1.0), ("second", 2.0)):
            sensor.publish(f"{plant}/{topic}", struct.pack("<f", reading), retain=True)
            policy.write_text(
                f'[[bindings]]\nmodel = "scale"\nsubscribe = "{plant}/{topic}"\npublish = "{plant}/out"\nformat = "raw"'
            )
            by_signal(agent)
            assert [struct.pack("<f", 2 * reading)] == [message.payload for message in sensor.receive()]
        sensor.publish(f"{plant}/first", struct.pack("<f", 3.0))
        sensor.publish(f"{plant}/second", struct.pack("<f", 4.0))
        assert [struct.pack("<f", 8.0)] == [message.payload for message in sensor.receive()]
    (counts,) = agent.status()["bindings"]
    assert f"{plant}/second" == counts["subscribe"]
    assert "wait for the next start" not in agent.log()
