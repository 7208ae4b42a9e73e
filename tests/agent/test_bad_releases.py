"""Signed releases of models that misbehave, on a real agent: each fails for its own reason, and no caller notices."""

import struct
import threading

import pytest

from agent.runtime import assemble
from tests.agent.rig import Agent, Backend
from tests.agent.signing import QUICK, Bundle, bundle, scale_wat

pytestmark = [pytest.mark.needs("mosquitto"), pytest.mark.slow]

PAGE = 65_536
VECTOR = struct.pack("<2f", 1.0, 2.0)
GOOD = "(f32.store (i32.const 64) (f32.mul (f32.const 2) (f32.load (i32.const 0)))) (i32.const 0)"
MOVING = "(global.set $n (i32.add (global.get $n) (i32.const 8))) (global.get $n)"


def wat(
    infer: str = GOOD, *, memory: str = "1 1", output: str = "(i32.const 64)", more: str = "", imports: str = ""
) -> str:
    """Return the text of a model of one float in and one float out, by default one that doubles it."""
    return f"""(module {imports}
      (memory (export "memory") {memory})
      (func (export "fleet_input") (param i32) (result i32) (i32.const 0))
      (func (export "fleet_output") (param i32) (result i32) {output})
      (func $layer (export "fleet_infer") (result i32) {infer})
      {more})"""


BAD = {
    "infinite loop": (wat("(loop $l (br $l)) (i32.const 0)"), "deadline_exceeded"),
    "unbounded recursion": (wat("(call $r) (i32.const 0)", more="(func $r (call $r))"), "stack_overflow"),
    "growth bomb": (
        wat("(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) (i32.const 1)", memory="1"),
        "model_status",
    ),
    "initial memory above the cap": (wat(memory="3 3"), "memory_cap"),
    "shared memory": (wat(memory="1 1 shared"), "compile_failed"),
    "out of bounds": (wat("(i32.load (i32.const -4))"), "trap"),
    "unreachable": (wat("unreachable"), "trap"),
    "division by zero": (wat("(i32.div_u (i32.const 1) (i32.const 0))"), "trap"),
    "NaN": (wat("(f32.store (i32.const 64) (f32.const nan)) (i32.const 0)"), "self_test_failed"),
    "wrong output": (wat(output="(i32.const 128)"), "self_test_failed"),
    "output beyond memory": (wat(output="(i32.const 65533)"), "abi"),
    "moving output": (wat(output=MOVING, more="(global $n (mut i32) (i32.const 64))"), "abi"),
    "start that loops": (wat(more="(func $s (loop $l (br $l))) (start $s)"), "deadline_exceeded"),
    "missing export": (wat().replace('(export "fleet_infer")', ""), "abi"),
    "wasi": (wat(imports='(import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))'), "undeclared_import"),
    "ten thousand functions, one bad": (
        wat("(call $f9999)", more="".join(f"(func $f{n} (result i32) unreachable)" for n in range(10_000))),
        "trap",
    ),
}


def bad_release(number: int, text: str) -> Bundle:
    return bundle(f"1.{number}.0", number + 1, wasm=assemble(text), vectors=VECTOR, memory_bytes=PAGE, deadline_ms=100)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_every_bad_release_fails_with_its_reason_while_the_active_one_serves(
    agent: Agent, backend: Backend, isolation: str
) -> None:
    """One after another is assigned; a caller asks all the time and always hears the good release."""
    (agent.state_dir / "policy.toml").write_text(f'isolation = "{isolation}"\n')
    good = bundle(wasm=assemble(scale_wat(2.0)))
    releases = {name: bad_release(n + 1, text) for n, (name, (text, _)) in enumerate(BAD.items())}
    backend.release(good, *releases.values())
    backend.assign(good)
    agent.start()
    backend.wait_end(good)
    answers: set[tuple[str, float]] = set()
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(0.002):
            answers.add(agent.infer(3.0))

    caller = threading.Thread(target=ask)
    caller.start()
    seen = {}
    try:
        for name, release in releases.items():
            backend.direct(backend.signing.direct(backend.signing.assignment(release, config=QUICK)))
            receipt = backend.wait_end(release, "failed")
            assert receipt.reason is not None
            seen[name] = receipt.reason.code
    finally:
        is_over.set()
        caller.join()
    assert {name: code for name, (_, code) in BAD.items()} == seen
    assert {("1.0.0", 6.0)} == answers
    assert ("1.0.0", 6.0) == agent.infer(3.0)
