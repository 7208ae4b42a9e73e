"""Why a device runs what it runs: the real reasons, and the next step."""

import msgspec
import pytest

from controller.api.schema import Explanation
from controller.commands import releases as release_commands
from controller.commands import rollouts as rollout_commands
from controller.errors import NotFoundError
from controller.reads.explain import explain_device
from controller.trust import image
from protocol.messages import Reason
from tests.controller.service.fleet import CAPACITY, HAPPY, OPERATOR, FleetCore, bundle, slot


def explain(fleet: FleetCore, device: str, model: str | None = None) -> Explanation:
    with fleet.core.store.read() as session:
        return explain_device(session, fleet.core.files, device, model)


def because(fleet: FleetCore, device: str = "press-1") -> str:
    return "\n".join(explain(fleet, device).models[0].because)


def test_a_device_that_runs_what_it_should(fleet: FleetCore) -> None:
    """Which rollout brought it, and when; nothing is left to do."""
    release = fleet.release(bundle())
    device = fleet.enroll("press-1")
    rollout = fleet.roll_out("double", "1.0.0")
    fleet.say(device, "receipts", device.report(rollout.deployments[0].id, release, HAPPY))
    found = explain(fleet, "press-1")
    (model,) = found.models
    expected = f"it runs 1.0.0 because rollout {rollout.id} succeeded at 2026-01-15T12:00:00Z"
    assert ((expected,), "1.0.0", "1.0.0", None) == (model.because, model.installed, model.desired, found.next_step)
    assert "press-1 is online and in sync; it runs double 1.0.0" == found.summary


def test_a_device_that_was_never_online(fleet: FleetCore) -> None:
    """The next step is to start the agent."""
    fleet.release(bundle())
    fleet.enroll("press-1", is_born=False)
    rollout = fleet.roll_out("double", "1.0.0")
    found = explain(fleet, "press-1")
    text = because(fleet)
    assert f"rollout {rollout.id} is to move it to 1.0.0: queued since" in text
    assert "was never online: it has to come back first" in text
    assert "fleet-agent run" in (found.next_step or "")


def test_a_device_that_is_offline(fleet: FleetCore) -> None:
    """Since when; it goes on by itself."""
    fleet.release(bundle())
    device = fleet.enroll("press-1")
    fleet.say(device, "liveness", device.liveness(online=False))
    fleet.roll_out("double", "1.0.0")
    found = explain(fleet, "press-1")
    assert "offline since 2026-01-15T12:00:00Z: it has to come back first" in because(fleet)
    assert "nothing to do" in (found.next_step or "")


def test_a_device_whose_deployment_failed(fleet: FleetCore) -> None:
    """The device's own reason, and what it runs instead."""
    release = fleet.release(bundle(version="1.0.0", counter=1))
    broken = fleet.release(bundle(version="1.1.0", counter=2))
    device = fleet.enroll("press-1")
    first = fleet.roll_out("double", "1.0.0")
    fleet.say(device, "receipts", device.report(first.deployments[0].id, release, HAPPY))
    second = fleet.roll_out("double", "1.1.0")
    reason = Reason.of("self_test_failed", "vector 0 of output y differs")
    report = device.report(second.deployments[0].id, broken, (*HAPPY[:6], "failed"), reason)
    fleet.say(device, "receipts", report)
    text, step = because(fleet), explain(fleet, "press-1").next_step
    assert "it runs 1.0.0 because" in text
    assert "it does not run 1.1.0 because its deployment" in text
    assert "failed" in text
    assert "vector 0 of output y differs (self_test_failed)" in text
    assert f"fleetctl rollouts show {second.id}" in (step or "")


@pytest.mark.parametrize(
    "code", ["disk_full", "disk_quota", "no_timer", "out_of_memory", "process_start", "stack_limit"]
)
def test_a_device_at_fault_gets_the_same_release_again(fleet: FleetCore, code: str) -> None:
    """No new release mends a full disk; what is advised brings the release to the device."""
    release = fleet.release(bundle())
    device = fleet.enroll("press-1")
    first = fleet.roll_out("double", "1.0.0")
    reason = Reason.of(code, "the device has no room")
    fleet.say(device, "receipts", device.report(first.deployments[0].id, release, (*HAPPY[:2], "failed"), reason))
    assert (
        "correct that on the device (`fleet-agent status` there says more), then "
        "`fleetctl rollouts start double 1.0.0 --to press-1`" == explain(fleet, "press-1").next_step
    )
    second = fleet.roll_out("double", "1.0.0", "press-1")
    fleet.say(device, "receipts", device.report(second.deployments[0].id, release, HAPPY))
    assert ("1.0.0", None) == (explain(fleet, "press-1").models[0].installed, explain(fleet, "press-1").next_step)


