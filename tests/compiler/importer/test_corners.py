"""Corners of operators, where a compiler is easily wrong, against onnxruntime."""

import struct

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent.runtime.errors import TrapError
from compiler import compile_model
from compiler.errors import UnsupportedError
from tests.compiler.execution import Runner
from tests.compiler.importer.test_odd_graphs import compare, graph
from tests.compiler.onnx_models import Array, ModelWriter

CORNERS = {
    "steps and dilations that share no factor": """g (float[1, 2, 5, 6] x) => (float[1, 3, a, b] y) {
        y = ConvTranspose <strides = [2, 3], dilations = [2, 1], pads = [1, 0, 2, 1]> (x, w) }""",
    "outputs that no tap reaches": """g (float[1, 2, 5, 6] x) => (float[1, 3, a, b] y) {
        y = ConvTranspose <strides = [2, 2], dilations = [2, 2], output_padding = [1, 0]> (x, w) }""",
    "an odd shape that is asked for": """g (float[1, 2, 5, 6] x) => (float[1, 3, 10, 18] y) {
        y = ConvTranspose <strides = [2, 3], output_shape = [10, 18]> (x, w) }""",
    "nearest neighbours on an edge": """g (float[1, 1, 5, 6] x) => (float[1, 1, a, b] y)
        <float[4] s = {1, 1, 1.7, 2.3}> { y = Resize <coordinate_transformation_mode = "half_pixel"> (x, , s) }""",
    "nearest neighbours on an edge, from above": """g (float[1, 1, 5, 6] x) => (float[1, 1, a, b] y)
        <float[4] s = {1, 1, 0.5, 0.6}> { y = Resize <nearest_mode = "floor"> (x, , s) }""",
    "pixels between pixels": """g (uint8[1, 1, 4, 5] x) => (uint8[1, 1, 7, 9] y)
        <int64[4] n = {1, 1, 7, 9}> { y = Resize <mode = "linear"> (x, , , n) }""",
    "cut and continued": """g (float[5, 6] x) => (float[4, 9] y)
        <int64[4] p = {-2, 2, 1, 1}> { y = Pad <mode = "wrap"> (x, p) }""",
    "a power of a whole number that is none": """g (int64[6] x) => (int64[4, 6] y)
        <float[4, 1] e = {0.5, 1.7, 3, 0}, int64[6] b = {0, 1, 2, 3, 10, 99}>
        { none = Sub(x, x) a = Add(b, none) y = Pow(a, e) }""",
    "places of the greatest": """g (float[2, 3, 7, 6] x) => (float[2, 3, a, b] y, int64[2, 3, a, b] i)
        { r = Round(x) y, i = MaxPool <kernel_shape = [3, 2], strides = [2, 1], pads = [1, 1, 0, 1],
                                       dilations = [1, 2], ceil_mode = 1> (r) }""",
    "places in the other order": """g (float[1, 2, 4, 5, 3] x) => (float[1, 2, a, b, c] y, int64[1, 2, a, b, c] i)
        { y, i = MaxPool <kernel_shape = [2, 2, 2], storage_order = 1> (x) }""",
    "places where all are the least": """g (int8[1, 1, 4, 4] x) => (int8[1, 1, 4, 4] y, int64[1, 1, 4, 4] i)
        <int8 least = {-128}> { none = Sub(x, x) all = Add(none, least)
          y, i = MaxPool <kernel_shape = [2, 2], auto_pad = "SAME_LOWER"> (all) }""",
    "back to where they were": """g (float[1, 2, 6, 4] x) => (float[1, 2, a, b] y)
        { v, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
          y = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (v, i) }""",
    "norms of whole numbers": """g (int64[3, 4] x, int32[3, 4] i) => (int64[3] y, int32[4] z)
        { y = ReduceL2 <axes = [1], keepdims = 0> (x) z = ReduceL2 <axes = [0], keepdims = 0> (i) }""",
    "the norm of everything": "g (float[2, 3, 4, 5] x) => (float[2, 3, 1, 1] y) { y = GlobalLpPool <p = 3> (x) }",
    "a diagonal": """g (float[3, 4, 3] x) => (float[4, 3] y) { y = Einsum <equation = "iji->ji"> (x) }""",
    "a trace": """g (float[2, 4, 4] x) => (float[2] y) { y = Einsum <equation = "bii->b"> (x) }""",
    "diagonals in a product": """g (float[3, 3] x, float[3, 4] z) => (float[4] y)
        { y = Einsum <equation = "ii,ij->j"> (x, z) }""",
    "a power below zero": """g (int32[4] x) => (int32[4, 4] y)
        <int32[4, 1] e = {-3, -2, 0, 3}, int32[4] b = {-2, -1, 1, 2}>
        { none = Sub(x, x) a = Add(b, none) y = Pow(a, e) }""",
}


