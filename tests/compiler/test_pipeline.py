"""Whole models from ONNX to WebAssembly: the answers of onnxruntime, the same bytes each time, nothing imported."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from agent.runtime.module import check_abi, inspect
from compiler import CompileOptions, Target, compile_model, pipeline
from compiler.dtypes import DType
from compiler.errors import InternalError
from compiler.importer import import_model, read_model
from compiler.inspect import inspect_module
from compiler.ir import Graph, TensorType
from compiler.ir.check import check
from compiler.ir.reference import run
from compiler.passes import PASSES, Pass, everywhere
from tests.compiler import onnx_models
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import Array, run_onnxruntime

MODELS = [onnx_models.mlp, onnx_models.small_cnn, onnx_models.residual_cnn, onnx_models.encoder]


def random_inputs(model: bytes) -> dict[str, Array]:
    """Return inputs for a model."""
    rng = np.random.default_rng(1)
    spec = compile_model(model).spec
    return {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in spec.inputs}


@pytest.mark.parametrize("target", list(Target))
@pytest.mark.parametrize("build", MODELS)
def test_models_agree_with_onnxruntime(build: Callable[[], bytes], target: Target) -> None:
    """Within the tolerance that holds for every model."""
    model = build()
    inputs = random_inputs(model)
    compiled = compile_model(model, CompileOptions(target=target))
    assert_close(run_compiled(compiled, inputs), run_onnxruntime(model, inputs))
    assert target.features == inspect_module(compiled.wasm).required_features


@pytest.mark.parametrize("build", MODELS)
def test_every_pass_keeps_the_meaning(build: Callable[[], bytes]) -> None:
    """By the definition in numpy, the graph computes the same before and after each pass."""
    model = build()
    inputs = random_inputs(model)
    imported = import_model(read_model(model), CompileOptions())
    values = [inputs[name] for name in imported.input_names]
    graph, want = imported.graph, run_onnxruntime(model, inputs)
    assert_close(run(graph, values), want)
    for one_pass in PASSES:
        graph = everywhere(one_pass, graph)
        check(graph, one_pass.__name__)
        assert_close(run(graph, values), want)


def forget_a_node(graph: Graph) -> Graph:
    """Leave out what others read."""
    return msgspec.structs.replace(graph, nodes=graph.nodes[1:])


def forget_an_output(graph: Graph) -> Graph:
    """Leave out what computes the answer."""
    return msgspec.structs.replace(graph, nodes=graph.nodes[:-1])


def turn_around(graph: Graph) -> Graph:
    """Let nodes read what comes later."""
    return msgspec.structs.replace(graph, nodes=graph.nodes[::-1])


def compute_twice(graph: Graph) -> Graph:
    """Give a value a second time."""
    return msgspec.structs.replace(graph, nodes=(*graph.nodes, graph.nodes[0]))


def cut_a_constant(graph: Graph) -> Graph:
    """Let a constant have other numbers than its type says."""
    name, array = next((name, array) for name, array in graph.constants.items() if array.size > 1)
    return msgspec.structs.replace(graph, constants={**graph.constants, name: array[:-1]})


def change_a_type(graph: Graph) -> Graph:
    """Say another shape of a result than is computed."""
    name = graph.nodes[0].outputs[0]
    return msgspec.structs.replace(graph, types={**graph.types, name: TensorType(DType.F32, (7,))})


@pytest.mark.parametrize(
    "broken", [forget_a_node, forget_an_output, turn_around, compute_twice, cut_a_constant, change_a_type]
)
@pytest.mark.parametrize("place", [0, 3, len(PASSES)])
def test_a_pass_that_breaks_the_graph_is_found_at_once(
    monkeypatch: pytest.MonkeyPatch, broken: Pass, place: int
) -> None:
    """Wherever it runs, it is named before the next one sees it or a module is made."""
    model = onnx_models.small_cnn()
    monkeypatch.setattr(pipeline, "PASSES", (*PASSES[:place], broken, *PASSES[place:]))
    with pytest.raises(InternalError, match=f"after {broken.__name__}: "):
        compile_model(model)


@pytest.mark.parametrize("build", MODELS)
def test_the_module_is_what_it_says(build: Callable[[], bytes]) -> None:
    """No imports, memory that is as large at its end as at its start, and the same bytes for the same model."""
    model = build()
    compiled = compile_model(model)
    facts = inspect(compiled.wasm)
    check_abi(facts)
    assert ((), compiled.memory_bytes, compiled.memory_bytes) == (
        facts.imports,
        facts.memory_min_bytes,
        facts.memory_max_bytes,
    )
    assert compiled.wasm == compile_model(model).wasm
    assert compiled.arena_bytes <= 1.25 * compiled.arena_bound_bytes


def test_layers_have_the_names_of_nodes() -> None:
    """So that a trap and a table of layers can show them."""
    compiled = compile_model(onnx_models.small_cnn())
    names = [f.name for f in inspect_module(compiled.wasm).functions if f.name]
    assert [layer.name for layer in compiled.layers] == [n for n in names if not n.startswith("fleet_")]
    assert "Conv_0" in names
    assert 28 * 28 * 16 * 9 == next(layer.multiply_adds for layer in compiled.layers if layer.name == "Conv_0")
