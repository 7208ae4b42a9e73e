"""Layer normalisation in pieces becomes one node, in every form that exporters write, and nothing else does."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler import CompileOptions, Target, compile_model
from compiler.importer import import_model, read_model
from compiler.ir import Graph
from compiler.ir import operations as ops
from compiler.ir.check import check
from compiler.ir.reference import run
from compiler.passes.normalisation import fuse_layer_norm
from compiler.passes.numbers import put_numbers_into_formulas
from compiler.pipeline import optimise
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import ModelWriter, run_onnxruntime

SHAPE = (2, 3, 10)


class Pieces(ModelWriter):
    """The pieces of a layer normalisation, each in the forms that it is written in."""

    def number(self, value: float) -> str:
        """Add a constant number."""
        return self.constant(np.array(value, np.float32))

    def mean(self, x: str, form: str = "kept") -> str:
        """Add the mean over the last axis, which stays with length 1."""
        if form == "kept":
            return self.node("ReduceMean", x, axes=[-1], keepdims=1)
        mean = self.node("ReduceMean", x, axes=[-1], keepdims=0)
        return self.node("Unsqueeze", mean, self.constant(np.array([-1])))

    def square(self, x: str, form: str = "power") -> str:
        """Add the square of a value."""
        return self.node("Pow", x, self.number(2)) if form == "power" else self.node("Mul", x, x)

    def quotient(self, x: str, total: str, form: str = "root") -> str:
        """Add x / sqrt(total)."""
        match form:
            case "root":
                return self.node("Div", x, self.node("Sqrt", total))
            case "power":
                return self.node("Div", x, self.node("Pow", total, self.number(0.5)))
            case "reciprocal":
                return self.node("Mul", self.node("Reciprocal", self.node("Sqrt", total)), x)
            case "one":
                return self.node("Mul", x, self.node("Div", self.number(1), self.node("Sqrt", total)))
        return self.node("Mul", x, self.node("Pow", total, self.number(-0.5)))

    def centred(self, x: str, mean: str = "kept") -> str:
        """Add a value less its mean."""
        return self.node("Sub", x, self.mean(x, mean))

    def scaled(self, x: str, *shape: int) -> str:
        """Add a scale and a shift."""
        return self.node("Add", self.node("Mul", self.weights(*shape, scale=1.0), x), self.weights(*shape, scale=1.0))


QUOTIENTS = ("root", "power", "reciprocal", "one", "inverse power")


def graph_of(model: bytes) -> Graph:
    """Return a model as the pass gets it."""
    return put_numbers_into_formulas(import_model(read_model(model), CompileOptions()).graph)


def count(graph: Graph) -> int:
    """Return how many layer normalisations there are."""
    return sum(isinstance(node.operation, ops.LayerNorm) for node in graph.nodes)


@pytest.mark.parametrize("target", list(Target))
@pytest.mark.parametrize("quotient", QUOTIENTS)
@pytest.mark.parametrize("square", ["power", "product"])
@pytest.mark.parametrize("mean", ["kept", "put back"])
def test_every_form_becomes_one_node(mean: str, square: str, quotient: str, target: Target) -> None:
    """With its scale and shift, and the answer is that of onnxruntime."""
    w = Pieces()
    centred = w.centred(w.input("x", SHAPE), mean)
    variance = w.mean(w.square(centred, square), mean)
    normal = w.quotient(centred, w.node("Add", w.number(1e-5), variance), quotient)
    model = w.model(w.scaled(normal, SHAPE[-1]))
    nodes = optimise(import_model(read_model(model), CompileOptions())).graph.nodes
    assert ["LayerNorm"] == [type(node.operation).__name__ for node in nodes]
    inputs = {"x": w.rng.normal(3, 2, SHAPE).astype(np.float32)}
    got = run_compiled(compile_model(model, CompileOptions(target=target)), inputs)
    assert_close(got, run_onnxruntime(model, inputs))


def test_the_operator_itself_becomes_the_same_node() -> None:
    """What opset 17 has in one piece is found in the same way."""
    w = Pieces()
    x = w.input("x", SHAPE)
    model = w.model(w.node("LayerNormalization", x, w.weights(10, scale=1.0), w.weights(10, scale=1.0)))
    nodes = optimise(import_model(read_model(model), CompileOptions())).graph.nodes
    assert ["LayerNorm"] == [type(node.operation).__name__ for node in nodes]


@pytest.mark.parametrize("target", list(Target))
@pytest.mark.parametrize("scale", [(3, 10), (3, 1), (10,), (1,)])
def test_rows_may_have_several_axes(scale: tuple[int, ...], target: Target) -> None:
    """Of an image or a signal, read through a transpose; scale and shift for each element, or for some axes."""
    w = Pieces()
    x = w.node("Transpose", w.input("x", (3, 2, 10)), perm=[1, 0, 2])
    centred = w.node("Sub", x, w.node("ReduceMean", x, axes=[1, 2]))
    variance = w.node("ReduceMean", w.square(centred), axes=[1, 2])
    normal = w.quotient(centred, w.node("Add", variance, w.number(1e-5)))
    whole = w.node("LayerNormalization", w.scaled(normal, *scale), *(w.weights(3, 10, scale=1.0) for _ in "ab"), axis=1)
    model = w.model(whole)
    nodes = optimise(import_model(read_model(model), CompileOptions())).graph.nodes
    assert [2, 2] == [node.operation.axes for node in nodes if isinstance(node.operation, ops.LayerNorm)]
    inputs = {"x": w.rng.normal(3, 2, (3, 2, 10)).astype(np.float32)}
    got = run_compiled(compile_model(model, CompileOptions(target=target)), inputs)
    assert_close(got, run_onnxruntime(model, inputs))


def _different_axes(w: Pieces, x: str) -> str:
    centred = w.node("Sub", x, w.node("ReduceMean", x, axes=[1, 2]))
    return w.quotient(centred, w.node("Add", w.mean(w.square(centred)), w.number(1e-5)))


def _other_axis(w: Pieces, x: str) -> str:
    centred = w.node("Sub", x, w.node("ReduceMean", x, axes=[1]))
    variance = w.node("ReduceMean", w.square(centred), axes=[1])
    return w.quotient(centred, w.node("Add", variance, w.number(1e-5)))


def _sum_in_place_of_mean(w: Pieces, x: str) -> str:
    centred = w.centred(x)
    total = w.node("ReduceSum", w.square(centred), w.constant(np.array([-1])))
    return w.quotient(centred, w.node("Add", total, w.number(1e-5)))


def _square_of_something_else(w: Pieces, x: str) -> str:
    return w.quotient(w.centred(x), w.node("Add", w.mean(w.square(x)), w.number(1e-5)))


def _mean_of_something_else(w: Pieces, x: str) -> str:
    centred = w.node("Sub", x, w.mean(w.node("Relu", x)))
    return w.quotient(centred, w.node("Add", w.mean(w.square(centred)), w.number(1e-5)))


def _cube(w: Pieces, x: str) -> str:
    centred = w.centred(x)
    return w.quotient(centred, w.node("Add", w.mean(w.node("Pow", centred, w.number(4))), w.number(1e-5)))


def _no_root(w: Pieces, x: str) -> str:
    centred = w.centred(x)
    return w.node("Div", centred, w.node("Add", w.mean(w.square(centred)), w.number(1e-5)))


def _turned_over(w: Pieces, x: str) -> str:
    centred = w.centred(x)
    root = w.node("Sqrt", w.node("Add", w.mean(w.square(centred)), w.number(1e-5)))
    return w.node("Div", root, w.node("Add", centred, w.number(9)))


def _epsilon_of_each_element(w: Pieces, x: str) -> str:
    centred = w.centred(x)
    return w.quotient(centred, w.node("Add", w.mean(w.square(centred)), w.constant(np.full(10, 0.1, np.float32))))


def _mean_of_another_row(w: Pieces, x: str) -> str:
    centred = w.node("Sub", x, w.node("Transpose", w.mean(x), perm=[0, 1, 2]))
    first = w.node("Slice", w.mean(w.square(centred)), *(w.constant(np.array([n])) for n in (0, 1, 1)))
    return w.quotient(centred, w.node("Add", first, w.number(1e-5)))


NEAR_MISSES = [
    _different_axes,
    _other_axis,
    _sum_in_place_of_mean,
    _square_of_something_else,
    _mean_of_something_else,
    _cube,
    _no_root,
    _turned_over,
    _epsilon_of_each_element,
    _mean_of_another_row,
]


@pytest.mark.parametrize("build", NEAR_MISSES)
def test_what_only_looks_like_it_stays(build: Callable[[Pieces, str], str]) -> None:
    """Another axis, another sum, another square: those mean something else, and are computed as they stand."""
    w = Pieces()
    model = w.model(build(w, w.input("x", SHAPE)))
    assert 0 == count(fuse_layer_norm(graph_of(model)))
    inputs = {"x": w.rng.normal(3, 2, SHAPE).astype(np.float32)}
    assert_close(run_compiled(compile_model(model), inputs), run_onnxruntime(model, inputs))


@pytest.mark.parametrize("also", ["mean", "centred", "variance"])
def test_values_that_are_read_elsewhere_stay(also: str) -> None:
    """What something else needs is computed once, for both."""
    w = Pieces()
    x = w.input("x", SHAPE)
    centred = w.centred(x)
    values = {"mean": w.mean(x), "centred": centred, "variance": w.mean(w.square(centred))}
    normal = w.quotient(centred, w.node("Add", values["variance"], w.number(1e-5)))
    assert 0 == count(fuse_layer_norm(graph_of(w.model(normal, w.node("Relu", values[also])))))


@pytest.mark.property
@settings(deadline=None)
@given(st.data())
def test_fused_or_not_the_answers_are_the_same(data: st.DataObject) -> None:
    """Any shape, any form of the pieces, with work before and behind: by definition in numpy, and in the module."""
    w = Pieces(data.draw(st.integers(0, 99)))
    shape = [*data.draw(st.lists(st.integers(1, 7), min_size=0, max_size=3)), data.draw(st.integers(2, 19))]
    x = w.node(data.draw(st.sampled_from(["Identity", "Relu", "Neg"])), w.input("x", shape))
    centred = w.centred(x, data.draw(st.sampled_from(["kept", "put back"])))
    variance = w.mean(w.square(centred, data.draw(st.sampled_from(["power", "product"]))))
    total = w.node("Add", variance, w.number(data.draw(st.sampled_from([0.5, 0.01]))))
    normal = w.quotient(centred, total, data.draw(st.sampled_from(QUOTIENTS)))
    normal = w.scaled(normal, *(n if data.draw(st.booleans()) else 1 for n in shape))
    model = w.model(w.node("Add", w.node("Tanh", normal), x))
    graph = graph_of(model)
    fused = fuse_layer_norm(graph)
    check(fused, "the pass")
    assert (0, 1) == (count(graph), count(fused))
    inputs = {"x": w.rng.normal(1, 2, shape).astype(np.float32)}
    want = run(graph, [inputs["x"]])
    assert_close(run(fused, [inputs["x"]]), want)
    assert_close(run_compiled(compile_model(model), inputs), want)