def test_a_device_that_was_not_targeted(fleet: FleetCore) -> None:
    """By whom the release went instead, or that no rollout was started."""
    fleet.release(bundle())
    fleet.enroll("press-1")
    fleet.enroll("press-2", "line-2")
    assert "no rollout of the newest release, 1.0.0, was started" in because(fleet)
    rollout = fleet.roll_out("double", "1.0.0", "line-2")
    text, step = because(fleet), explain(fleet, "press-1").next_step
    assert "no rollout has brought double to this device" in text
    assert f"rollout {rollout.id} of 1.0.0 did not include it: it went to line-2" in text
    assert "fleetctl rollouts start double 1.0.0 --to press-1" == step


def test_a_device_that_cannot_take_it(fleet: FleetCore) -> None:
    """By what it said about itself; when that has changed, by what the rollout said then."""
    fleet.release(bundle(memory_bytes=32 << 20))
    device = fleet.enroll("press-1")
    fleet.enroll("press-2")
    less = msgspec.structs.replace(CAPACITY, max_model_memory_bytes=1 << 20)
    fleet.say(device, "liveness", device.liveness(capacity=less))
    rollout = fleet.roll_out("double", "1.0.0")
    assert "it does not get the newest release: double 1.0.0 does not fit: needs 33,554,432 bytes" in because(fleet)
    fleet.say(device, "liveness", device.liveness())
    assert f"rollout {rollout.id} of 1.0.0 refused it: double 1.0.0 does not fit" in because(fleet)


def test_a_release_that_was_yanked(fleet: FleetCore) -> None:
    """A device that runs it keeps it; another does not get it."""
    release = fleet.release(bundle())
    one = fleet.enroll("press-1")
    fleet.enroll("press-2")
    rollout = fleet.roll_out("double", "1.0.0", "press-1")
    fleet.say(one, "receipts", one.report(rollout.deployments[0].id, release, HAPPY))
    release_commands.yank(fleet.core, "double", "1.0.0", "wrong labels", OPERATOR)
    assert "double 1.0.0 was yanked: wrong labels; a device that runs it keeps it" in because(fleet)
    assert "it does not get the newest release: double 1.0.0 was yanked: wrong labels" in because(fleet, "press-2")
    assert "fleetctl rollouts start double --to press-1" == explain(fleet, "press-1").next_step


def test_a_release_that_was_retired(fleet: FleetCore) -> None:
    """It is below the signed floor."""
    release = fleet.release(bundle(version="1.0.0", counter=1))
    fleet.release(bundle(version="2.0.0", counter=2))
    device = fleet.enroll("press-1")
    rollout = fleet.roll_out("double", "1.0.0")
    fleet.say(device, "receipts", device.report(rollout.deployments[0].id, release, HAPPY))
    signer = fleet.workspace.operator.targets_signer
    raised = image.raise_floor(fleet.targets(), "double", 2, signer, fleet.clock())
    release_commands.accept_targets(fleet.core, raised, OPERATOR)
    assert "double 1.0.0 was retired" in because(fleet)


def test_a_deployment_that_was_stopped_or_replaced(fleet: FleetCore) -> None:
    """The operator's own doing."""
    fleet.release(bundle(version="1.0.0", counter=1))
    fleet.release(bundle(version="2.0.0", counter=2))
    fleet.enroll("press-1")
    fleet.roll_out("double", "1.0.0")
    second = fleet.roll_out("double", "2.0.0")
    rollout_commands.stop(fleet.core, second.id, OPERATOR)
    assert "it does not run 2.0.0 because its deployment was canceled" in because(fleet)
    assert "the rollout was stopped" in because(fleet)


def test_a_model_that_was_removed(fleet: FleetCore) -> None:
    """By which rollout."""
    release = fleet.release(bundle())
    device = fleet.enroll("press-1")
    first = fleet.roll_out("double", "1.0.0")
    fleet.say(device, "receipts", device.report(first.deployments[0].id, release, HAPPY))
    second = fleet.roll_out("double", None)
    assert f"rollout {second.id} is to remove double: queued since" in because(fleet)
    fleet.say(device, "receipts", device.report(second.deployments[0].id, release, ("retrieved", "removed")))
    assert f"rollout {second.id} removed double at" in because(fleet)


def test_a_device_that_says_something_else_than_the_record(fleet: FleetCore) -> None:
    """What it had active when it connected is told, too."""
    release = fleet.release(bundle())
    device = fleet.enroll("press-1")
    rollout = fleet.roll_out("double", "1.0.0")
    fleet.say(device, "receipts", device.report(rollout.deployments[0].id, release, HAPPY))
    fleet.say(device, "liveness", device.liveness(slots=(slot("double", "0.9.0"),)))
    assert "the device itself had 0.9.0 active" in because(fleet)


def test_what_does_not_exist_cannot_be_explained(fleet: FleetCore) -> None:
    """Neither a device nor a model."""
    with pytest.raises(NotFoundError, match="no device"):
        explain(fleet, "nobody")
    fleet.enroll("press-1")
    with pytest.raises(NotFoundError, match="no model"):
        explain(fleet, "press-1", "triple")
    assert "press-1 is online and in sync; it runs no model" == explain(fleet, "press-1").summary
