"""Quantised models: whole numbers are equal, also where sums exceed what a float holds exactly.

The evaluator of the ONNX project is what they are held against: onnxruntime saturates products of unsigned and signed
bytes at 16 bits on a CPU without AVX-512 VNNI, and gives other sums there.
"""

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from compiler import compile_model
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import Array, ModelWriter, run_onnxruntime

U8, I8 = TensorProto.UINT8, TensorProto.INT8


Engine = Callable[[bytes, dict[str, Array]], list[Array]]


def run_reference(model: bytes, inputs: dict[str, Array]) -> list[Array]:
    return [np.asarray(output) for output in ReferenceEvaluator(model).run(None, inputs)]


def compare(model: bytes, inputs: dict[str, Array], run: Engine = run_reference) -> None:
    """Hold a model against another engine; bytes may be off by one step, where rounding is on the edge."""
    got, want = run_compiled(compile_model(model), inputs), run(model, inputs)
    for a, b in zip(got, want, strict=True):
        assert (b.shape, b.dtype) == (a.shape, a.dtype)
        if b.dtype.kind == "f":
            assert_close([a], [b])
            continue
        if b.dtype.itemsize > 1:
            assert np.array_equal(a, b)
            continue
        difference = np.abs(a.astype(int) - b.astype(int))
        assert difference.max() <= 1
        assert (difference != 0).mean() < 0.01


def scalar(w: ModelWriter, value: float, kind: type = np.float32) -> str:
    return w.constant(np.asarray(value, kind))


@pytest.mark.parametrize("depth", [3, 258, 700])
def test_products_of_bytes_are_exact(depth: int) -> None:
    """At the ends of the range of bytes, and deeper than floats are exact."""
    w = ModelWriter()
    a, b = w.input("a", [5, depth], U8), w.input("b", [depth, 6], I8)
    model = w.model(w.node("MatMulInteger", a, b, scalar(w, 255, np.uint8), scalar(w, -128, np.int8)))
    rng = np.random.default_rng(0)
    inputs = {
        "a": rng.choice([0, 1, 255], (5, depth)).astype(np.uint8),
        "b": rng.choice([-128, 3, 127], (depth, 6)).astype(np.int8),
    }
    compare(model, inputs)


