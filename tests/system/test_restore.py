"""Backup and restore with real processes: what devices have seen meanwhile does not make them deaf."""

import pytest

from tests.system.rig import Rig, affine, wait_for


def active(rig: Rig, name: str) -> str | None:
    """Return the release of the model that the device runs, as it says itself."""
    models = {model["model"]: model for model in rig.devices[name].status()["models"]}
    return str(models["affine"]["active"]) if "affine" in models else None


def known(rig: Rig) -> dict[str, str]:
    """Return what the service believes about devices that are online and obey it."""
    return {
        device["id"]: model["installed"]
        for device in rig.ok("devices", "list")
        for model in device["models"]
        if (device["liveness"], device["state"]) == ("online", "in_sync") and model["installed"] != "1.0.0"
    }


@pytest.mark.slow
def test_devices_obey_a_fleet_that_was_restored(rig: Rig) -> None:
    """They keep what they have committed since, the service learns it, and a new release reaches both."""
    for name in ("press-1", "press-2"):
        rig.enroll(name).start()
    rig.push(1)
    refused = rig.fleetctl("backup", str(rig.folder / "fleet.backup"))
    assert (0, "") == (refused.status, refused.err)
    rig.push(2)
    rig.push(3)
    rig.devices["press-2"].stop()
    running = rig.fleetctl("restore", str(rig.folder / "fleet.backup"))
    assert (1, True) == (running.status, "another service runs" in running.err)
    rig.kill_service()
    rig.ok("restore", str(rig.folder / "fleet.backup"))
    rig.start_service()
    # The last release was pushed before press-2 left: whatever the backup says, both have it.
    wait_for("press-1 tells", lambda: known(rig) == {"press-1": "3.0.0"})
    rig.devices["press-2"].start()
    wait_for("press-2 tells as well", lambda: known(rig) == {"press-1": "3.0.0", "press-2": "3.0.0"})
    assert ["3.0.0", "3.0.0"] == [active(rig, name) for name in rig.devices]
    releases = rig.ok("releases", "list")
    assert {"1.0.0", "2.0.0", "3.0.0"} == {release["version"] for release in releases}
    rollout = rig.push(4)
    assert {"succeeded": 2} == rollout["counts"]
    wait_for("all is well", lambda: {"in_sync"} == {device["state"] for device in rig.ok("devices", "list")})


@pytest.mark.slow
def test_deployment_that_ended_after_the_backup_does_not_stay_open(rig: Rig) -> None:
    """The backup has the document that the device obeyed, not its receipts: the device is asked, and says it again."""
    device = rig.enroll("press-1")
    rollout = rig.push(1, wait=False)
    assert {"queued": 1} == rollout["counts"]
    rig.ok("devices", "show", "press-1")
    wait_for("the document is signed", lambda: rig.ok("devices", "show", "press-1")["director_version"] > 0)
    done = rig.fleetctl("backup", str(rig.folder / "fleet.backup"))
    assert done.status == 0, done.err
    device.start()
    assert {"succeeded": 1} == rig.rollout_ended(rollout["id"])["counts"]
    wait_for("all is told", lambda: device.status()["unsent_receipts"] == 0)
    rig.kill_service()
    rig.ok("restore", str(rig.folder / "fleet.backup"))
    rig.start_service()
    assert {"already_installed": 1} == rig.rollout_ended(rollout["id"])["counts"]
    assert active(rig, "press-1") == "1.0.0"
    assert {"succeeded": 1} == rig.push(2)["counts"]


@pytest.mark.slow
def test_a_server_that_was_lost_with_its_broker_is_healed_by_the_operator(rig: Rig) -> None:
    """An old backup, an empty broker, and files that are gone: the refusal names the command, which heals all three."""
    device = rig.enroll("press-1")
    device.start()
    rig.push(1)
    done = rig.fleetctl("backup", str(rig.folder / "fleet.backup"))
    assert done.status == 0, done.err
    rig.push(2)
    rig.push(3)
    rig.lose_server_and_broker()
    rig.ok("restore", str(rig.folder / "fleet.backup"))
    rig.start()
    refused = rig.fleetctl("push", str(affine(rig.folder, 4)))
    assert (1, True) == (refused.status, "returned targets version 2, this operator has seen 4" in refused.err)
    assert "releases recover" in refused.err
    recovered = rig.ok("releases", "recover")
    assert {"version": 4, "missing": ["affine@2.0.0", "affine@3.0.0"]} == recovered
    again = rig.ok("push", str(affine(rig.folder, 3)), "--wait", "--timeout", "45")
    assert (False, {"already_installed": 1}) == (again["is_new"], again["rollout"]["counts"])
    assert {"succeeded": 1} == rig.push(4)["counts"]
    wait_for("all is well", lambda: {"in_sync"} == {device["state"] for device in rig.ok("devices", "list")})
