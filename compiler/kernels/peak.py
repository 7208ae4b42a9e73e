"""What a machine can do at most: modules that only multiply and add, or only copy.

They are what a share of the peak is a share of. Each meets the tensor ABI with one byte in and one byte out, so that
whatever runs a model runs them, and each call does a known amount of work.
"""

from typing import Final

import msgspec

from compiler.kernels.target import Target
from compiler.wasm import PAGE_BYTES, Function, Module, ValueType, f32x4, i32, memory, v128

_CHAINS: Final = 10
"""Sums beside each other: more than an execution unit needs to hide its latency, fewer than there are registers."""
_STEPS: Final = 96
"""Of each sum in a round; at the end of one an engine that can interrupt a loop moves the sums to memory and back."""
_ROUNDS: Final = 1_000
_LANES: Final = 4
_SUMS_AT: Final = 1024
_COPY_BYTES: Final = 2 * 1024 * 1024
_COPY_ROUNDS: Final = 16


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A module that does one kind of work, and how much of it one call does."""

    wasm: bytes
    units: int
    """Floating-point operations, or bytes that are copied."""


def multiply_add_load() -> Load:
    """Return a module of fused multiply-adds of 128 bits that never wait for memory."""
    module, infer = _module(1)
    one, zero = infer.variable(f32x4.const(1.0)), infer.variable(f32x4.const(0.0))
    sums = [infer.variable(f32x4.const(float(n))) for n in range(_CHAINS)]
    never = infer.variable(i32.load(i32.const(0)))
    with infer.block() as done, infer.repeat(infer.i32(), _ROUNDS):
        for _ in range(_STEPS):
            for total in sums:
                total.set(Target.RELAXED.madd(total, one, zero))
            # Engines move arithmetic to where it is needed. A way out keeps the sums beside each other.
            infer.branch(done, never)
    for number, total in enumerate(sums):
        infer.do(v128.store(i32.const(_SUMS_AT), total, number * 16))
    infer.leave(i32.const(0))
    return Load(wasm=module.encode(), units=_ROUNDS * _STEPS * _CHAINS * _LANES * 2)


def copy_load() -> Load:
    """Return a module that copies memory larger than a cache of the second level."""
    module, infer = _module(1 + 2 * _COPY_BYTES // PAGE_BYTES)
    start = PAGE_BYTES
    with infer.repeat(infer.i32(), _COPY_ROUNDS):
        infer.do(memory.copy(i32.const(start + _COPY_BYTES), i32.const(start), _COPY_BYTES))
    infer.leave(i32.const(0))
    return Load(wasm=module.encode(), units=_COPY_ROUNDS * _COPY_BYTES)


def _module(pages: int) -> tuple[Module, Function]:
    """Return a module with the exports of the tensor ABI, and the function that does the work."""
    module = Module()
    module.memory(pages, pages, export="memory")
    for number, name in enumerate(("fleet_input", "fleet_output")):
        locate = module.function(name, [ValueType.I32], export=name)
        locate.param_i32()
        locate.leave(i32.const(64 * number))
    return module, module.function("fleet_infer", [ValueType.I32], export="fleet_infer")
