"""Transposes move behind the work on what they turn until they meet, and no result changes by a bit."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler import CompileOptions, Target, compile_model
from compiler.dtypes import DType
from compiler.formula import Writer
from compiler.importer import import_model, read_model
from compiler.ir import Graph, TensorType
from compiler.ir import operations as ops
from compiler.ir.builder import GraphBuilder
from compiler.ir.check import check
from compiler.ir.reference import run
from compiler.passes.views import sink_transposes
from compiler.pipeline import optimise
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import ModelWriter, run_onnxruntime

TO_LAST, TO_SECOND = (0, 2, 3, 1), (0, 3, 1, 2)
SHAPE = (2, 5, 3, 4)


class Builder(GraphBuilder):
    """A graph of operations on small whole numbers: their sums are exact in any order."""

    def value(self, *shape: int) -> str:
        """Add an input."""
        return self.input(TensorType(DType.F32, shape))

    def numbers(self, *shape: int) -> str:
        """Add a constant."""
        return self.constant(np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 7 - 3)

    def total(self, x: str, *axes: int, combine: str = "add") -> str:
        """Add a reduction."""
        return self.reduce(combine, x, axes)


def sunk(graph: Graph) -> Graph:
    """Return the graph after the pass, which means the same."""
    after = sink_transposes(graph)
    check(after, "sink_transposes")
    rng = np.random.default_rng(0)
    inputs = [rng.integers(-4, 5, graph.types[name].shape).astype(np.float32) for name in graph.inputs]
    for want, got in zip(run(graph, inputs), run(after, inputs), strict=True):
        np.testing.assert_array_equal(got, want, strict=True)
    return after


def transposes(graph: Graph) -> int:
    """Return how many there are."""
    return sum(isinstance(node.operation, ops.Transpose) for node in graph.nodes)


def _slice(b: Builder, x: str) -> str:
    return b.slice(x, (0, 2, 0, 4), (2, 1, 2, 2), (1, 1, 2, -2))


WORK: dict[str, Callable[[Builder, str], str]] = {
    "elementwise": lambda b, x: b.apply("neg", x),
    "a number for each channel": lambda b, x: b.apply("mul", x, b.numbers(5)),
    "a number for each pixel": lambda b, x: b.apply("sub", b.numbers(3, 4, 1), x),
    "one number": lambda b, x: b.apply("max", b.numbers(), x),
    "two turned alike": lambda b, x: b.apply("add", x, b.transpose(b.value(*SHAPE), TO_LAST)),
    "a small one that is not turned": lambda b, x: b.apply("mul", x, b.apply("neg", b.value(2, 1, 1, 5))),
    "a vector that is not turned": lambda b, x: b.apply("mul", x, b.apply("neg", b.value(5))),
    "what is summed up, put back": lambda b, x: b.apply("mul", x, b.reshape(b.total(x, 1, 2), (2, 1, 1, 5))),
    "a join": lambda b, x: b.add(ops.Concat(3), x, b.transpose(b.value(2, 2, 3, 4), TO_LAST)),
    "a join with constants": lambda b, x: b.add(ops.Concat(1), b.numbers(2, 2, 4, 5), x),
    "padding": lambda b, x: b.add(ops.Pad((0, 1, 0, 2), (0, 0, 3, 1), 2.0), x),
    "a cut": _slice,
    "a window": lambda b, x: b.total(b.add(ops.Unfold(1, 2, 1, 2, 1), x), 2, combine="max"),
}


@pytest.mark.parametrize("name", WORK)
def test_work_between_two_turns_is_done_without_them(name: str) -> None:
    """There and back again: nothing is turned any more."""
    b = Builder()
    x = WORK[name](b, b.transpose(b.value(*SHAPE), TO_LAST))
    after = sunk(b.graph([b.transpose(x, TO_SECOND)]))
    assert 0 == transposes(after)


def test_sums_are_over_the_dimensions_behind_the_turn() -> None:
    """What is left needs no turn when its dimensions are in order."""
    b = Builder()
    after = sunk(b.graph([b.total(b.transpose(b.value(*SHAPE), TO_LAST), 1, 2)]))
    assert [(2, 3)] == [node.operation.axes for node in after.nodes if isinstance(node.operation, ops.Reduce)]
    assert 0 == transposes(after)


def test_dimensions_of_one_are_no_turn() -> None:
    """A signal that is made an image for its convolution: the work behind it joins the convolution."""
    b = Builder()
    image = b.reshape(b.value(2, 5, 7), (2, 5, 1, 7))
    signal = b.reshape(b.transpose(image, TO_SECOND), (2, 7, 5))
    after = sunk(b.graph([b.reshape(b.apply("neg", signal), (2, 1, 7, 5))]))
    assert 1 == transposes(after)
    assert isinstance(after.nodes[0].operation, ops.Map)


def test_a_turn_that_is_needed_is_made_once() -> None:
    """For two outputs and a product that read it."""
    b = Builder()
    turned = b.transpose(b.value(2, 3), (1, 0))
    product = b.add(ops.Softmax(is_log=False), turned)
    after = sunk(b.graph([b.apply("neg", turned), product, turned]))
    assert 2 == transposes(after)
    assert {(3, 2)} == {after.types[name].shape for name in after.outputs}


def test_large_values_that_are_turned_differently_stay() -> None:
    """One of them has to be turned in any case."""
    b = Builder()
    x, y = b.value(2, 3), b.value(3, 2)
    after = sunk(b.graph([b.apply("add", b.transpose(x, (1, 0)), y)]))
    assert ["Transpose", "Map"] == [type(node.operation).__name__ for node in after.nodes]


def test_a_value_that_is_turned_back_may_be_an_input() -> None:
    """Then the output is the input."""
    b = Builder()
    x = b.value(2, 3)
    after = sunk(b.graph([b.reshape(b.transpose(b.reshape(x, (2, 1, 3)), (1, 0, 2)), (2, 3))]))
    assert after.inputs == after.outputs


def _image(w: ModelWriter, x: str, before: int, after: int) -> str:
    """Add a convolution as TensorFlow's exporter writes it: channels last outside, turned around it."""
    x = w.node("Conv", w.node("Transpose", x, perm=TO_SECOND), w.weights(after, before, 3, 3), pads=[1, 1, 1, 1])
    x = w.node("Transpose", x, perm=TO_LAST)
    x = w.node("Add", w.node("Mul", x, w.weights(after, scale=1.0)), w.weights(after, scale=1.0))
    gate = w.node("ReduceMean", x, axes=[1, 2], keepdims=1)
    return w.node("Mul", w.node("Relu", x), w.node("Sigmoid", gate))


