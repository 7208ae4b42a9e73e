"""Quantised models make small modules: about the weights of the ONNX file, and exactly the results of raw weights."""

import msgspec
import numpy as np
import pytest

from agent.runtime.module import assemble
from compiler import CompileOptions, Target, compile_model
from compiler.inspect import inspect_module, module_text
from compiler.options import Weights
from protocol.wasm import sections
from tests.compiler.execution import Runner, run_compiled
from tests.compiler.models import BUILT, Model
from tests.compiler.models.quantised import KINDS, quantised
from tests.compiler.onnx_models import Array, ModelWriter

CODE_BYTES = 200_000
"""What such a module has of code and names, at most."""


def named(name: str) -> Model:
    """Return a model of the catalogue."""
    [model] = [model for model in BUILT if model.name == name]
    return model


CASES = [(name, kind) for name in ("small-cnn", "mlp", "decoder") for kind in KINDS]
CASES.remove(("small-cnn", "half"))  # its batch normalisation is worked into weights, which need 32 bits then


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_quantised_model_is_as_small_as_its_file(name: str, kind: str) -> None:
    """Its outputs are those of the raw form bit by bit, on both targets; panels take at most a tenth more."""
    model = named(name)
    source, inputs = quantised(model, kind), model.inputs(7)
    for target in Target:
        options = msgspec.structs.replace(model.options, target=target)
        small = compile_model(source, options)
        raw = compile_model(source, msgspec.structs.replace(options, weights=Weights.RAW))
        assert (raw.constant_bytes, small.memory_bytes) == (small.constant_bytes, raw.memory_bytes)
        for a, b in zip(run_compiled(raw, inputs), run_compiled(small, inputs), strict=True):
            assert a.tobytes() == b.tobytes()
        assert small.stored_bytes < 1.1 * len(source)
        assert len(small.wasm) < small.stored_bytes + CODE_BYTES
        assert small.stored_bytes < 0.56 * raw.stored_bytes
        assert raw.stored_bytes == raw.constant_bytes


def gated(rng: np.random.Generator) -> bytes:
    """Return a network with a state: what it remembers, it multiplies by bytes times a scale."""
    w = ModelWriter()
    x, state = w.input("x", [1, 64]), w.input("state", [1, 64])
    mixed = []
    for value in (x, state):
        codes = w.constant(rng.integers(-127, 128, (64, 64)).astype(np.int8))
        scales = w.constant(rng.uniform(0.001, 0.002, 64).astype(np.float32))
        mixed.append(w.node("MatMul", value, w.node("DequantizeLinear", codes, scales, axis=1)))
    state = w.node("Tanh", w.node("Add", *mixed))
    return w.model(w.node("Neg", state), state)


def test_states_start_at_zero_in_every_instance() -> None:
    """What the module used to expand its weights is cleared; a reset and a second instance begin alike."""
    rng = np.random.default_rng(2)
    source = gated(rng)
    options = CompileOptions(states={"state": "tanh5"})
    compiled = compile_model(source, options)
    assert compiled.stored_bytes < compiled.constant_bytes / 3
    calls: list[dict[str, Array]] = [{"x": rng.standard_normal((1, 64)).astype(np.float32)} for _ in range(3)]

    def answers(runner: Runner) -> list[bytes]:
        return [runner.run(call)[0].tobytes() for call in calls]

    with Runner(compile_model(source, msgspec.structs.replace(options, weights=Weights.RAW))) as raw:
        want = answers(raw)
    with Runner(compiled) as first, Runner(compiled) as second:
        assert want == answers(first)
        assert want == answers(second)
        assert want != answers(first)
        first.reset()
        assert want == answers(first)


def test_the_same_model_makes_the_same_bytes() -> None:
    """And as text it is the same module again."""
    source = quantised(named("small-cnn"), "qdq")
    wasm = compile_model(source).wasm
    assert compile_model(source).wasm == wasm
    again = assemble("\n".join(module_text(wasm)))
    assert sorted(sections(wasm)) == sorted(sections(again))


def test_an_inspection_says_what_is_stored() -> None:
    """The plan has both sizes, and the data segments are those that are stored."""
    compiled = compile_model(quantised(named("mlp"), "qdq"))
    report = inspect_module(compiled.wasm)
    assert report.plan is not None
    assert (compiled.stored_bytes, compiled.constant_bytes) == (report.plan.stored_bytes, report.plan.constant_bytes)
    assert report.data[-1].address is None
    assert abs(report.data_bytes - compiled.stored_bytes) < 1024
