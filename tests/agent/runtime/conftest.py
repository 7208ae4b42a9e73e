"""Models small enough to read: each is text around one function body."""

from collections.abc import Callable, Iterator

import pytest

from agent.runtime import Caps, LoadedModel, Zygote, assemble, load_model
from protocol.tensors import TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(2,))
Y = TensorSpec(name="y", datatype="FP32", shape=(2,))

CAPS = Caps(memory_bytes=1 << 20)

DOUBLE = """
    (f32.store (i32.const 64) (f32.mul (f32.const 2) (f32.load (i32.const 0))))
    (f32.store (i32.const 68) (f32.mul (f32.const 2) (f32.load (i32.const 4))))
    (i32.const 0)
"""


def model_text(
    infer: str = DOUBLE,
    *,
    memory: str = "1 1",
    input_address: str = "(i32.const 0)",
    output_address: str = "(i32.const 64)",
    more: str = "",
) -> str:
    """Return the text of a model of two floats in and two floats out, by default one that doubles them."""
    return f"""(module
      (memory (export "memory") {memory})
      (func (export "fleet_input") (param $i i32) (result i32) {input_address})
      (func (export "fleet_output") (param $i i32) (result i32) {output_address})
      (func $run (export "fleet_infer") (result i32) {infer})
      {more})"""


@pytest.fixture
def text() -> Callable[..., str]:
    return model_text


@pytest.fixture
def load(isolation: Zygote | None) -> Iterator[Callable[..., LoadedModel]]:
    """Load a model from text or bytes, at both isolation levels; it is closed when the test ends."""
    loaded = []

    def make(
        model: str | bytes,
        *,
        inputs: tuple[TensorSpec, ...] = (X,),
        outputs: tuple[TensorSpec, ...] = (Y,),
        caps: Caps = CAPS,
        stateful: bool = False,
    ) -> LoadedModel:
        wasm = assemble(model) if isinstance(model, str) else model
        loaded.append(load_model(wasm, inputs, outputs, caps, stateful=stateful, zygote=isolation))
        return loaded[-1]

    yield make
    for model in loaded:
        model.close()