@pytest.mark.parametrize("target", list(Target))
def test_an_image_with_channels_last_is_turned_once(target: Target) -> None:
    """At its entry, which costs nothing; scale, shift and activation are in the convolutions."""
    w = ModelWriter()
    x = _image(w, _image(w, w.input("x", (1, 8, 9, 3)), 3, 6), 6, 4)
    model = w.model(w.node("ReduceMean", x, axes=[1, 2], keepdims=0))
    graph = optimise(import_model(read_model(model), CompileOptions())).graph
    assert 1 == transposes(graph)
    inputs = {"x": w.rng.standard_normal((1, 8, 9, 3)).astype(np.float32)}
    compiled = compile_model(model, CompileOptions(target=target))
    assert_close(run_compiled(compiled, inputs), run_onnxruntime(model, inputs))


class Random:
    """A graph that grows by random nodes."""

    def __init__(self, data: st.DataObject) -> None:
        self.data, self.b = data, Builder()
        shapes = data.draw(st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=2))
        self.values = [self.b.value(*shape) for shape in shapes]

    def pick(self, count: int) -> int:
        """Draw a number below another one."""
        return self.data.draw(st.integers(0, count - 1))

    def grow(self) -> None:
        """Add a node."""
        x = self.values[self.pick(len(self.values))]
        steps = (
            self.turn,
            self.turn,
            self.ones,
            self.unary,
            self.binary,
            self.reduction,
            self.join,
            self.pad,
            self.cut,
        )
        result = steps[self.pick(len(steps))](x)
        if self.b.type(result).elements <= 4_000:
            self.values.append(result)

    def turn(self, x: str) -> str:
        return self.b.transpose(x, self.data.draw(st.permutations(range(len(self.b.shape(x))))))

    def ones(self, x: str) -> str:
        shape = [n for n in self.b.shape(x) if n != 1]
        for _ in range(self.pick(3) if len(shape) < 5 else 0):
            shape.insert(self.pick(len(shape) + 1), 1)
        return self.b.reshape(x, shape)

    def unary(self, x: str) -> str:
        writer = Writer([DType.F32])
        return self.b.map(writer.formula(writer.apply("sub", writer.const(DType.F32, 2.0), writer.arg(0))), x)

    def binary(self, x: str) -> str:
        b, shape = self.b, self.b.shape(x)
        kept = shape[len(shape) - self.pick(len(shape) + 1) :]
        other = b.numbers(*(n if self.pick(2) else 1 for n in kept))
        fitting = [v for v in self.values if self.fits(b.shape(v), shape)]
        pair = (x, fitting[self.pick(len(fitting))] if self.pick(3) else other)
        return b.apply(("add", "sub", "max")[self.pick(3)], *(pair if self.pick(2) else pair[::-1]))

    @staticmethod
    def fits(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return all(n == m or 1 in (n, m) for n, m in zip(reversed(a), reversed(b), strict=False))

    def reduction(self, x: str) -> str:
        rank = len(self.b.shape(x))
        axes = [n for n in range(rank) if self.pick(2)]
        return self.b.total(x, *axes, combine=("add", "max")[self.pick(2)]) if axes else x

    def join(self, x: str) -> str:
        shape = self.b.shape(x)
        alike = [v for v in self.values if self.b.shape(v) == shape]
        chosen = [x, alike[self.pick(len(alike))] if self.pick(3) else self.b.numbers(*shape)]
        return self.b.add(ops.Concat(self.pick(len(shape))), *chosen) if shape else x

    def pad(self, x: str) -> str:
        before, after = (tuple(self.pick(2) for _ in self.b.shape(x)) for _ in range(2))
        return self.b.add(ops.Pad(before, after, 1.0), x) if before else x

    def cut(self, x: str) -> str:
        shape = self.b.shape(x)
        starts = [self.pick(n) for n in shape]
        return self.b.slice(x, starts, [n - start for n, start in zip(shape, starts, strict=True)])


@pytest.mark.property
@given(st.data())
def test_random_graphs_mean_the_same_to_the_bit(data: st.DataObject) -> None:
    """Every value of the graph is an output or leads to one; the invariants hold, and the work is done as often."""
    network = Random(data)
    for _ in range(data.draw(st.integers(1, 12))):
        network.grow()
    graph = network.b.graph(network.values[-3:])
    after = sunk(graph)
    work = [[type(n.operation) for n in g.nodes if not isinstance(n.operation, ops.View)] for g in (graph, after)]
    assert work[0] == work[1]
