"""Random graphs of supported operators give what onnxruntime gives, on both targets."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler import CompileOptions, Target, compile_model
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import ModelWriter, run_onnxruntime

UNARY = ["Relu", "Sigmoid", "Tanh", "Exp", "Neg", "Abs", "HardSwish", "Softplus", "Erf", "Floor", "LeakyRelu", "Cos"]
BINARY = ["Add", "Sub", "Mul", "Max", "Min"]
REDUCTIONS = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2"]


class Grower:
    """A graph of values with known shapes that grows by one random node at a time."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.writer = ModelWriter(draw(st.integers(0, 1000)))
        rank = draw(st.integers(1, 4))
        shape = [draw(st.integers(1, 9)) for _ in range(rank)]
        self.inputs = {"x": tuple(shape)}
        self.values: list[tuple[str, tuple[int, ...]]] = [(self.writer.input("x", shape), tuple(shape))]

    def pick(self) -> tuple[str, tuple[int, ...]]:
        return self.draw(st.sampled_from(self.values))

    def add(self, shape: tuple[int, ...], op_type: str, *inputs: str, **attributes: Any) -> None:
        self.values.append((self.writer.node(op_type, *inputs, **attributes), shape))

    def grow(self) -> None:
        kinds = [self.unary, self.binary, self.bounded, self.reduce, self.transpose, self.flatten, self.cut]
        kinds += [self.multiply, self.convolve, self.pool, self.join, self.softmax, self.choose]
        self.draw(st.sampled_from(kinds))()

    def unary(self) -> None:
        value, shape = self.pick()
        squashed = self.writer.node("Tanh", value)  # so that exponentials stay where floats are exact enough
        self.add(shape, self.draw(st.sampled_from(UNARY)), squashed)

    def binary(self) -> None:
        value, shape = self.pick()
        axis = self.draw(st.integers(0, len(shape) - 1))
        other = [v for v, s in self.values if s == shape]
        weights = self.writer.weights(*shape[axis:], scale=1.0)
        operands = [value, self.draw(st.sampled_from([*other, weights]))]
        self.add(shape, self.draw(st.sampled_from(BINARY)), *operands)

    def bounded(self) -> None:
        value, shape = self.pick()
        low, high = (self.writer.constant(np.float32(bound)) for bound in (-0.5, 0.75))
        self.add(shape, "Clip", value, low, high)

    def reduce(self) -> None:
        value, shape = self.pick()
        axis = self.draw(st.integers(0, len(shape) - 1))
        kept = tuple(1 if a == axis else n for a, n in enumerate(shape))
        operator = self.draw(st.sampled_from(REDUCTIONS))
        if operator == "ReduceSum":
            self.add(kept, operator, value, self.writer.constant(np.array([axis])))
        else:
            self.add(kept, operator, value, axes=[axis])

    def transpose(self) -> None:
        value, shape = self.pick()
        order = self.draw(st.permutations(range(len(shape))))
        self.add(tuple(shape[a] for a in order), "Transpose", value, perm=order)

    def flatten(self) -> None:
        value, shape = self.pick()
        axis = self.draw(st.integers(0, len(shape) - 1))
        self.add((int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))), "Flatten", value, axis=axis)

    def cut(self) -> None:
        value, shape = self.pick()
        axis = self.draw(st.integers(0, len(shape) - 1))
        start = self.draw(st.integers(0, shape[axis] - 1))
        step = self.draw(st.integers(1, 3))
        numbers = [self.writer.constant(np.array([n])) for n in (start, shape[axis], axis, step)]
        count = len(range(start, shape[axis], step))
        self.add(tuple(count if a == axis else n for a, n in enumerate(shape)), "Slice", value, *numbers)

    def multiply(self) -> None:
        value, shape = self.pick()
        columns = self.draw(st.integers(1, 19))
        weights = self.writer.weights(shape[-1], columns, scale=shape[-1] ** -0.5)
        self.add((*shape[:-1], columns), "MatMul", value, weights)

    def convolve(self) -> None:
        value, shape = self.pick()
        if len(shape) != 4:
            return self.multiply()
        is_deep = self.draw(st.booleans())
        size = self.draw(st.sampled_from([1, 3]))
        out = shape[1] if is_deep else self.draw(st.integers(1, 17))
        weights = self.writer.weights(out, 1 if is_deep else shape[1], size, size)
        stride = self.draw(st.integers(1, 2))
        pads = [size // 2] * 4
        grown = tuple((n - 1) // stride + 1 for n in shape[2:])
        groups = shape[1] if is_deep else 1
        operands = (value, weights, self.writer.weights(out))
        return self.add((shape[0], out, *grown), "Conv", *operands, pads=pads, strides=[stride] * 2, group=groups)

    def pool(self) -> None:
        value, shape = self.pick()
        if len(shape) != 4:
            return self.flatten()
        operator = self.draw(st.sampled_from(["MaxPool", "AveragePool"]))
        return self.add(shape, operator, value, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def join(self) -> None:
        value, shape = self.pick()
        axis = self.draw(st.integers(0, len(shape) - 1))
        others = [v for v, s in self.values if s == shape]
        second = self.draw(st.sampled_from(others))
        self.add(tuple(2 * n if a == axis else n for a, n in enumerate(shape)), "Concat", value, second, axis=axis)

    def softmax(self) -> None:
        value, shape = self.pick()
        self.add(shape, "Softmax", value, axis=self.draw(st.integers(0, len(shape) - 1)))

    def choose(self) -> None:
        value, shape = self.pick()
        condition = self.writer.node("Greater", value, self.writer.constant(np.float32(0.1)))
        self.add(shape, "Where", condition, value, self.writer.weights(*shape, scale=1.0))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[bytes, dict[str, tuple[int, ...]]]:
    """Return a model of up to ten nodes with its inputs; its last value is an output, and perhaps another one."""
    grower = Grower(draw)
    for _ in range(draw(st.integers(1, 10))):
        if max(np.prod(shape) for _, shape in grower.values) < 20_000:
            grower.grow()
    made = [value for value, _ in grower.values[1:]]
    outputs = dict.fromkeys([made[-1], draw(st.sampled_from(made))])
    return grower.writer.model(*outputs), grower.inputs


@pytest.mark.property
@pytest.mark.parametrize("target", list(Target))
@given(case=graphs())
def test_random_graphs_agree_with_onnxruntime(case: tuple[bytes, dict[str, tuple[int, ...]]], target: Target) -> None:
    """Within the tolerance that holds for every model."""
    model, shapes = case
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    compiled = compile_model(model, CompileOptions(target=target))
    assert_close(run_compiled(compiled, inputs), run_onnxruntime(model, inputs))
