"""Processes around the daemon are killed, as the kernel does when memory is short: it lives, and serves."""

import contextlib
import random
import resource
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.client import ClientError
from agent.runtime import assemble
from protocol.assignment import AssignedRelease
from tests.agent.processes import COMPILER, children, cpu_ticks, held, kill, killing
from tests.agent.rig import Agent, Backend, wait_for
from tests.agent.signing import Bundle, bundle, scale_wat

pytestmark = pytest.mark.needs("mosquitto")

GOOD = bundle()
NEXT = bundle("1.1.0", 2, factor=3.0)
ZYGOTE = "agent.runtime.zygote_process"
SLOW_BODY = """(local $n i32)
  (loop $l
    (local.set $n (i32.add (local.get $n) (i32.const 1)))
    (br_if $l (i32.lt_u (local.get $n) (i32.const 800000000))))
  (f32.store (i32.const 64) (f32.mul (f32.const 3) (f32.load (i32.const 0)))) (i32.const 0)"""
SLOW = bundle(
    "1.1.0",
    2,
    wasm=assemble(scale_wat(3.0, infer=SLOW_BODY)),
    vectors=struct.pack("<2f", 1.0, 3.0),
    memory_bytes=65_536,
    deadline_ms=10_000,
)
"""A release whose self-test takes long enough to be killed in the middle."""


@pytest.mark.slow
def test_release_that_there_is_no_memory_to_compile_fails_as_such_and_can_be_deployed_later(
    agent: Agent, backend: Backend
) -> None:
    """The receipt blames the device and not the release; what was active serves, and a later attempt succeeds."""
    backend.release(GOOD, NEXT)
    backend.assign(GOOD)
    agent.start()
    backend.wait_end(GOOD)
    with killing(agent.process.pid, COMPILER) as killed:
        backend.assign(NEXT)
        receipt = backend.wait_end(NEXT, "failed")
    assert receipt.reason is not None
    assert "out_of_memory" == receipt.reason.code
    assert "Free some memory on the device" in receipt.reason.message
    assert 3 == len(killed)
    assert ("1.0.0", 2.0) == agent.infer()
    again = AssignedRelease(model="scale", version="1.1.0", deployment_id="again")
    backend.assign(releases=(again,))
    wait_for("the release", lambda: agent.infer() == ("1.1.0", 3.0), agent.log)


@pytest.mark.slow
def test_release_is_installed_when_memory_was_short_for_a_moment(agent: Agent, backend: Backend) -> None:
    """The compiler is started again after a pause: the module is as good as before."""
    backend.release(GOOD)
    agent.start()
    with killing(agent.process.pid, COMPILER, times=1) as killed:
        backend.assign(GOOD)
        backend.wait_end(GOOD)
    assert (1, ("1.0.0", 2.0)) == (len(killed), agent.infer())


def serve_in_processes(agent: Agent, backend: Backend, *releases: Bundle) -> int:
    """Let the agent serve the first of the releases in a process of its own, and return the zygote's."""
    (agent.state_dir / "policy.toml").write_text('isolation = "process"\n')
    backend.release(*releases)
    backend.assign(releases[0])
    agent.start()
    backend.wait_end(releases[0])
    agent.infer()
    return zygote_of(agent)


def zygote_of(agent: Agent) -> int:
    (zygote,) = children(agent.process.pid, ZYGOTE)
    return zygote


def in_self_test(zygote: int, active: list[int]) -> int:
    """Wait until a process besides the `active` ones computes, and return it."""

    def busy() -> list[int]:
        return [pid for pid in children(zygote) if pid not in active and cpu_ticks(pid) > 5]

    wait_for("the self-test", busy)
    return busy()[0]


@pytest.mark.slow
def test_candidate_that_dies_in_its_self_test_fails_while_the_active_release_serves(
    agent: Agent, backend: Backend
) -> None:
    """Its process is not that of the active release, which answers as before, from the same process."""
    zygote = serve_in_processes(agent, backend, GOOD, SLOW)
    active = children(zygote)
    backend.assign(SLOW)
    kill(in_self_test(zygote, active))
    receipt = backend.wait_end(SLOW, "failed")
    assert receipt.reason is not None
    assert "process_died" == receipt.reason.code
    assert ("1.0.0", 6.0) == agent.infer(3.0)
    assert active == children(zygote)


