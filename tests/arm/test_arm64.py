"""A device on ARM64, emulated: the agent's whole life with a real controller, and its answers beside those of x86.

The emulator shows that the agent is right on that architecture; it says nothing of its speed.
"""

import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.demo.processes import Process
from tests.system.rig import ROLLOUT_TIMEOUT_S, Device, Rig, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.needs("qemu", "mosquitto"), pytest.mark.timeout(600)]

SETUP = Path(__file__).with_name("setup.sh")
AGENT = "from agent.cli import main; raise SystemExit(main())"
COUNT = 16
VALUES = [(-1) ** n * (n + 0.37) / 7 for n in range(COUNT)]
PATIENT = ("--timeout", "180")

MODEL = """(module
  (memory (export "memory") 1 1)
  (func (export "fleet_input") (param i32) (result i32) i32.const 1024)
  (func (export "fleet_output") (param i32) (result i32) i32.const 2048)
  (func $layer (export "fleet_infer") (result i32) (local $i i32) (local $x v128) (local $a v128)
    (if (f32.gt (f32.load (i32.const 1024)) (f32.const {limit})) (then unreachable))
    (loop $l
      (local.set $x (v128.load offset=1024 (local.get $i)))
      ;; One rounding or two: what relaxed_madd gives must be the same on both.
      (local.set $a (f32x4.relaxed_madd (local.get $x) (v128.const f32x4 1.1 2.3 0.7 {scale}) (local.get $a)))
      (v128.store offset=2048 (local.get $i) (f32x4.sqrt (f32x4.abs (f32x4.div (local.get $a)
        (f32x4.add (f32x4.mul (local.get $x) (local.get $x)) (v128.const f32x4 0.1 0.2 0.3 0.4))))))
      (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 16))) (i32.const 48))))
    ;; Bytes in range, so that the relaxed dot product is the same everywhere.
    (v128.store offset=2048 (i32.const 48) (f32x4.convert_i32x4_s (i32x4.relaxed_dot_i8x16_i7x16_add_s
      (i8x16.narrow_i16x8_s
        (i16x8.narrow_i32x4_s (i32x4.trunc_sat_f32x4_s (local.get $a)) (i32x4.splat (i32.const {scale})))
        (i16x8.splat (i32.const -3)))
      (v128.const i8x16 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 127) (i32x4.splat (i32.const 5)))))
    i32.const 0))
"""
SPEC = """name = "mixed"
version = "{version}"
[[inputs]]
name = "x"
datatype = "FP32"
shape = [16]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [16]
"""


@pytest.fixture(scope="session")
def arm_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launcher of an aarch64 Python with this tree's agent; what it needs is downloaded once into a cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wasmfleet" / "arm64"
    folder = tmp_path_factory.mktemp("launcher")
    done = subprocess.run([SETUP, cache, folder], capture_output=True, text=True, timeout=400, check=False)
    assert 0 == done.returncode, (done.stdout + done.stderr)[-3000:]
    return folder / "python"


@pytest.fixture
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("arm"))
    try:
        rig.start()
        yield rig
    finally:
        rig.close()


class ArmDevice(Device):
    """An agent whose every process is emulated."""

    def __init__(self, name: str, state: Path, python: Path) -> None:
        super().__init__(name, state)
        self.python = python

    def start(self, fault: str | None = None, **env: str) -> None:
        assert fault is None
        self._process = Process([str(self.python), "-c", AGENT, "run", "--state", str(self.state)], self.log, env)
        wait_for(f"{self.name} answers", self.is_answering, timeout_s=120)


def enroll(rig: Rig, name: str, python: Path) -> ArmDevice:
    device = ArmDevice(name, rig.folder / name, python)
    invite = rig.ok("devices", "invite", name)["invite"]
    argv = [python, "-c", AGENT, "enroll", invite, "--state", device.state]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert 0 == done.returncode, done.stderr
    rig.devices[name] = device
    return device


def write(folder: Path, version: str, scale: int, limit: float = 1e9) -> str:
    home = folder / version
    home.mkdir()
    (home / "mixed.wat").write_text(MODEL.format(scale=scale, limit=limit))
    (home / "model.toml").write_text(SPEC.format(version=version))
    return str(home / "mixed.wat")


def ask(device: Device, first: float = VALUES[0]) -> tuple[str, bytes]:
    """Return the version that answered, and its output bit by bit."""
    with device.client() as client:
        answer = client.infer("mixed", {"x": struct.pack(f"<{COUNT}f", first, *VALUES[1:])})
    return answer.version, answer.outputs["y"].raw


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_device_on_arm_installs_swaps_and_rolls_back(rig: Rig, arm_python: Path, isolation: str) -> None:
    """Verify, install, self-test, infer, swap under load, roll back; every answer is that of x86, bit by bit."""
    arm = enroll(rig, "arm-1", arm_python)
    (arm.state / "policy.toml").write_text(f'isolation = "{isolation}"\n')
    x86 = rig.enroll("x86-1")
    arm.start()
    x86.start()

    rig.ok("push", write(rig.folder, "1.0.0", 3), "--soak-ms=100", "--wait", *PATIENT)
    assert ask(x86) == ask(arm)
    assert "1.0.0" == ask(arm)[0]

    answers: list[str] = []
    is_over = threading.Event()

    def call() -> None:
        while not is_over.is_set():
            answers.append(ask(arm)[0])

    caller = threading.Thread(target=call)
    caller.start()
    try:
        rig.ok("push", write(rig.folder, "1.1.0", 5), "--soak-ms=100", "--wait", *PATIENT)
        wait_for("the new release answers", lambda: answers[-1:] == ["1.1.0"])
    finally:
        is_over.set()
        caller.join()
    assert {"1.0.0", "1.1.0"} == set(answers)
    assert ask(x86) == ask(arm)

    pushed = rig.ok("push", write(rig.folder, "1.2.0", 7, limit=10), "--soak-ms=120000", "--no-wait", "--to", "arm-1")
    wait_for("the doubtful release answers", lambda: ask(arm)[0] == "1.2.0", timeout_s=ROLLOUT_TIMEOUT_S * 3)
    # It traps on this input: the release before it answers in its place, and the device goes back.
    assert ("1.1.0", ask(x86, 11.0)[1]) == ask(arm, 11.0)

    def deployment() -> dict[str, object]:
        (found,) = rig.ok("rollouts", "show", pushed["rollout"]["id"])["deployments"]
        return dict(found)

    wait_for("the rollback is reported", lambda: deployment()["state"] == "rolled_back", timeout_s=90)
    assert ask(x86) == ask(arm)
