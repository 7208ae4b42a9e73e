"""The engines: one hard-coded configuration for each stack class, made once and kept for the life of the process.

A bad combination of settings aborts the process instead of raising, so nothing here comes from outside but the stack
class, which is one of three. The engines differ in the stack alone.
"""

import threading

from wasmtime import Config, Engine

from agent.runtime.deadline import EpochClock
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
    """Return the engine of a stack class."""
    if stack_kib not in STACK_CLASSES_KIB:
        raise ValueError(f"expected stack_kib in {STACK_CLASSES_KIB}, got {stack_kib}")
    with _lock:
        if stack_kib not in _clocked:
            _clocked[stack_kib] = ClockedEngine(stack_kib)
        return _clocked[stack_kib]


def _config(stack_kib: int) -> Config:
    config = Config()
    config.cranelift_opt_level = "speed"
    config.epoch_interruption = True
    config.max_wasm_stack = stack_kib * 1024
    # The address of a memory never changes while 4 GiB are reserved for it; views of it stay valid when it grows.
    config.memory_reservation = 1 << 32
    config.memory_may_move = False
    config.wasm_simd = True
    config.wasm_relaxed_simd = True
    # Store limits do not bind shared memories, and an atomic wait cannot be interrupted.
    config.wasm_threads = False
    config.shared_memory = False
    # A store limit on memory is for each memory; a model has one, with 32-bit addresses.
    config.wasm_multi_memory = False
    config.wasm_memory64 = False
    config.wasm_custom_page_sizes = False
    # What models do not need is not there to be attacked.
    config.wasm_gc = False
    config.wasm_function_references = False
    config.wasm_exceptions = False
    config.wasm_stack_switching = False
    config.wasm_component_model = False
    return config
