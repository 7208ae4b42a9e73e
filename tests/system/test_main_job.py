"""The main job, end to end: push, verify, install, self-test, swap, commit, report, query."""

from typing import Any

import pytest

from controller.broker import MqttVersion
from tests.system.rig import Rig, affine, wait_for

pytestmark = pytest.mark.needs("mosquitto")


def states(rollout: Any) -> dict[str, str]:
    """Return the state of each device's deployment."""
    return {d["device"]: d["state"] for d in rollout["deployments"]}


@pytest.mark.parametrize("broker", ["mosquitto", "embedded"])
@pytest.mark.parametrize("mqtt", ["3.1.1", "5"])
def test_push_reaches_a_device_that_answers(
    broker: str, mqtt: MqttVersion, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """On either broker and either version of MQTT a pushed model is committed and answers on the device."""
    rig = Rig(tmp_path_factory.mktemp("rig"), broker=broker, mqtt=mqtt)
    try:
        rig.start()
        device = rig.enroll("edge-1")
        device.start()

        rollout = rig.push(2)

        assert rollout["state"] == "finished"
        assert states(rollout) == {"edge-1": "succeeded"}
        assert device.infer("affine", 21.0) == ("2.0.0", 42.0)
    finally:
        rig.close()


def test_second_release_replaces_the_first_and_the_old_one_stays(rig: Rig) -> None:
    """A second release is swapped in; the device keeps the first as its previous one."""
    device = rig.enroll("edge-1")
    device.start()
    rig.push(2)

    rig.push(3)

    assert device.infer("affine", 10.0) == ("3.0.0", 30.0)
    wait_for("the slots are reported", lambda: bool(rig.ok("devices", "show", "edge-1")["slots"]))
    slots = {m["model"]: (m["active"], m["previous"]) for m in device.status()["models"]}
    assert slots == {"affine": ("3.0.0", "2.0.0")}


def test_two_models_live_side_by_side(rig: Rig) -> None:
    """Pushing another model leaves the first one alone."""
    device = rig.enroll("edge-1")
    device.start()
    rig.push(2)

    rig.ok("push", str(affine(rig.folder, 5, "other")), "--soak-ms=100", "--wait")

    assert device.infer("affine", 1.0) == ("2.0.0", 2.0)
    assert device.infer("other", 1.0) == ("5.0.0", 5.0)


def test_push_to_a_group_leaves_the_others_alone(rig: Rig) -> None:
    """Only the devices of the group get the release."""
    for name, group in (("edge-1", "north"), ("edge-2", "south")):
        rig.enroll(name, group).start()

    rollout = rig.push(2, "--to", "north")

    assert states(rollout) == {"edge-1": "succeeded"}
    installed = {d["id"]: [m["installed"] for m in d["models"]] for d in rig.ok("devices", "list")}
    assert installed["edge-1"] == ["2.0.0"]
    assert installed["edge-2"] in ([], [None])


def test_failed_self_test_keeps_the_active_release_and_says_why(rig: Rig) -> None:
    """A release that answers wrongly on the device fails; the operator reads the reason; the old one serves."""
    device = rig.enroll("edge-1")
    device.start()
    rig.push(2)
    vectors = rig.folder / "vectors.json"
    vectors.write_text('{"inputs": [{"x": [1.0]}], "outputs": [{"y": [99.0]}]}')

    rollout = rig.push(3, "--skip-preflight", "--test-data", str(vectors), status=3)

    assert states(rollout) == {"edge-1": "failed"}
    assert rollout["deployments"][0]["reason"]["code"] == "self_test_failed"
    assert "99" in rollout["deployments"][0]["reason"]["message"]
    assert device.infer("affine", 10.0) == ("2.0.0", 20.0)
    explained = rig.ok("devices", "explain", "edge-1", "--model", "affine")
    assert "self-test" in str(explained)


def test_failed_release_does_not_block_the_next(rig: Rig) -> None:
    """After a failure the next release is installed as if nothing had been."""
    device = rig.enroll("edge-1")
    device.start()
    vectors = rig.folder / "vectors.json"
    vectors.write_text('{"inputs": [{"x": [1.0]}], "outputs": [{"y": [99.0]}]}')
    rig.push(2, "--skip-preflight", "--test-data", str(vectors), status=3)

    rollout = rig.push(3)

    assert states(rollout) == {"edge-1": "succeeded"}
    assert device.infer("affine", 1.0) == ("3.0.0", 3.0)


def test_device_that_is_away_gets_the_release_when_it_comes(rig: Rig) -> None:
    """What was pushed while a device was off waits for it on the broker."""
    device = rig.enroll("edge-1")
    rollout = rig.push(2, wait=False)

    device.start()

    assert states(rig.rollout_ended(rollout["id"])) == {"edge-1": "succeeded"}


def test_older_release_can_be_deployed_again_until_it_is_retired(rig: Rig) -> None:
    """The operator may go back to an older release, but not below the floor that the targets key signed."""
    device = rig.enroll("edge-1")
    device.start()
    rig.push(2)
    rig.push(3)

    back = rig.push(2, "--version", "2.0.0")
    rig.push(3, "--version", "3.0.0")
    rig.ok("releases", "retire", "affine", "2.0.0", "--yes")
    refused = rig.fleetctl("push", str(affine(rig.folder, 2)), "--version", "2.0.0", "--wait")

    assert states(back) == {"edge-1": "succeeded"}
    assert refused.status in (1, 3)
    assert "below" in refused.out + refused.err or "retired" in refused.out + refused.err
    assert device.infer("affine", 1.0) == ("3.0.0", 3.0)


def test_yanked_release_goes_to_nobody_else(rig: Rig) -> None:
    """A yanked release stays where it runs and is refused everywhere else, with the operator's own words."""
    rig.enroll("edge-1").start()
    rig.push(2)
    rig.enroll("edge-2").start()

    rig.ok("releases", "yank", "affine", "2.0.0", "--reason", "drifts at night")
    refused = rig.fleetctl("push", str(affine(rig.folder, 2)), "--to", "edge-2", "--wait")

    assert refused.status in (1, 3)
    assert "drifts at night" in refused.out + refused.err
    assert rig.devices["edge-1"].infer("affine", 1.0) == ("2.0.0", 2.0)


def test_undeployed_model_is_removed_from_the_device(rig: Rig) -> None:
    """After `models undeploy` the device has the model no more, and says so."""
    device = rig.enroll("edge-1")
    device.start()
    rig.push(2)

    rig.ok("models", "undeploy", "affine", "--wait")

    assert device.status()["models"] == []
    assert [m for m in rig.ok("devices", "show", "edge-1")["models"] if m["installed"]] == []
    # The document after the removal changes nothing on the device, which says all the same that it obeys it.
    wait_for("it is in sync", lambda: rig.ok("devices", "show", "edge-1")["state"] == "in_sync")


def test_dry_run_says_who_gets_it_and_changes_nothing(rig: Rig) -> None:
    """`push --dry-run` names each device with its bytes, and the one that is refused with the reason."""
    rig.enroll("edge-1").start()
    small = rig.enroll("edge-2")
    (small.state / "policy.toml").write_text("max_model_memory_bytes = 1024\n")
    small.start()
    wait_for("both are online", lambda: {d["liveness"] for d in rig.ok("devices", "list")} == {"online"})

    planned = rig.ok("push", str(affine(rig.folder, 2)), "--dry-run")["plan"]

    decisions = {d["device"]: d["decision"] for d in planned["devices"]}
    assert decisions == {"edge-1": "deploy", "edge-2": "refused"}
    reasons = {d["device"]: d["reason"] for d in planned["devices"]}
    assert "memory" in reasons["edge-2"]
    assert rig.ok("releases", "list") == []
    assert rig.ok("rollouts", "list") == []


def test_telemetry_reaches_the_dashboard_queries(rig: Rig) -> None:
    """Inferences on the device show up in the latency query, as many as there were."""
    device = rig.enroll("edge-1")
    device.start()
    rig.push(2)
    for value in range(50):
        device.infer("affine", float(value))

    def counted() -> int:
        result = rig.ok("query", "--sql", "SELECT coalesce(sum(inferences), 0) FROM usage_log WHERE model = 'affine'")
        return int(result["rows"][0][0])

    wait_for("50 inferences are in the database", lambda: counted() == 50)
    latency = rig.ok("query", "latency")
    assert dict(zip(latency["columns"], latency["rows"][0], strict=True))["model"] == "affine"
