"""Networks as they are deployed, through compiler and device runtime: the answers of onnxruntime, within the tolerance.

`pytest tests/compiler/test_models.py --slow -s` prints a line for each model.
"""

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compiler import CompiledModel, Target, compile_model
from tests.compiler.execution import Array, Runner, assert_close, worst_error
from tests.compiler.models import BUILT, PACKAGED, Inputs, Model
from tests.compiler.models.transformers import CACHE, CONTEXT
from tests.compiler.onnx_models import Session

SEEDS = range(3)
LARGE = {"resnet-18", "minilm", "text-encoder"}
"""Which take seconds."""
MODELS = [
    pytest.param(model, id=model.name, marks=[pytest.mark.slow] if model.name in LARGE else [])
    for model in (*PACKAGED, *BUILT)
]


def compiled_for(model: Model, target: Target) -> CompiledModel:
    """Return a model of the catalogue, compiled."""
    return compile_model(model.read(), msgspec.structs.replace(model.options, target=target))


def wanted(session: Session, model: Model, inputs: Inputs) -> list[Array]:
    """Return what onnxruntime answers; it takes as inputs what the compiler was told as settings."""
    settings = {name: np.array(value) for name, value in model.options.input_values.items()}
    return session.run({**inputs, **settings})


@pytest.mark.parametrize("target", list(Target))
@pytest.mark.parametrize("model", MODELS)
def test_answers_are_those_of_onnxruntime(model: Model, target: Target) -> None:
    """Every output for several inputs, in a memory that is hardly larger than what lives at the same time."""
    compiled = compiled_for(model, target)
    session = Session(model.read())
    errors = []
    with Runner(compiled) as runner:
        for seed in SEEDS:
            inputs = model.inputs(seed)
            got, want = runner.run(inputs), wanted(session, model, inputs)
            errors.append(worst_error(got, want))
            assert_close(got, want)
    ratio = compiled.arena_bytes / compiled.arena_bound_bytes
    print(  # noqa: T201 - for whoever runs it with -s
        f"\n{model.name:20} {target.value:8} {len(compiled.wasm):11,} bytes, arena {compiled.arena_bytes:10,} = "
        f"{ratio:.3f} x bound, error {max(errors):.3f} x tolerance"
    )
    assert ratio <= 1.25


@pytest.mark.parametrize("model", MODELS)
def test_answers_tell_inputs_apart(model: Model) -> None:
    """Different inputs have different answers, far beyond the tolerance: a comparison that could not fail is none."""
    with Runner(compiled_for(model, Target.RELAXED)) as runner:
        first, second = (runner.run(model.inputs(seed)) for seed in (0, 1))
    for a, b in zip(first, second, strict=True):
        if a.dtype.kind == "f":
            assert worst_error([a], [b]) > 10


@pytest.mark.parametrize("model", [p for p in MODELS if not p.marks])
def test_the_same_model_gives_the_same_bytes(model: Model) -> None:
    """Compiled twice, also from a model that was built twice."""
    assert compiled_for(model, Target.SIMD128).wasm == compiled_for(model, Target.SIMD128).wasm


@pytest.mark.parametrize("target", list(Target))
def test_a_module_is_hardly_more_than_its_weights(target: Target) -> None:
    """A network of 53 convolutions has 400 KB of code at most."""
    [mobilenet] = [model for model in BUILT if model.name == "mobilenet-v2"]
    weights = onnx.load_model_from_string(mobilenet.read()).graph.initializer
    allowed = sum(numpy_helper.to_array(tensor).nbytes for tensor in weights) + 400_000
    assert len(compiled_for(mobilenet, target).wasm) <= allowed


def sampled(logits: Array, chance: float, temperature: float = 0.8) -> int:
    """Return a token, drawn with the probabilities that the scores give."""
    weights = np.exp((logits[0] - logits.max()).astype(np.float64) / temperature)
    return int(np.searchsorted(np.cumsum(weights) / weights.sum(), chance))


@pytest.mark.parametrize("target", list(Target))
def test_a_host_samples_tokens(target: Target) -> None:
    """A text written token by token: the host keeps the cache, draws, and both engines write the same."""
    [decoder] = [model for model in BUILT if model.name == "step-decoder"]
    session, chances = Session(decoder.read()), np.random.default_rng(5).random(CONTEXT)
    caches = [[np.zeros(CACHE, np.float32)] * 2 for _ in range(2)]
    texts: list[list[int]] = [[1], [1]]
    with Runner(compiled_for(decoder, target)) as runner:
        for position in range(CONTEXT):
            for engine, cache, text in zip((runner, session), caches, texts, strict=True):
                inputs = {"token": np.array(text[-1:]), "position": np.array([position])}
                logits, *cache[:] = engine.run({**inputs, "keys": cache[0], "values": cache[1]})
                text.append(sampled(logits, chances[position]))
            assert_close(caches[0], caches[1])
    assert texts[1] == texts[0]
    assert len(set(texts[0])) > CONTEXT // 4
