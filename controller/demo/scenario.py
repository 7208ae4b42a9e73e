"""What `fleetctl demo` shows, step by step, with the commands that a user would type."""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from controller.demo.fleet import DemoDevice, DemoFleet
from controller.demo.processes import DemoError, run
from controller.demo.traffic import Counts, Sample, Traffic

_KILLED_AT = "install.tested:2"
"""The fault point at which one agent dies: its second install, after the self-test and before the swap."""
_KILL_TIMEOUT_S = 30.0
_TRAIN_TIMEOUT_S = 120.0
_MIN_REQUESTS = 200
MODEL = "digits"
DEVICES = ("edge-1", "edge-2", "edge-3")


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """The demo's closing line."""

    devices: int
    succeeded: int
    failed: int
    inferences: int
    lost_inferences: int
    interrupted: int
    accuracy: float
    swap_ms_p50: float
    seconds: float


Say = Callable[[str], None]


def run_demo(folder: Path, say: Say) -> DemoResult:
    """Run the whole demo in `folder`, telling the story through `say`; raises DemoError when a step goes wrong."""
    digits = _examples() / "digits"
    samples = _train(digits, say)
    started = time.monotonic()
    say("Starting a broker, a controller and three agents, each a process of its own…")
    with DemoFleet(folder, DEVICES) as fleet:
        scenario = _Scenario(fleet, digits / "build", samples, say)
        try:
            return scenario.play(started)
        finally:
            scenario.close()


class _Scenario:
    def __init__(self, fleet: DemoFleet, build: Path, samples: tuple[Sample, ...], say: Say) -> None:
        self._fleet = fleet
        self._build = build
        self._say = say
        self._rollouts: list[dict[str, Any]] = []
        self._traffic = [Traffic(d.socket, MODEL, samples, d.is_up) for d in fleet.devices]

    def close(self) -> None:
        for traffic in self._traffic:
            traffic.close()

    def play(self, started: float) -> DemoResult:
        *steady, victim = self._fleet.devices
        for device in steady:
            device.start()
        victim.start(fault=_KILLED_AT)
        self._first_release()
        self._hot_swap(victim)
        self._bad_release()
        self.close()
        self._say("\n$ fleetctl devices\n" + self._fleet.fleetctl("devices"))
        return self._result(time.monotonic() - started)

    def _first_release(self) -> None:
        self._push("1.0.0", "A first release for everyone: softmax regression.")
        for device in self._fleet.devices:
            device.serve(MODEL)
        for traffic in self._traffic:
            traffic.start()
        self._await_answers("1.0.0")
        self._say("  all three classify real images of handwritten digits")

    def _hot_swap(self, victim: DemoDevice) -> None:
        self._push("1.1.0", "A better model while inference runs; edge-3 loses power in the middle.", during=victim)
        self._await_answers("1.1.0")
        self._say("  all three answer with 1.1.0, no request was lost")

    def _bad_release(self) -> None:
        vectors = str(self._build / "digits-1.2.0.vectors.json")
        extra = ("--skip-preflight", "--test-data", vectors)
        rollout = self._push(
            "1.2.0", "A release that is broken, pushed past the preflight on purpose.", *extra, accept=(3,)
        )
        for deployment in rollout["deployments"]:
            self._say(f"  {deployment['device']}: {deployment['state']}: {deployment['reason']['message']}")
        for device in self._fleet.fleetctl_json("devices"):
            running = [m["installed"] for m in device["models"] if m["model"] == MODEL]
            if running != ["1.1.0"]:
                raise DemoError(f"{device['id']} should have kept 1.1.0, it has {running}")
        self._say("  every device keeps 1.1.0")

    def _push(
        self, version: str, why: str, *extra: str, during: DemoDevice | None = None, accept: tuple[int, ...] = (0,)
    ) -> dict[str, Any]:
        args = ["push", str(self._build / f"{MODEL}-{version}.wasm"), "--soak-ms=1000", *extra]
        typed = " ".join(Path(word).name for word in (args[1], *extra))
        self._say(f"\n# {why}\n$ fleetctl push {typed}")
        if during is None:
            pushed = self._fleet.fleetctl_json(*args, "--wait", accept=accept)
        else:
            pushed = self._fleet.fleetctl_json(*args, "--no-wait")
            during.wait_killed(_KILL_TIMEOUT_S)
            self._say(f"  {during.name} was killed (SIGKILL) in the middle of the installation; starting it again…")
            during.start()
            during.serve(MODEL)
            self._fleet.fleetctl("rollouts", "watch", pushed["rollout"]["id"], accept=accept)
        rollout: dict[str, Any] = self._fleet.fleetctl_json("rollouts", "show", pushed["rollout"]["id"])
        self._rollouts.append(rollout)
        counts = ", ".join(f"{count} {state}" for state, count in sorted(rollout["counts"].items()))
        self._say(f"  rollout {rollout['id']} {rollout['state']}: {counts}")
        return rollout

    def _await_answers(self, version: str) -> None:
        """Wait until every device has answered some requests with `version`."""
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        goal = {id(t): t.counts.answered + _MIN_REQUESTS for t in self._traffic}
        while not all(version in t.counts.versions and t.counts.answered >= goal[id(t)] for t in self._traffic):
            if time.monotonic() > deadline:
                raise DemoError(f"not every device answers with {version}: {[t.counts for t in self._traffic]}")
            time.sleep(0.05)

    def _result(self, seconds: float) -> DemoResult:
        counts: list[Counts] = [t.counts for t in self._traffic]
        states = [d["state"] for r in self._rollouts for d in r["deployments"]]
        swaps = [
            d["measures"]["swap_us"] for r in self._rollouts for d in r["deployments"] if d["state"] == "succeeded"
        ]
        answered = sum(c.answered for c in counts)
        return DemoResult(
            devices=len(counts),
            succeeded=states.count("succeeded"),
            failed=states.count("failed"),
            inferences=answered,
            lost_inferences=sum(len(c.lost) for c in counts),
            interrupted=sum(c.interrupted for c in counts),
            accuracy=round(sum(c.correct for c in counts) / answered, 4),
            swap_ms_p50=round(statistics.median(swaps) / 1000, 3),
            seconds=round(seconds, 1),
        )


def _examples() -> Path:
    found = Path(__file__).parents[2] / "examples"
    if not (found / "digits" / "train.py").exists():
        raise DemoError("the demo needs the examples: run it from a checkout of the project, with `make demo`")
    return found


def _train(digits: Path, say: Say) -> tuple[Sample, ...]:
    test_images = digits / "build" / "test_images.json"
    if not test_images.exists():
        say("Training two models on scikit-learn's handwritten digits (once)…")
        run([sys.executable, str(digits / "train.py")], timeout_s=_TRAIN_TIMEOUT_S)
    data = msgspec.json.decode(test_images.read_bytes())
    return tuple(
        Sample(image=tuple(image), label=label) for image, label in zip(data["images"], data["labels"], strict=True)
    )
