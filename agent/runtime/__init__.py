"""Run a model safely: a wasm module with the tensor ABI, under hard caps on memory, stack and time.

The only package that imports wasmtime; it depends on `protocol` alone. Whatever the bytes of a module are, and
whatever it does, the outcome is a result or a ModelError.
"""

from agent.runtime.cache import ModuleCache
from agent.runtime.capacity import cpu_features, engine_features, runtime_name
from agent.runtime.errors import ModelError
from agent.runtime.instance import Caps, LoadedModel, load_model
from agent.runtime.module import ModuleFacts, assemble, check_abi, inspect
from agent.runtime.selftest import record_vectors, run_self_test
from agent.runtime.stack import provide_stacks
from agent.runtime.zygote import Zygote

__all__ = [
    "Caps",
    "LoadedModel",
    "ModelError",
    "ModuleCache",
    "ModuleFacts",
    "Zygote",
    "assemble",
    "check_abi",
    "cpu_features",
    "engine_features",
    "inspect",
    "load_model",
    "provide_stacks",
    "record_vectors",
    "run_self_test",
    "runtime_name",
]