@pytest.mark.parametrize("text", CORNERS.values(), ids=CORNERS.keys())
def test_corners(text: str) -> None:
    """One operator each, as a text."""
    model = graph(text, 17 if "wrap" not in text else 19)
    if "(x, w)" in text:
        weights = np.random.default_rng(1).standard_normal((2, 3, 3, 4))
        model.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel()))
    compare(model)


def test_neighbours_and_masks_of_old_opsets() -> None:
    """Before opset 11 images shrink to the neighbour behind; before opset 10 the mask of a dropout is of floats."""
    shrunk = """g (float[1, 1, 7, 6] x) => (float[1, 1, a, b] y)
        <float[4] s = {1, 1, 0.5, 2}> { y = Resize <mode = "nearest"> (x, s) }"""
    compare(graph(shrunk, 10))
    compare(graph("g (float[3] x) => (float[3] y, bool[3] m) { y, m = Dropout(x) }", 10))
    old = graph("g (float[3] x) => (float[3] y, float[3] m) { y, m = Dropout(x) }", 7)
    assert {"FP32"} == {tensor.datatype for tensor in compile_model(old.SerializeToString()).spec.outputs}


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_places_of_an_old_opset(mode: str) -> None:
    """Without the half pixel that others take away again; opset 13 has them no more."""
    w = ModelWriter()
    x, none, scales = w.input("x", [1, 2, 7, 5]), w.constant(np.zeros(0, np.float32)), np.array([1, 1, 1.5, 0.6])
    y = w.node(
        "Resize", x, none, w.constant(scales.astype(np.float32)),
        mode=mode, coordinate_transformation_mode="tf_half_pixel_for_nn",
    )  # fmt: skip
    compare(onnx.load_model_from_string(w.model(y, opset=11)))


def test_an_image_of_which_nothing_is_left() -> None:
    """It is refused with its shape."""
    text = """g (float[1, 1, 2, 6] x) => (float[1, 1, a, b] y) <float[4] s = {1, 1, 0.4, 1}> { y = Resize (x, , s) }"""
    with pytest.raises(UnsupportedError, match=r"shape \[1, 1, 0, 6\]: nothing is left"):
        compile_model(graph(text).SerializeToString())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_gates_that_are_clipped(kind: str) -> None:
    """The state of an LSTM is not, on its way out."""
    w = ModelWriter()
    size = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * 5
    weights = [w.weights(2, size, 6, scale=1.0), w.weights(2, size, 5, scale=1.0)]
    y = w.node(kind, w.input("x", [4, 3, 6]), *weights, hidden_size=5, direction="bidirectional", clip=0.3)
    model = onnx.load_model_from_string(w.model(y))
    compare(model, {"x": w.rng.standard_normal((4, 3, 6)).astype(np.float32) * 3})


def test_numbers_whose_squares_are_too_large() -> None:
    """And those whose squares hide the 1 beside them."""
    numbers: Array = np.array([0, -0.5, 3, -300, 9e4, 2e5, 1e20, 3e38, np.inf], np.float32)
    model = graph("g (float[9] x) => (float[9] y, float[9] z) { y = Asinh(x) a = Abs(x) b = Exp(a) z = Acosh(a) }")
    compare(model, {"x": numbers})


@pytest.mark.parametrize("kind", ["uint8", "uint32", "uint64"])
def test_numbers_without_a_sign_are_their_own_size(kind: str) -> None:
    """Also those whose first bit is set."""
    numbers = np.array([0, 1, np.iinfo(kind).max, np.iinfo(kind).max // 2 + 1], kind)
    compare(graph(f"g ({kind}[4] x) => ({kind}[4] y) {{ y = Abs(x) }}"), {"x": numbers})


@pytest.mark.parametrize("index", [2, -3, 1 << 32, -(1 << 32), (1 << 63) - 1])
def test_an_index_that_names_nothing_is_a_trap(index: int) -> None:
    """Also one whose low half would name something."""
    model = graph("g (float[2] x, int64[1] i) => (float[1] y) { y = Gather(x, i) }")
    with Runner(compile_model(model.SerializeToString())) as runner, pytest.raises(TrapError):
        runner.run({"x": np.ones(2, np.float32), "i": np.frombuffer(struct.pack("<q", index), np.int64)})


@pytest.mark.parametrize(
    "text",
    [
        "g (int32[2] x) => (int32[2] y) { y = Sigmoid(x) }",
        "g (int8[1, 1, 2, 2] x) => (int8[1, 1, 1, 1] y) { y = GlobalAveragePool(x) }",
        "g (bool[2] x) => (bool[2] y) { y = Add(x, x) }",
        "g (float[2] x) => (float[2] y) { y = BitwiseNot(x) }",
    ],
)
def test_elements_for_which_an_operator_is_not_defined(text: str) -> None:
    """They are refused with the operator: no file check looks at them."""
    with pytest.raises(UnsupportedError, match=r"input 0 is \w+, for which it is not defined"):
        compile_model(graph(text, 18).SerializeToString())
