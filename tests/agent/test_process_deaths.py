"""Processes around the daemon are killed, as the kernel does when memory is short: it lives, and serves."""

import pytest

from protocol.assignment import AssignedRelease
from tests.agent.processes import COMPILER, killing
from tests.agent.rig import Agent, Backend, wait_for
from tests.agent.signing import bundle

pytestmark = pytest.mark.needs("mosquitto")

GOOD = bundle()
NEXT = bundle("1.1.0", 2, factor=3.0)


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
