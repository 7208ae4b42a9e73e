"""Every command that runs a model lives where the system gives programs little stack, whatever the model does."""

import subprocess
import sys
from pathlib import Path

import pytest

from agent.captures import Captures, capture_files
from agent.diagnostics import Diagnostics
from agent.runtime import Caps, assemble, load_model
from agent.runtime.errors import FaultError
from agent.usage import UsageMeter
from protocol.manifest import Contract, FileRef, Manifest, Provenance, SelfTest, Variant
from protocol.tensors import TensorSpec
from tests.system.rig import SIDECAR

X = TensorSpec(name="x", datatype="FP32", shape=(1,))
CAPS = Caps(memory_bytes=65_536, stack_kib=1024)
WAT = """(module (memory (export "memory") 1 1)
  (func (export "fleet_input") (param i32) (result i32) (i32.const 0))
  (func (export "fleet_output") (param i32) (result i32) (i32.const 64))
  (func $deep (call $deep))
  (func (export "fleet_infer") (result i32) (call $deep) (i32.const 0)))"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of the largest stack class that uses all of it, and more."""
    (tmp_path / "model.toml").write_text(f"stack_kib = 1024\n{SIDECAR}")
    path = tmp_path / "deep.wat"
    path.write_text(WAT)
    return path


def run_with_small_stack(*argv: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of ours with 512 KiB of stack."""
    program = str(Path(sys.executable).with_name(argv[0]))
    script = 'ulimit -S -s 512; exec "$0" "$@"'
    return subprocess.run(
        ["/bin/sh", "-c", script, program, *argv[1:]], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("command", [("run",), ("bench", "--rounds", "1")])
def test_fleetctl_reports_the_overflow(command: tuple[str, ...], model: Path) -> None:
    """`fleetctl run` and `bench` name the layer and say what to do; they do not crash."""
    done = run_with_small_stack("fleetctl", *command, str(model))
    assert 1 == done.returncode, done.stderr
    assert "stack overflow in layer 'deep'" in done.stderr


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_replay_reproduces_the_overflow(isolation: str, tmp_path: Path) -> None:
    """`fleet-agent replay` sees the same as the device saw, at both isolation levels."""
    module = assemble(WAT)
    manifest = Manifest(
        model="deep",
        version="1.0.0",
        release_counter=1,
        inputs=(X,),
        outputs=(X,),
        variants=(Variant(file=FileRef.of(module), contract=Contract(memory_bytes=65_536, stack_kib=1024)),),
        self_test=SelfTest(file=FileRef.of(bytes(8)), count=1),
        provenance=Provenance(source=FileRef.of(module), source_name="deep.wat", tool="test"),
    )
    captures = Captures(tmp_path, isolation=isolation)
    captures.allow(1, 1 << 20)
    loaded = load_model(module, (X,), (X,), CAPS)
    with pytest.raises(FaultError) as caught:
        loaded.infer([bytes(4)])
    loaded.close()
    Diagnostics(UsageMeter(), captures).note(manifest, CAPS, [bytes(4)], caught.value)
    (capture,) = capture_files(tmp_path)
    (tmp_path / "deep.wasm").write_bytes(module)
    done = run_with_small_stack("fleet-agent", "replay", str(capture), "--module", str(tmp_path / "deep.wasm"))
    assert (0, True) == (done.returncode, "deep 1.0.0: reproduced" in done.stdout), done.stderr