def test_products_with_a_zero_point_for_each_column() -> None:
    """And a scale for each."""
    w = ModelWriter()
    a = w.input("a", [2, 4, 300], U8)
    b = w.constant(w.rng.integers(-128, 128, (300, 7)).astype(np.int8))
    scales = w.constant(w.rng.uniform(0.001, 0.01, 7).astype(np.float32))
    zeros = w.constant(np.zeros(7, np.int8))
    y = w.node(
        "QLinearMatMul", a, scalar(w, 0.02), scalar(w, 113, np.uint8), b, scales, zeros, scalar(w, 0.5),
        scalar(w, 128, np.uint8),
    )  # fmt: skip
    compare(w.model(y), {"a": w.rng.integers(0, 256, (2, 4, 300)).astype(np.uint8)})


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (64, 1), (64, 4), (16, 16)])
def test_convolutions_of_bytes(channels: int, groups: int) -> None:
    """Padding is the zero point; groups, channels of their own, and so many channels that sums come in parts."""
    w = ModelWriter()
    x = w.input("x", [1, channels, 9, 9], U8)
    out = 16
    weights = w.constant(w.rng.integers(-127, 128, (out, channels // groups, 3, 3)).astype(np.int8))
    scales = w.constant(w.rng.uniform(0.001, 0.01, out).astype(np.float32))
    bias = w.constant(w.rng.integers(-1000, 1000, out).astype(np.int32))
    y = w.node(
        "QLinearConv", x, scalar(w, 0.02), scalar(w, 100, np.uint8), weights, scales,
        w.constant(np.zeros(out, np.int8)), scalar(w, 0.3), scalar(w, 120, np.uint8), bias,
        pads=[1, 1, 1, 1], strides=[2, 2], group=groups,
    )  # fmt: skip
    compare(w.model(y), {"x": w.rng.integers(0, 256, (1, channels, 9, 9)).astype(np.uint8)})


@pytest.mark.parametrize("out", [5, 16])
def test_convolutions_to_integers(out: int) -> None:
    """As 32-bit sums, exact also where a convolution of floats would go through transformed windows, which round."""
    w = ModelWriter()
    x = w.input("x", [1, 40, 9, 9], U8)
    weights = w.constant(w.rng.integers(0, 256, (out, 40, 3, 3)).astype(np.uint8))
    y = w.node("ConvInteger", x, weights, scalar(w, 128, np.uint8), scalar(w, 127, np.uint8), pads=[1, 1, 1, 1])
    compare(w.model(y), {"x": w.rng.integers(0, 256, (1, 40, 9, 9)).astype(np.uint8)})


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_the_range_is_found_while_it_runs(scale: float) -> None:
    """Also of zeros alone."""
    w = ModelWriter()
    x = w.input("x", [4, 33])
    y = w.node("DynamicQuantizeLinear", x, outputs=3)
    x_value = (w.rng.standard_normal((4, 33)) * scale).astype(np.float32)
    compare(w.model(y, f"{y}_1", f"{y}_2"), {"x": x_value}, run_onnxruntime)


def test_a_network_with_quantised_values_and_weights() -> None:
    """What exporters write: pairs of QuantizeLinear and DequantizeLinear around floats."""
    w = ModelWriter()

    def pair(value: str, scale: float, zero: int) -> str:
        parameters = scalar(w, scale), scalar(w, zero, np.uint8)
        return w.node("DequantizeLinear", w.node("QuantizeLinear", value, *parameters), *parameters)

    x = pair(w.input("x", [1, 3, 12, 12]), 0.02, 128)
    scales = w.constant(w.rng.uniform(0.005, 0.01, 8).astype(np.float32))
    weights = w.constant(w.rng.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8))
    weights = w.node("DequantizeLinear", weights, scales, w.constant(np.zeros(8, np.int8)), axis=0)
    x = pair(w.node("Relu", w.node("Conv", x, weights, pads=[1, 1, 1, 1])), 0.05, 0)
    model = w.model(w.node("GlobalAveragePool", x), opset=21)
    compare(model, {"x": w.rng.standard_normal((1, 3, 12, 12)).astype(np.float32)})


@pytest.mark.parametrize("operator", ["QLinearAdd", "QLinearMul"])
def test_arithmetic_of_quantised_numbers(operator: str) -> None:
    """Operators that onnxruntime has and ONNX has not."""
    w = ModelWriter()
    a, b = w.input("a", [3, 8], U8), w.input("b", [8], U8)
    operands = [
        a, scalar(w, 0.1), scalar(w, 10, np.uint8), b, scalar(w, 0.2), scalar(w, 20, np.uint8), scalar(w, 0.5),
        scalar(w, 30, np.uint8),
    ]  # fmt: skip
    y = w.node(operator, *operands, domain="com.microsoft")
    model = w.model(y, domains={"com.microsoft": 1}, types={y: (U8, [3, 8])})
    compare(
        model, {n: w.rng.integers(0, 256, s).astype(np.uint8) for n, s in (("a", (3, 8)), ("b", (8,)))}, run_onnxruntime
    )


ELEMENTWISE: dict[str, tuple[dict[str, int], list[int]]] = {
    "QLinearSoftmax": ({"axis": 1, "opset": 13}, [2, 4, 6, 6]),
    "QLinearSoftmax over all axes from one on": ({"axis": 2, "opset": 11}, [2, 4, 6, 6]),
    "QLinearSigmoid": ({}, [2, 4, 6, 6]),
    "QLinearLeakyRelu": ({}, [2, 4, 6, 6]),
    "QLinearAveragePool": ({"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}, [2, 4, 3, 3]),
    "QLinearGlobalAveragePool": ({"channels_last": 0}, [2, 4, 1, 1]),
}


@pytest.mark.parametrize("case", ELEMENTWISE)
def test_functions_of_quantised_numbers(case: str) -> None:
    """With a scale and a zero point before and behind."""
    w = ModelWriter()
    attributes, shape = ELEMENTWISE[case]
    scales = [scalar(w, 0.03), scalar(w, 100, np.uint8), scalar(w, 0.0101), scalar(w, 7, np.uint8)]
    x = w.input("x", [2, 4, 6, 6], U8)
    y = w.node(case.split(maxsplit=1)[0], x, *scales, domain="com.microsoft", **attributes)
    model = w.model(y, domains={"com.microsoft": 1}, types={y: (U8, shape)})
    compare(model, {"x": w.rng.integers(0, 256, (2, 4, 6, 6)).astype(np.uint8)}, run_onnxruntime)


def test_one_of_two_quantised_values() -> None:
    """Each with a scale of its own."""
    w = ModelWriter()
    c, a, b = w.input("c", [3, 1], TensorProto.BOOL), w.input("a", [3, 8], U8), w.input("b", [8], U8)
    scales = [[scalar(w, s), scalar(w, z, np.uint8)] for s, z in ((0.1, 10), (0.2, 20), (0.15, 30))]
    y = w.node("QLinearWhere", c, a, *scales[0], b, *scales[1], *scales[2], domain="com.microsoft")
    model = w.model(y, domains={"com.microsoft": 1}, types={y: (U8, [3, 8])})
    inputs = {n: w.rng.integers(0, 256, s).astype(np.uint8) for n, s in (("a", (3, 8)), ("b", (8,)))}
    compare(model, {"c": np.array([[True], [False], [True]]), **inputs}, run_onnxruntime)


@pytest.mark.parametrize("is_quantised", [True, False])
@pytest.mark.parametrize(("left", "right"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_dense_layers_of_bytes(left: int, right: int, *, is_quantised: bool) -> None:
    """With a scale for each column, either side transposed, and a result of bytes or of floats."""
    w = ModelWriter()
    a = w.input("a", [40, 5] if left else [5, 40], U8)
    b = w.constant(w.rng.integers(-127, 128, (7, 40) if right else (40, 7)).astype(np.int8))
    columns = [w.constant(w.rng.uniform(0.001, 0.01, 7).astype(np.float32)), w.constant(np.zeros(7, np.int8))]
    bias = w.constant(w.rng.integers(-9000, 9000, 7).astype(np.int32))
    behind = [scalar(w, 0.1), scalar(w, 120, np.uint8)] if is_quantised else []
    y = w.node(
        "QGemm", a, scalar(w, 0.02), scalar(w, 100, np.uint8), b, *columns, bias, *behind,
        domain="com.microsoft", transA=left, transB=right, alpha=0.5,
    )  # fmt: skip
    model = w.model(y, domains={"com.microsoft": 1}, types={y: (U8 if is_quantised else TensorProto.FLOAT, [5, 7])})
    # Small numbers: where it saturates sums of 16 bits, onnxruntime is another engine.
    compare(model, {"a": w.rng.integers(0, 128, (40, 5) if left else (5, 40)).astype(np.uint8)}, run_onnxruntime)
