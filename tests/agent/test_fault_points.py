"""The power goes at every named point: the agent comes back, serves what was committed, and finishes its work."""

import contextlib
import itertools
from collections.abc import Callable

import msgspec
import pytest

from agent import faults
from agent.client import ClientError
from agent.runtime import assemble
from protocol.chunks import cut
from protocol.lifecycle import DEPLOYMENT, allows
from tests.agent.rig import CHUNK_BYTES, Agent, Backend
from tests.agent.signing import QUICK, Bundle, bundle, removal, scale_wat

pytestmark = pytest.mark.needs("mosquitto")

ROLLBACK = ("rollback.before", "rollback.after")
REMOVAL = ("remove.before_unload", "collect.after_unlink")
INSTALLATION = tuple(point for point in faults.POINTS if point not in ROLLBACK + REMOVAL)
COMMITS = [f"state.{when}_commit:{nth}" for when in ("before", "after") for nth in range(1, 10)]


@pytest.mark.parametrize("point", INSTALLATION)
def test_death_during_an_installation(agent: Agent, backend: Backend, point: str) -> None:
    """A device that dies at this point while it installs its first release ends with that release committed."""
    die_and_finish(agent, backend, point)


@pytest.mark.slow
@pytest.mark.parametrize("point", COMMITS)
def test_death_around_every_transaction_of_an_update(agent: Agent, backend: Backend, point: str) -> None:
    """The same around each single commit of the database, while a release before it is served."""
    first, second = bundle(), bundle("1.1.0", 2, factor=3.0)
    backend.release(first, second)
    backend.assign(first)
    agent.start()
    backend.wait_end(first)
    assert 0 == agent.stop()
    backend.assign(second)
    agent.start(fault=point)
    agent.wait_killed()
    agent.start()
    agent.wait_serving()
    assert agent.infer() in [("1.0.0", 2.0), ("1.1.0", 3.0)]
    backend.wait_end(second)
    assert ("1.1.0", 3.0) == agent.infer()
    assert_legal(backend)


@pytest.mark.slow
@pytest.mark.parametrize("nth", [5, 9, 14])
def test_chunks_that_were_written_are_not_fetched_again(agent: Agent, backend: Backend, nth: int) -> None:
    """After a death in the middle of a download only the chunks that are missing are taken."""
    release = bundle(padding_bytes=60_000)
    backend.release(release)
    backend.assign(release)
    agent.start(fault=f"fetch.chunk_written:{nth}")
    agent.wait_killed()
    taken = set(backend.wants)
    backend.publish(backend.topics.chunk(cut(release.files[0], CHUNK_BYTES).blob, 0), b"")  # gone from the broker
    backend.is_answering = False
    die_and_finish_again(agent, backend, release)
    assert taken == set(backend.wants)


@pytest.mark.parametrize("point", ROLLBACK)
def test_death_during_a_rollback(agent: Agent, backend: Backend, point: str) -> None:
    """A device that dies while it takes a faulty release out serves the one before, and says rolled_back."""
    first = bundle()
    faulty = bundle("1.1.0", 2, wasm=assemble(scale_wat(2.0, infer=TRAP_ABOVE_10)))
    backend.release(first, faulty)
    backend.assign(first)
    agent.start(fault=point)
    backend.wait_end(first)
    patient = backend.signing.assignment(faulty, config=msgspec.structs.replace(QUICK, soak_ms=60_000))
    backend.direct(backend.signing.direct(patient))
    backend.wait("the activation", lambda: "activated" in backend.states("deploy-scale-1.1.0"))
    with contextlib.suppress(ClientError):  # it may die before the answer is out
        agent.infer(11.0)
    agent.wait_killed()
    agent.start()
    agent.wait_serving()
    assert ("1.0.0", 22.0) == agent.infer(11.0)
    backend.wait_end(faulty, "rolled_back")
    assert_legal(backend)


@pytest.mark.parametrize("point", REMOVAL)
def test_death_during_a_removal(agent: Agent, backend: Backend, point: str) -> None:
    """A device that dies while it removes a model has removed it when it comes back, and keeps the other one."""
    first, other = bundle(), bundle(model="other")
    backend.release(first, other)
    backend.assign(first, other)
    agent.start(fault=point)
    backend.wait_end(first)
    backend.wait_end(other)
    backend.direct(backend.signing.direct(backend.signing.assignment(first, removals=(removal("other", "1.0.0"),))))
    agent.wait_killed()
    agent.start()
    backend.wait("the removal", lambda: "removed" in backend.states("remove-other"))
    agent.wait_serving()
    assert ["scale"] == [model["model"] for model in agent.status()["models"]]
    assert ("1.0.0", 2.0) == agent.infer()
    assert_legal(backend)


def test_unknown_fault_point_is_refused(agent: Agent, backend: Backend) -> None:
    """A misspelt point must not look like a point that is never reached."""
    agent.start(fault="no.such.point")
    assert 1 == agent.process.wait(30)
    assert "expected one of" in agent.log()


def die_and_finish(agent: Agent, backend: Backend, point: str) -> None:
    """Install a release, die at `point`, start again, and see the end of it."""
    release = bundle()
    backend.release(release)
    backend.assign(release)
    agent.start(fault=point)
    agent.wait_killed()
    die_and_finish_again(agent, backend, release)


def die_and_finish_again(agent: Agent, backend: Backend, release: Bundle) -> None:
    agent.start()
    backend.wait_end(release)
    agent.wait_serving()
    assert ("1.0.0", 2.0) == agent.infer()
    assert_legal(backend)


def assert_legal(backend: Backend) -> None:
    """Every receipt that was heard follows the one before it as the table allows."""
    assert [] == backend.errors
    by_deployment: Callable[..., str] = lambda receipt: receipt.deployment_id  # noqa: E731 - the key of a sort
    ordered = sorted(sorted(backend.receipts, key=lambda receipt: receipt.seq), key=by_deployment)
    for deployment_id, receipts in itertools.groupby(ordered, by_deployment):
        states = ["queued", *(receipt.state for receipt in receipts)]
        for old, new in itertools.pairwise(states):
            assert allows(DEPLOYMENT, old, new), f"{deployment_id}: {states}"  # type: ignore[arg-type] # states of the table


TRAP_ABOVE_10 = """(if (f32.gt (f32.load (i32.const 0)) (f32.const 10)) (then unreachable))
  (f32.store (i32.const 64) (f32.mul (f32.const 2) (f32.load (i32.const 0)))) (i32.const 0)"""
