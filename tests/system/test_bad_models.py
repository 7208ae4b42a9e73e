"""Models that must not run: refused by `push` with a message that says what to do, and survived by a device."""

from pathlib import Path

import pytest

from tests.system.rig import SIDECAR, Rig, affine

pytestmark = pytest.mark.needs("mosquitto")

SPEC = f'name = "bad"\nversion = "1.0.0"\n{SIDECAR}'
ABI = """(func (export "fleet_input") (param i32) (result i32) i32.const 1024)
  (func (export "fleet_output") (param i32) (result i32) i32.const 2048)"""
MEMORY = '(memory (export "memory") 1 1)'
INFER = '(func (export "fleet_infer") (result i32) {})'

BAD = {
    "no abi": (f"(module {MEMORY})", "fleet_infer"),
    "import": (
        f'(module (import "env" "now" (func (result i64))) {MEMORY} {ABI} {INFER.format("i32.const 0")})',
        "env.now",
    ),
    "memory": (f'(module (memory (export "memory") 4096 4096) {ABI} {INFER.format("i32.const 0")})', "memory"),
    "loop": (f"(module {MEMORY} {ABI} {INFER.format('(loop $l br $l) i32.const 0')})", "ms"),
    "trap": (
        f"(module {MEMORY} {ABI} (func $layer7 unreachable) {INFER.format('call $layer7 i32.const 0')})",
        "layer7",
    ),
}


def write(folder: Path, wat: str) -> Path:
    """Write a module in text form with its sidecar; return its path."""
    home = folder / "bad"
    home.mkdir(exist_ok=True)
    (home / "model.toml").write_text(SPEC)
    path = home / "bad.wat"
    path.write_text(wat)
    return path


def test_push_refuses_each_bad_file_and_makes_no_release(rig: Rig) -> None:
    """What is not a wasm file, or a module that cannot run on any device, is refused in words that name the trouble."""
    rig.enroll("edge-1").start()
    noise = rig.folder / "noise.wasm"
    noise.write_bytes(b"\x7fELF" + bytes(200))
    files = {"not wasm": (noise, "not a wasm file")}

    for name, (wat, says) in BAD.items():
        files[name] = (write(rig.folder, wat), says)
        refused = rig.fleetctl("push", str(files[name][0]))
        assert (name, 1) == (name, refused.status), refused.err
        assert says in refused.err, f"{name}: {refused.err}"
        assert "Traceback" not in refused.err
    refused = rig.fleetctl("push", str(noise))

    assert refused.status == 1
    assert "not a wasm file" in refused.err
    assert rig.ok("releases", "list") == []
    assert rig.ok("rollouts", "list") == []


@pytest.mark.parametrize(("name", "code"), [("loop", "deadline_exceeded"), ("trap", "trap")])
def test_device_survives_a_bad_model_and_names_the_reason(rig: Rig, name: str, code: str) -> None:
    """A model that loops for ever or traps, pushed past the preflight, fails on the device, which goes on serving."""
    device = rig.enroll("edge-1")
    device.start()
    rig.push(2)
    vectors = rig.folder / "vectors.json"
    vectors.write_text('{"inputs": [{"x": [1.0]}], "outputs": [{"y": [1.0]}]}')

    options = ("--skip-preflight", "--test-data", str(vectors), "--wait")
    pushed = rig.ok("push", str(write(rig.folder, BAD[name][0])), *options, status=3)

    (deployment,) = rig.ok("rollouts", "show", pushed["rollout"]["id"])["deployments"]
    assert (deployment["state"], deployment["reason"]["code"]) == ("failed", code)
    assert device.infer("affine", 10.0) == ("2.0.0", 20.0)


def test_duplicate_version_with_other_content_is_refused(rig: Rig) -> None:
    """A release never changes: other content under a version that exists is refused, and the free one is named."""
    rig.enroll("edge-1").start()
    rig.push(2)

    refused = rig.fleetctl("push", str(affine(rig.folder, 3)), "--version", "2.0.0")

    assert refused.status == 1
    assert "2.0.0" in refused.err
    assert "2.0.1" in refused.err


def test_release_beyond_the_disk_quota_is_refused_before_it_is_made(rig: Rig) -> None:
    """A module larger than the device's disk quota is refused by push, which names the two numbers."""
    device = rig.enroll("edge-1")
    (device.state / "policy.toml").write_text("disk_quota_bytes = 6000\n")
    device.start()
    rig.push(2)
    big = affine(rig.folder, 3)
    filler = "".join(f"\\{n % 256:02x}" for n in range(0, 200_000 * 7, 7))
    big.write_text(big.read_text().replace('"memory") 1 1)', f'"memory") 8 8) (data (i32.const 65536) "{filler}")'))

    refused = rig.fleetctl("push", str(big), "--wait")

    assert refused.status == 1, refused.out + refused.err
    assert "of disk, the device allows 6,000" in refused.err
    assert [r["version"] for r in rig.ok("releases", "list")] == ["2.0.0"]
    assert device.infer("affine", 10.0) == ("2.0.0", 20.0)
