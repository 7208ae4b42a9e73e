"""Which dimension of each value is the innermost in memory, and which values get a border."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler import CompileOptions, Target, compile_model
from compiler.dtypes import DType
from compiler.formula import identity
from compiler.importer import import_model, read_model
from compiler.ir import Graph, TensorType
from compiler.ir import operations as ops
from compiler.ir.axes import reshape_axes
from compiler.ir.builder import GraphBuilder
from compiler.lowering.layout import Layout, channels_last, choose_layouts
from compiler.lowering.lowering import Lowering, Memory
from compiler.lowering.placement import row_major
from compiler.options import Weights
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import ModelWriter, run_onnxruntime

IMAGE = (2, 5, 6, 7)
TO_LAST, TO_SECOND = (0, 2, 3, 1), (0, 3, 1, 2)


class Builder(GraphBuilder):
    """A graph of operations, without a model file."""

    def image(self, shape: tuple[int, ...] = IMAGE) -> str:
        """Add an input of floats."""
        return self.input(TensorType(DType.F32, shape))

    def conv(self, x: str, channels: int = 8, pad: int = 1) -> str:
        """Add a convolution of 3 x 3."""
        weights = self.constant(np.ones((channels, self.shape(x)[1], 3, 3), np.float32))
        operation = ops.Conv((1, 1), (1, 1), (pad,) * 4, 1, identity(DType.F32))
        return self.add(operation, x, weights, self.constant(np.zeros(channels, np.float32)))


def lowered(graph: Graph) -> Lowering:
    """Return a graph with a place for each value."""
    low = Lowering(graph, Target.RELAXED, Memory(Weights.SMALL))
    low.run()
    return low


def innermost(graph: Graph, name: str) -> int:
    """Return the innermost dimension of a value."""
    return choose_layouts(graph)[name].order[-1]


def test_what_surrounds_a_convolution_has_its_channels_innermost() -> None:
    """Before it and behind it, through elementwise work, joins and windows."""
    b = Builder()
    before = b.apply("neg", b.image())
    after = b.conv(before)
    joined = b.add(ops.Concat(2), after, b.apply("abs", after))
    window = b.reduce("max", b.add(ops.Unfold(2, 10, 1, 3, 1), joined), (3,))
    graph = b.graph([window])
    assert [1, 1, 1, 1] == [innermost(graph, name) for name in (before, after, joined, window)]


def test_behind_a_transpose_the_channels_are_another_dimension() -> None:
    """An exporter that turns an image around does not make it lie across."""
    b = Builder()
    turned = b.transpose(b.conv(b.image()), TO_LAST)
    between = b.apply("neg", turned)
    graph = b.graph([b.conv(b.transpose(between, TO_SECOND))])
    assert (0, 1, 2, 3) == choose_layouts(graph)[between].order


def test_a_turned_image_is_padded_where_it_lies() -> None:
    """The border goes where the convolution sees it, and nothing is copied: a border, the work and the product."""
    b = Builder()
    between = b.apply("neg", b.image((2, 6, 7, 5)))
    graph = b.graph([b.conv(b.transpose(between, TO_SECOND), 1)])
    assert ((0, 0), (1, 1), (1, 1), (0, 0)) == choose_layouts(graph)[between].border
    assert 3 == len(lowered(graph).steps)


def test_a_part_of_an_image_gets_no_border() -> None:
    """What lies beside it are pixels, not zeros."""
    b = Builder()
    whole = b.apply("neg", b.image())
    graph = b.graph([b.conv(b.slice(whole, (0, 0, 1, 0), (2, 5, 5, 7)))])
    assert ((0, 0),) * 4 == choose_layouts(graph)[whole].border


def test_an_image_that_is_enlarged_keeps_its_channels_innermost() -> None:
    """Repeated pixels have to be copied; their channels stay together then."""
    b = Builder()
    small = b.conv(b.image())
    n, c, h, w = b.shape(small)
    large = b.reshape(b.broadcast(b.reshape(small, (n, c, h, 1, w, 1)), (n, c, h, 2, w, 2)), (n, c, 2 * h, 2 * w))
    graph = b.graph([b.conv(large)])
    assert 1 == lowered(graph).placement(large).strides[1]


@pytest.mark.parametrize(
    ("channels", "pixel"), [(64, 64), (255, 255), (256, 272), (512, 528), (768, 784), (1000, 1000)]
)
def test_pixels_do_not_crowd_one_another_in_the_cache(channels: int, pixel: int) -> None:
    """Where their distance is a multiple of 1 KiB, there is a gap behind each: a window of 3 x 16 fits eight ways."""
    placement = Layout(channels_last(4), ((0, 0), (0, 0), (1, 1), (1, 1))).placement(
        0, TensorType(DType.F32, (1, channels, 14, 14))
    )
    assert (1, 16 * pixel, pixel) == placement.strides[1:]
    lines = [(row * placement.strides[2] + column * pixel) * 4 // 64 for row in range(3) for column in range(16)]
    assert max(Counter(line % 64 for line in lines).values()) <= 8


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3)])
def test_rows_have_no_gaps(order: tuple[int, ...]) -> None:
    """They are read one behind the other."""
    layout, kind = Layout(order, ((0, 0),) * 4), TensorType(DType.F32, (2, 3, 5, 256))
    assert 2 * 3 * 5 * 256 == np.prod(layout.extents(kind))


def test_a_border_has_no_gap_before_it() -> None:
    """Where channels are pixels to a convolution behind a transpose, zeros follow them at once."""
    layout = Layout(channels_last(4), ((0, 0), (2, 2), (0, 0), (1, 1)))
    assert [2, 256, 1, 9] == layout.extents(TensorType(DType.F32, (2, 252, 1, 7)))


def test_rows_of_other_work_stay_rows() -> None:
    """What a product or a softmax writes is row-major, whoever reads it."""
    b = Builder()
    rows = b.add(ops.Softmax(is_log=False), b.image())
    graph = b.graph([b.conv(rows)])
    assert 3 == innermost(graph, rows)


def test_heads_are_written_side_by_side() -> None:
    """Products that are read turned with whole rows lie as they are read, and joining them copies nothing."""
    b = Builder()
    a, v, bias = b.image((1, 3, 6, 5)), b.image((1, 3, 5, 4)), b.constant(np.zeros(4, np.float32))
    product = b.add(ops.MatMul(identity(DType.F32)), a, v, bias)
    joined = b.reshape(b.transpose(product, (0, 2, 1, 3)), (1, 6, 12))
    low = lowered(b.graph([b.add(ops.Softmax(is_log=False), joined)]))
    assert low.placement(product).buffer == low.placement(joined).buffer


@pytest.mark.parametrize("target", list(Target))
def test_a_convolution_reads_what_a_loop_stacks(target: Target) -> None:
    """A loop writes its results one behind the other, whatever reads them."""
    w = ModelWriter()
    steps, batch, hidden = 6, 2, 4
    x = w.input("x", (steps, batch, 3))
    y = w.node("LSTM", x, w.weights(1, 4 * hidden, 3), w.weights(1, 4 * hidden, hidden), hidden_size=hidden)
    y = w.node("Transpose", w.node("Squeeze", y, w.constant(np.array([1]))), perm=[1, 2, 0])
    model = w.model(w.node("Conv", y, w.weights(5, hidden, 3), kernel_shape=[3], pads=[1, 1]))
    inputs = {"x": w.rng.standard_normal((steps, batch, 3)).astype(np.float32)}
    compiled = compile_model(model, CompileOptions(target=target))
    assert_close(run_compiled(compiled, inputs), run_onnxruntime(model, inputs))


@pytest.mark.parametrize("step", [1, 2])
def test_a_column_of_pixels_is_convolved_where_it_lies(step: int) -> None:
    """Rows of one pixel, read through a transpose, with further operands beside them."""
    w = ModelWriter()
    x = w.node("Reshape", w.node("Relu", w.input("x", (2, 30, 12))), w.constant(np.array([2, 30, 12, 1])))
    x = w.node("Transpose", x, perm=[0, 2, 1, 3])
    y = w.node("Conv", x, w.weights(9, 12, 5, 1), kernel_shape=[5, 1], strides=[step, 1])
    model = w.model(w.node("Add", w.node("Mul", y, w.input("z", (2, 9, 26 // step, 1))), w.input("s", (9, 1, 1))))
    compiled = compile_model(model)
    inputs = {t.name: w.rng.standard_normal(t.shape).astype(np.float32) for t in compiled.spec.inputs}
    assert_close(run_compiled(compiled, inputs), run_onnxruntime(model, inputs))


def test_rows_before_a_convolution_are_not_copied_back_and_forth() -> None:
    """Rows that are normalised, and then convolved behind a transpose, are stored as rows all the way."""
    w = ModelWriter()
    x = w.node("Add", w.input("x", (1, 40, 24)), w.weights(24))
    x = w.node("LayerNormalization", x, w.weights(24), w.weights(24))
    x = w.node("Reshape", w.node("Mul", x, w.input("y", (1, 40, 24))), w.constant(np.array([1, 5, 8, 24])))
    x = w.node("Transpose", x, perm=TO_SECOND)
    model = w.model(w.node("Conv", x, w.weights(8, 24, 1, 1)))
    graph = import_model(read_model(model), CompileOptions()).graph
    orders = {layout.order[-1] for name, layout in choose_layouts(graph).items() if graph.types[name].rank == 3}
    assert {2} == orders


@pytest.mark.property
@given(st.lists(st.integers(1, 4), max_size=5), st.data())
def test_dimensions_that_stay_have_the_same_neighbours(old: list[int], data: st.DataObject) -> None:
    """In both shapes they are as long, and their elements as far apart; and a reshape to itself keeps them all."""
    new = [n for length in old for n in ([length], [1, length], [length, 1])[data.draw(st.integers(0, 2))]]
    if new and data.draw(st.integers(0, 1)):
        at = data.draw(st.integers(0, len(new) - 1))
        new[at : at + 2] = [int(np.prod(new[at : at + 2]))]
    axes = reshape_axes(old, new)
    kept = [(axis, n) for n, axis in enumerate(axes) if axis is not None]
    assert [(old[a], row_major(old)[a]) for a, _ in kept] == [(new[n], row_major(new)[n]) for _, n in kept]
    joined = 2 if sorted(n for n in old if n > 1) != sorted(n for n in new if n > 1) else 0
    assert len(kept) == sum(n > 1 for n in old) - joined
