"""What is left of a graph: elementwise work, scales and shifts go into what is beside them, what is known goes away."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

from compiler import CompileOptions, compile_model, import_model, optimise, read_model
from compiler.ir import Node
from compiler.ir import operations as ops
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import run_onnxruntime

BATCH_NORM = "BatchNormalization(c, s, h, m, v)"
CONV = """<float[4] s = {1, 2, 0.5, -1}, float[4] h = {1, 0, -1, 2}, float[4] m = {0, 1, 0.5, -2},
    float[4] v = {1, 2, 0.5, 3}, float lo = {0}, float hi = {6}>"""
X, Y = "float[1, 3, 8, 8] x", "float[1, 4, 8, 8] y"
LEFT: dict[str, tuple[list[str], str]] = {
    "scale and shift into weights": (
        ["Conv"],
        f"g ({X}) => ({Y}) {CONV} {{ c = Conv <pads = [1, 1, 1, 1]> (x, w) y = {BATCH_NORM} }}",
    ),
    "activation behind it": (
        ["Conv"],
        f"""g ({X}) => ({Y}) {CONV} {{ c = Conv <pads = [1, 1, 1, 1]> (x, w) b = {BATCH_NORM} y = Clip(b, lo, hi) }}""",
    ),
    "residual sum and activation": (
        ["Conv"],
        f"""g ({X}, float[1, 4, 8, 8] r) => ({Y}) {CONV} {{ c = Conv <pads = [1, 1, 1, 1]> (x, w) b = {BATCH_NORM}
            a = Add(b, r) y = Relu(a) }}""",
    ),
    "a chain": (
        ["Map"],
        "g (float[9] x, float[9] z) => (float[9] y) { a = Sigmoid(x) b = Mul(a, x) c = Add(b, z) y = Tanh(c) }",
    ),
    "a chain before and behind a sum": (
        ["Reduce"],
        "g (float[3, 9] x) => (float[3, 1] y) { a = Abs(x) b = Sqrt(a) c = ReduceSum <axes = [1]> (b) y = Exp(c) }",
    ),
    "dense layers": (
        ["MatMul", "MatMul"],
        """g (float[2, 4] x) => (float[2, 4] y) <float[4] s = {1, 2, 3, 4}> {
            a = MatMul(x, d) b = Add(a, s) c = Relu(b) e = MatMul(c, d) f = Mul(e, s) y = Sigmoid(f) }""",
    ),
    "shapes that are computed": (
        ["Map"],
        """g (float[2, 3, 4] x) => (float[6, 4] y) <int64 i = {2}, int64[1] rest = {-1}> {
            s = Shape(x) n = Gather(s, i) u = Unsqueeze <axes = [0]> (n) t = Concat <axis = 0> (rest, u)
            r = Reshape(x, t) y = Neg(r) }""",
    ),
    "branches that are known": (
        ["Map"],
        """g (float[2] x) => (float[2] y) <int64 one = {1}> { s = Size(x) c = Greater(s, one)
            y = If (c) <then_branch = t () => (float[2] a) { a = Neg(x) },
                        else_branch = e () => (float[2] b) { b = Relu(x) }> }""",
    ),
    "what nobody reads": (
        ["Map"],
        "g (float[2, 2] x) => (float[2, 2] y) { y = Neg(x) u = Softmax(x) v = MatMul(u, x) }",
    ),
}


WEIGHTS = {"w": (4, 3, 3, 3), "d": (4, 4)}


def written(text: str) -> bytes:
    """Return the model of a text, with the weights that it reads."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 11]> {text}')
    rng = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return bytes(model.SerializeToString())


def work(model: bytes) -> list[Node]:
    """Return the nodes that are left but those that only look at values in another way."""
    nodes = optimise(import_model(read_model(model), CompileOptions())).graph.nodes
    return [node for node in nodes if not isinstance(node.operation, ops.View)]


@pytest.mark.parametrize(("left", "text"), LEFT.values(), ids=LEFT.keys())
def test_what_is_left(left: list[str], text: str) -> None:
    """The operations that remain, and the answer as before."""
    model = written(text)
    assert left == [type(node.operation).__name__ for node in work(model)]
    compiled, rng = compile_model(model), np.random.default_rng(1)
    inputs = {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in compiled.spec.inputs}
    assert_close(run_compiled(compiled, inputs), run_onnxruntime(model, inputs))


@pytest.mark.parametrize("name", ["scale and shift into weights", "dense layers"])
def test_scales_and_shifts_are_other_weights(name: str) -> None:
    """Nothing is multiplied or added behind the product, but by an activation."""
    for node in work(written(LEFT[name][1])):
        assert isinstance(node.operation, ops.Conv | ops.MatMul)
        steps = {step.operation for step in node.operation.epilogue.instructions}
        assert steps <= {"arg", "const", "max", "at_least", "sigmoid"}