@pytest.mark.slow
def test_release_that_gets_no_timer_fails_as_such_and_can_be_deployed_later(agent: Agent, backend: Backend) -> None:
    """The receipt blames the device and not the release; what was active serves, and a later attempt succeeds."""
    zygote = serve_in_processes(agent, backend, GOOD, NEXT)
    soft, hard = resource.prlimit(zygote, resource.RLIMIT_SIGPENDING)
    resource.prlimit(zygote, resource.RLIMIT_SIGPENDING, (0, hard))
    backend.assign(NEXT)
    receipt = backend.wait_end(NEXT, "failed")
    assert receipt.reason is not None
    assert "no_timer" == receipt.reason.code
    assert "then deploy the release again" in receipt.reason.message
    assert ("1.0.0", 2.0) == agent.infer()
    resource.prlimit(zygote, resource.RLIMIT_SIGPENDING, (soft, hard))
    again = AssignedRelease(model="scale", version="1.1.0", deployment_id="again")
    backend.assign(releases=(again,))
    wait_for("the release", lambda: agent.infer() == ("1.1.0", 3.0), agent.log)


@pytest.mark.slow
def test_zygote_that_dies_during_a_self_test_stops_neither_the_candidate_nor_the_active_release(
    agent: Agent, backend: Backend
) -> None:
    """Both go on without it; the next process that is needed comes from a new one."""
    zygote = serve_in_processes(agent, backend, GOOD, SLOW)
    active = children(zygote)
    backend.assign(SLOW)
    in_self_test(zygote, active)
    kill(zygote)
    assert ("1.0.0", 6.0) == agent.infer(3.0)
    backend.wait_end(SLOW)
    backend.assign(GOOD)
    backend.assign(releases=(AssignedRelease(model="scale", version="1.0.0", deployment_id="back"),))
    wait_for("the release", lambda: agent.infer(3.0) == ("1.0.0", 6.0), agent.log)
    assert zygote != zygote_of(agent)


def answer(agent: Agent) -> tuple[str, float] | str:
    """Return what the agent answers, or the code of its error."""
    try:
        return agent.infer(3.0)
    except ClientError as error:
        return error.code


@contextlib.contextmanager
def storm(agent: Agent) -> Iterator[list[int]]:
    """Kill a process of a model, or now and then the zygote, every few milliseconds; give who was killed."""
    rng = random.Random(1)
    killed: list[int] = []
    is_over = threading.Event()

    def strike() -> None:
        while not is_over.wait(rng.uniform(0.001, 0.05)):
            victims = children(agent.process.pid, ZYGOTE) if rng.random() < 0.1 else held(agent.process.pid)
            for victim in victims[-1:] if rng.random() < 0.5 else victims:
                kill(victim)
                killed.append(victim)

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        yield killed
    finally:
        is_over.set()
        striker.join()


@pytest.mark.slow
def test_daemon_serves_through_a_storm_of_deaths(agent: Agent, backend: Backend) -> None:
    """Processes die idle, in calls, while they start, in self-tests and swaps: errors are typed, answers right."""
    releases = [bundle(f"1.{n}.0", n + 1, factor=float(n + 2)) for n in range(6)]
    serve_in_processes(agent, backend, *releases)
    rights = {(each.manifest.version, 3.0 * (n + 2)) for n, each in enumerate(releases)}
    seen: set[tuple[str, float] | str] = set()
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(0.001):
            seen.add(answer(agent))

    caller = threading.Thread(target=ask)
    caller.start()
    try:
        with storm(agent) as killed:
            for release in releases[1:-1]:
                backend.assign(release)
                time.sleep(2)
            wait_for("many deaths", lambda: len(killed) > 100, agent.log)
    finally:
        is_over.set()
        caller.join()
    assert agent.process.poll() is None, agent.log()
    assert rights | {"process_died", "process_gone", "process_start"} >= seen
    backend.assign(releases[-1])
    backend.wait_end(releases[-1])
    assert ("1.5.0", 21.0) == agent.infer(3.0)
    zygote = zygote_of(agent)
    wait_for("no more than two releases", lambda: len(children(zygote)) <= 2, agent.log)
    assert [zygote] == children(agent.process.pid)
    assert len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir())) < 60
