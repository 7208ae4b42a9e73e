"""Signed releases of models that misbehave, on a real agent: each fails for its own reason, and no caller notices."""

import struct
import threading

import msgspec
import pytest

from agent.runtime import assemble
from protocol.tensors import TensorSpec
from tests.agent.rig import Agent, Backend
from tests.agent.signing import QUICK, Bundle, Y, bundle, scale_wat

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


def large(size_bytes: int) -> bytes:
    """Return a model of so many bytes of data, which lie behind its first page."""
    pages = 1 + -(-size_bytes // PAGE)
    data = b"\x01\0\x41" + _leb(PAGE) + b"\x0b" + _leb(size_bytes) + bytes(size_bytes)
    return assemble(wat(memory=f"{pages} {pages}")) + b"\x0b" + _leb(len(data)) + data


def _leb(value: int) -> bytes:
    """Return a number whose bit 6 of the last group is not set, as wasm writes it, signed or not."""
    head, rest = value & 0x7F, value >> 7
    return bytes([head | 0x80]) + _leb(rest) if rest or head & 0x40 else bytes([head])


class Bad(msgspec.Struct, frozen=True, kw_only=True):
    """A module, and how a device has to refuse it."""

    wasm: bytes
    code: str
    reason: str
    """What the reason says, among other things."""
    output: TensorSpec = Y
    vectors: bytes = VECTOR


def bad(code: str, reason: str, infer: str = GOOD, **parts: str) -> Bad:
    return Bad(wasm=assemble(wat(infer, **parts)), code=code, reason=reason)


BAD = {
    "infinite loop": bad("deadline_exceeded", "an answer within 100 ms", "(loop $l (br $l)) (i32.const 0)"),
    "unbounded recursion": bad(
        "stack_overflow", "expected at most 64 KiB of stack", "(call $r) (i32.const 0)", more="(func $r (call $r))"
    ),
    "growth bomb": bad(
        "model_status",
        "expected fleet_infer to return 0",
        "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) (i32.const 1)",
        memory="1",
    ),
    "initial memory above the cap": bad("memory_cap", "at most 65,536 bytes of memory", memory="3 3"),
    "shared memory": bad("compile_failed", "threads must be enabled", memory="1 1 shared"),
    "out of bounds": bad("trap", "layer 'layer': memory access out of bounds", "(i32.load (i32.const -4))"),
    "unreachable": bad("trap", "layer 'layer': unreachable code", "unreachable"),
    "division by zero": bad("trap", "integer divide by zero", "(i32.div_u (i32.const 1) (i32.const 0))"),
    "NaN": bad("self_test_failed", "expected 2.0", "(f32.store (i32.const 64) (f32.const nan)) (i32.const 0)"),
    "wrong output": bad("self_test_failed", "output 'y', element 0: expected 2.0", output="(i32.const 128)"),
    "output beyond memory": bad("abi", "tensor 'y': expected 4 bytes within the memory", output="(i32.const 65533)"),
    "moving output": bad("abi", "expected one address", output=MOVING, more="(global $n (mut i32) (i32.const 64))"),
    "start that loops": bad("deadline_exceeded", "layer 's'", more="(func $s (loop $l (br $l))) (start $s)"),
    "fifty megabytes": Bad(wasm=large(50_000_000), code="memory_cap", reason="starts with 50,069,504"),
    "ten thousand functions, one bad": bad(
        "trap",
        "layer 'f9999'",
        "(call $f9999)",
        more="".join(f"(func $f{n} (result i32) unreachable)" for n in range(10_000)),
    ),
    "missing export": Bad(
        wasm=assemble(wat().replace('(export "fleet_infer")', "")), code="abi", reason="missing: fleet_infer"
    ),
    "lying tensor spec": Bad(
        wasm=assemble(wat()),
        code="abi",
        reason="tensor 'y': expected 720,000 bytes within the memory of 65,536 bytes",
        output=TensorSpec(name="y", datatype="FP64", shape=(300, 300)),
        vectors=bytes(720_004),
    ),
    "wasi": bad(
        "undeclared_import",
        "build it without WASI",
        imports='(import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))',
    ),
}


def bad_release(number: int, each: Bad) -> Bundle:
    return bundle(
        f"1.{number}.0",
        number + 1,
        wasm=each.wasm,
        output=each.output,
        vectors=each.vectors,
        memory_bytes=PAGE,
        deadline_ms=100,
    )


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_every_bad_release_fails_with_its_reason_while_the_active_one_serves(
    agent: Agent, backend: Backend, isolation: str
) -> None:
    """One after another is assigned; a caller asks all the time and always hears the good release."""
    (agent.state_dir / "policy.toml").write_text(f'isolation = "{isolation}"\n')
    good = bundle(wasm=assemble(scale_wat(2.0)))
    releases = {name: bad_release(n + 1, each) for n, (name, each) in enumerate(BAD.items())}
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
            assert BAD[name].reason in receipt.reason.message
    finally:
        is_over.set()
        caller.join()
    assert {name: each.code for name, each in BAD.items()} == seen
    assert {("1.0.0", 6.0)} == answers
    assert ("1.0.0", 6.0) == agent.infer(3.0)
