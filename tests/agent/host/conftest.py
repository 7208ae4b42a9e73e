"""Releases of small models, and a host for them."""

import struct
from collections.abc import Iterator

import pytest

from agent.host import ModelHost
from agent.runtime import Caps, LoadedModel, assemble, load_model
from agent.runtime.errors import (
    ModelError,
)
from agent.usage import UsageMeter
from protocol.manifest import Contract, FileRef, Manifest, Provenance, SelfTest, Variant
from protocol.tensors import TensorSpec

CAPS = Caps(memory_bytes=1 << 20, deadline_ms=200)

SCALE = "(f32.store (i32.const 64) (f32.mul (f32.const {}) (f32.load (i32.const 0)))) (i32.const 0)"

SUM = """(f32.store (i32.const 64) (f32.add (f32.load (i32.const 64)) (f32.load (i32.const 0)))) (i32.const 0)"""

TRAP = "unreachable"

TRAP_ON_NEGATIVE = "(if (f32.lt (f32.load (i32.const 0)) (f32.const 0)) (then unreachable))" + SCALE.format(7)

FORGET = "(f32.store (i32.const 64) (f32.const 0))"


def number(value: float) -> bytes:
    return struct.pack("<f", value)


def make_model(infer: str, tensor: TensorSpec, *, stateful: bool = False, forget: str = FORGET) -> LoadedModel:
    reset = f'(func (export "fleet_reset") {forget})' if stateful else ""
    wat = f"""(module (memory (export "memory") 1 1)
      (func (export "fleet_input") (param i32) (result i32) (i32.const 0))
      (func (export "fleet_output") (param i32) (result i32) (i32.const 64))
      (func $run (export "fleet_infer") (result i32) {infer}) {reset})"""
    return load_model(assemble(wat), (tensor,), (tensor,), CAPS, stateful=stateful)


def release(
    version: str, infer: str, *, stateful: bool = False, elements: int = 1, name: str = "digits"
) -> tuple[Manifest, LoadedModel]:
    tensor = TensorSpec(name="x", datatype="FP32", shape=(elements,))
    module = FileRef.of(b"module")
    manifest = Manifest(
        model=name,
        version=version,
        release_counter=1,
        inputs=(tensor,),
        outputs=(tensor,),
        variants=(Variant(file=module, contract=Contract(memory_bytes=65536)),),
        self_test=SelfTest(file=FileRef.of(bytes(8 * elements)), count=1),
        provenance=Provenance(source=module, source_name="model.wat", tool="test"),
        stateful=stateful,
    )
    return manifest, make_model(infer, tensor, stateful=stateful)


class Faults(list[tuple[str, str, str]]):
    """What the host told of: model, version, code."""

    def __call__(self, model: str, version: str, error: ModelError) -> None:
        self.append((model, version, error.code))


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def meter() -> UsageMeter:
    return UsageMeter()


@pytest.fixture
def host(meter: UsageMeter, faults: Faults) -> Iterator[ModelHost]:
    host = ModelHost(meter, faults)
    yield host
    host.close()


def ask(host: ModelHost, value: float = 1, name: str = "digits") -> tuple[str, float]:
    result = host.infer(name, [number(value)])
    return result.version, struct.unpack("<f", result.outputs[0])[0]
