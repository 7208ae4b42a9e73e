"""Tests of the main job from the operator's side: push, watch, explain, with real agents."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from protocol.lifecycle import GOOD_ENDS
from tests.controller.cli.fleets import ENVIRONMENT, Fleet, wait_until
from tests.controller.wat_models import DOUBLE, TRIPLE, wasm

SOAK = ("--soak-ms", "100", "--timeout", "45")


@pytest.fixture(scope="module")
def device(fleet: Fleet) -> str:
    """One agent that takes whatever comes."""
    fleet.start_device("cam-1", "site-a")
    return "cam-1"


@pytest.fixture(scope="module")
def small_device(fleet: Fleet) -> str:
    """One that was enrolled, reports little memory and a short patience."""
    fleet.start_device("small-1", "site-small", policy="max_model_memory_bytes = 65536\nmax_deadline_ms = 100\n")
    return "small-1"


def test_a_push_is_followed_to_its_end(fleet: Fleet, device: str, doubler: Path) -> None:
    """Every phase is a line, the end is a table, the exit code is 0, and the device runs the release."""
    done = fleet.run("push", str(doubler), "--model", "followed", "--to", device, "--wait", *SOAK)
    assert (0, "") == (done.returncode, done.stderr)
    assert "✓ 1 of 1 device ended well" in done.stdout
    assert "cam-1  succeeded" in done.stdout
    listed = fleet.run("devices", "--to", "site-a").stdout
    assert "followed 1.0.0" in listed
    assert "online" in listed


def test_a_followed_push_is_one_document(fleet: Fleet, device: str, doubler: Path) -> None:
    """With --json the document comes at the end, with the rollout as it ended."""
    pushed = fleet.ask("push", str(doubler), "--model", "documented", "--to", device, "--wait", *SOAK)
    rollout = pushed["rollout"]
    assert ("finished", ["succeeded"]) == (rollout["state"], [d["state"] for d in rollout["deployments"]])
    assert rollout == fleet.ask("rollouts", "show", rollout["id"])
    assert pushed["upload"]["files"] == 3


def test_a_release_that_fails_says_why(fleet: Fleet, device: str, doubler: Path) -> None:
    """A self-test that fails on the device is exit code 3, with the reason and the next command on the screen."""
    vectors = doubler.with_suffix(".json")
    vectors.write_text(json.dumps({"inputs": [[1, 2]], "outputs": [[2, 5]]}))
    args = ("--model", "broken", "--to", device, "--wait", "--skip-preflight", "--test-data", str(vectors), *SOAK)
    done = fleet.run("push", str(doubler), *args)
    assert 3 == done.returncode
    assert "self_test_failed: self-test vector 0, output 'y', element 1: expected 5" in done.stdout
    assert f"next: fleetctl --home {fleet.home} devices explain cam-1" == done.stdout.splitlines()[-1]
    explained = fleet.run("devices", "explain", device, "--model", "broken").stdout
    assert "self-test vector 0" in explained
    failures = fleet.ask("query", "failures", "--param", "model=broken")
    assert "self_test_failed" in failures["rows"][0]


def test_who_is_refused_is_told_with_the_reason(fleet: Fleet, device: str, small_device: str, doubler: Path) -> None:
    """A device that is too small is left out of the rollout, and the plan says so before."""
    doubler.write_bytes(wasm(memory="4 4"))
    to = ("--to", device, "--to", small_device)
    planned = fleet.ask("push", str(doubler), "--model", "large", *to, "--dry-run")["plan"]["devices"]
    assert {device: "deploy", small_device: "refused"} == {p["device"]: p["decision"] for p in planned}
    words = fleet.run("push", str(doubler), "--model", "large", *to, "--dry-run").stdout
    assert "needs 262,144 bytes of memory, the device allows 65,536" in " ".join(words.split())
    assert "dry run: 1 device would get it (" in words
    pushed = fleet.run("push", str(doubler), "--model", "large", *to, "--wait", *SOAK)
    assert (0, True) == (pushed.returncode, "small-1 refused: " in pushed.stdout)


def test_a_release_that_nobody_can_take_is_not_made(fleet: Fleet, small_device: str, doubler: Path) -> None:
    """When every device refuses, nothing is signed."""
    doubler.write_bytes(wasm(deadline_ms=5_000))
    done = fleet.run("push", str(doubler), "--model", "slow", "--to", small_device)
    assert 1 == done.returncode
    assert "no device can take it, nothing was released: small-1: " in done.stderr
    assert "slow" not in {m["name"] for m in fleet.ask("models")}


def test_watching_writes_a_line_for_each_change(fleet: Fleet, device: str, doubler: Path) -> None:
    """JSON lines, the last one final; the exit code is that of the rollout."""
    pushed = fleet.ask("push", str(doubler), "--model", "watched", "--to", device, "--no-wait", "--soak-ms", "100")
    done = fleet.run("rollouts", "watch", pushed["rollout"]["id"], "--json")
    documents: list[Any] = [json.loads(line) for line in done.stdout.splitlines()]
    assert (0, "finished") == (done.returncode, documents[-1]["state"])
    assert {d["state"] for d in documents[-1]["deployments"]} <= GOOD_ENDS
    assert "1 of 1 device ended well" in fleet.run("rollouts", "watch", pushed["rollout"]["id"]).stdout


def test_a_device_that_is_away_can_be_waited_for_or_not(fleet: Fleet, doubler: Path) -> None:
    """When time is up the exit code is 3; a stopped rollout is final."""
    fleet.enroll("away-1")
    done = fleet.run("push", str(doubler), "--model", "waiting", "--to", "away-1", "--wait", "--timeout", "0.3")
    assert (3, True) == (done.returncode, "✗ 0 of 1 device ended well" in done.stdout)
    rollout = fleet.ask("rollouts", "--model", "waiting")[0]["id"]
    assert f"next: fleetctl --home {fleet.home} rollouts watch {rollout}" == done.stdout.splitlines()[-1]
    assert f"{rollout} is stopped\n" == fleet.run("rollouts", "stop", rollout).stdout
    assert 3 == fleet.run("rollouts", "watch", rollout).returncode


def test_a_model_can_be_removed(fleet: Fleet, device: str, doubler: Path) -> None:
    """Undeploying takes it off the device; the release stays."""
    fleet.ask("push", str(doubler), "--model", "removed", "--to", device, "--wait", *SOAK)
    planned = fleet.run("models", "undeploy", "removed", "--to", device, "--dry-run").stdout
    assert "dry run: 1 device would remove it, 0 refused; nothing was changed" in planned
    done = fleet.run("models", "undeploy", "removed", "--to", device, "--wait", "--timeout", "45")
    assert (0, True) == (done.returncode, "cam-1  removed" in done.stdout)
    assert "removed" not in {m["model"] for m in fleet.ask("devices", "show", device)["models"] if m["installed"]}
    assert 1 == len(fleet.ask("releases", "--model", "removed"))


def test_a_later_device_is_told_how_to_get_the_release(fleet: Fleet, device: str, doubler: Path) -> None:
    """`devices explain` names a command, and that command brings the release to the device that came later."""
    fleet.ask("push", str(doubler), "--model", "early", "--to", device, "--wait", *SOAK)
    fleet.start_device("latecomer")
    advised = fleet.ask("devices", "explain", "latecomer", "--model", "early")["next_step"]
    assert "fleetctl rollouts start early 1.0.0 --to latecomer" == advised
    done = fleet.run(*advised.split()[1:], "--wait", *SOAK)
    assert (0, True) == (done.returncode, "1 of 1 device ended well" in done.stdout), done.stdout
    (model,) = fleet.ask("devices", "show", "latecomer")["models"]
    assert ("early", "1.0.0") == (model["model"], model["installed"])


def test_an_older_release_can_be_started_again(fleet: Fleet, device: str, doubler: Path) -> None:
    """Without a version it is the newest that may be installed; a yanked one is passed over."""
    for number, infer in enumerate((DOUBLE, TRIPLE)):
        doubler.write_bytes(wasm(infer))
        fleet.ask("push", str(doubler), "--model", "again", "--version", f"1.{number}.0", "--to", device, "--no-wait")
    start = ("rollouts", "start", "again", "--to", device, "--dry-run")
    assert "model again · version 1.1.0 (the newest) · to cam-1" in fleet.run(*start).stdout
    fleet.ask("releases", "yank", "again", "1.1.0", "--reason", "test")
    assert "1.0.0" == fleet.ask(*start)["version"]
    started = fleet.ask("rollouts", "start", "again", "1.0.0", "--to", device, "--wait", *SOAK)
    assert ("1.0.0", "finished") == (started["version"], started["state"])
    fleet.ask("releases", "yank", "again", "1.0.0", "--reason", "test")
    refused = fleet.run(*start)
    assert (1, True) == (refused.returncode, "again has no release that may be installed" in refused.stderr)


def test_groups_can_be_changed(fleet: Fleet) -> None:
    """A device is put into groups and taken out of others in one command."""
    fleet.enroll("moved-1", "here")
    assert "moved-1 is in here\n" == fleet.run("devices", "group", "moved-1").stdout
    moved = fleet.ask("devices", "group", "moved-1", "--add", "there", "--add", "far", "--remove", "here")
    assert ["far", "there"] == sorted(moved["groups"])
    assert ["moved-1"] == [d["id"] for d in fleet.ask("devices", "--to", "far")]


def test_a_device_is_shown_with_its_slots(fleet: Fleet, device: str, doubler: Path) -> None:
    """What runs, what ran before and what is to run stand in one table."""
    for infer in (DOUBLE, TRIPLE):
        doubler.write_bytes(wasm(infer))
        fleet.ask("push", str(doubler), "--model", "slotted", "--to", device, "--wait", *SOAK)
    shown = [line.split() for line in fleet.run("devices", "show", device).stdout.splitlines()]
    row = next(words for words in shown if words and words[0] == "slotted")
    assert ["slotted", "1.0.1", "1.0.1", "1.0.0", "succeeded"] == row


def terminal(fleet: Fleet, *args: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start `fleetctl ARGS` on a terminal of 80 columns; return the process and the terminal's other end."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from controller.entry import main; main()", "--home", str(fleet.home), *args],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
        start_new_session=True,
    )
    os.close(theirs)
    return process, ours


def read_all(descriptor: int) -> str:
    """Return everything that a terminal shows until the last program on it has ended."""
    parts = []
    while True:
        try:
            part = os.read(descriptor, 65_536)
        except OSError:  # Linux says EIO when nobody is left at the other end
            break
        if not part:
            break
        parts.append(part)
    os.close(descriptor)
    return b"".join(parts).decode()


def test_on_a_terminal_a_push_is_followed_by_itself(fleet: Fleet, device: str, doubler: Path) -> None:
    """A person sees a table that redraws itself, without having to say --wait."""
    process, screen = terminal(fleet, "push", str(doubler), "--model", "live", "--to", device, *SOAK)
    shown = read_all(screen)
    assert 0 == process.wait(60)
    assert "\x1b[" in shown
    assert "0 of 1 device done" in shown
    assert "1 of 1 device ended well" in shown


def test_ctrl_c_leaves_the_rollout_going(fleet: Fleet, doubler: Path) -> None:
    """The rollout does not depend on the terminal, and the screen says how to find it again."""
    fleet.enroll("away-2")
    process, screen = terminal(fleet, "push", str(doubler), "--model", "left", "--to", "away-2")
    wait_until(lambda: any(r["model"] == "left" for r in fleet.ask("rollouts")), "the rollout")
    seen = os.read(screen, 65_536).decode()
    while "devices done" not in seen and "device done" not in seen:
        seen += os.read(screen, 65_536).decode()
    process.send_signal(signal.SIGINT)
    rest = read_all(screen)
    assert 130 == process.wait(60)
    rollout = fleet.ask("rollouts", "--model", "left")[0]
    assert "running" == rollout["state"]
    assert f"fleetctl --home {fleet.home} rollouts watch {rollout['id']}" in " ".join(rest.split())
    assert "Traceback" not in rest
