"""Models small enough to read, for tests of bundling and of the command line."""

from agent.runtime.module import assemble
from compiler.section import with_model_section
from protocol.tensors import ModelSpec, TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(1, 2))
Y = TensorSpec(name="y", datatype="FP32", shape=(1, 2))

DOUBLE = """
    (f32.store (i32.const 64) (f32.mul (f32.const 2) (f32.load (i32.const 0))))
    (f32.store (i32.const 68) (f32.mul (f32.const 2) (f32.load (i32.const 4))))
    (i32.const 0)
"""
TRIPLE = DOUBLE.replace("f32.const 2", "f32.const 3")
GROW = "(drop (memory.grow (i32.const 3)))" + DOUBLE
TRAP = "(unreachable)"
LOOP = "(loop $again (br $again)) (i32.const 0)"
STATUS = "(i32.const 7)"

SIDECAR = """
[[inputs]]
name = "x"
datatype = "FP32"
shape = [1, 2]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [1, 2]
"""


def wat(infer: str = DOUBLE, *, memory: str = "1 1", more: str = "") -> str:
    """Return the text of a model of two floats in and two floats out, by default one that doubles them."""
    return f"""(module {more}
      (memory (export "memory") {memory})
      (func (export "fleet_input") (param $i i32) (result i32) (i32.const 0))
      (func (export "fleet_output") (param $i i32) (result i32) (i32.const 64))
      (func $run (export "fleet_infer") (result i32) {infer}))"""


def spec(**fields: object) -> ModelSpec:
    """Return the spec of such a model."""
    return ModelSpec(**{"inputs": (X,), "outputs": (Y,), **fields})  # type: ignore[arg-type] # fields of the struct


def wasm(infer: str = DOUBLE, *, memory: str = "1 1", **fields: object) -> bytes:
    """Return such a model with its `fleet.model` section."""
    return with_model_section(assemble(wat(infer, memory=memory)), spec(**fields))
