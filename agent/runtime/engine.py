"""The engines: one hard-coded configuration for each stack class, made once and kept for the life of the process.

A bad combination of settings aborts the process instead of raising, so nothing here comes from outside but the stack
class, which is one of three. The engines differ in the stack alone.
"""

import threading
from typing import Any

from wasmtime import Config, Engine

from agent.runtime.deadline import EpochClock
from agent.runtime.stack import provide_stacks
from protocol.limits import STACK_CLASSES_KIB

FEATURES = ("simd128", "relaxed_simd")
"""What a variant may require of every engine here."""

_lock = threading.Lock()
_clocked: dict[int, "ClockedEngine"] = {}


class ClockedEngine:
    """An engine and the clock that stops calls which run too long."""

    def __init__(self, stack_kib: int) -> None:
        self.engine = Engine(_config(stack_kib))
        self.clock = EpochClock(self.engine)


def engine_for(stack_kib: int) -> ClockedEngine:
    """Return the engine of a stack class; the first of a process sees to it that there are stacks for all of them."""
    if stack_kib not in STACK_CLASSES_KIB:
        raise ValueError(f"expected stack_kib in {STACK_CLASSES_KIB}, got {stack_kib}")
    with _lock:
        if not _clocked:
            provide_stacks()
        if stack_kib not in _clocked:
            _clocked[stack_kib] = ClockedEngine(stack_kib)
        return _clocked[stack_kib]


def settings(stack_kib: int) -> dict[str, Any]:
    """Return every setting of an engine by the name that `wasmtime.Config` gives it."""
    return {
        "cranelift_opt_level": "speed",
        "epoch_interruption": True,
        "max_wasm_stack": stack_kib * 1024,
        # The address of a memory never changes while 4 GiB are reserved for it; views hold when it grows.
        "memory_reservation": 1 << 32,
        "memory_may_move": False,
        "wasm_simd": True,
        "wasm_relaxed_simd": True,
        # Store limits do not bind shared memories, and an atomic wait cannot be interrupted.
        "wasm_threads": False,
        "shared_memory": False,
        # A store limit on memory is for each memory; a model has one, with 32-bit addresses.
        "wasm_multi_memory": False,
        "wasm_memory64": False,
        "wasm_custom_page_sizes": False,
        # What models do not need is not there to be attacked.
        "wasm_gc": False,
        "wasm_function_references": False,
        "wasm_exceptions": False,
        "wasm_stack_switching": False,
        "wasm_component_model": False,
    }


def _config(stack_kib: int) -> Config:
    config = Config()
    for name, value in settings(stack_kib).items():
        setattr(config, name, value)
    return config
