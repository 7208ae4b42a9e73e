"""Graphs that are odd but legal answer as onnxruntime does; what is not legal, or not possible, says so."""

import contextlib
import time
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from compiler import compile_model
from compiler.errors import CompilerError, ModelFileError, UnsupportedError
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import Array, run_onnxruntime


def graph(text: str, opset: int = 17) -> onnx.ModelProto:
    """Return a model from the text of its graph."""
    return parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')


def random_inputs(model: onnx.ModelProto) -> dict[str, Array]:
    """Return numbers for every input that has no default."""
    rng, given = np.random.default_rng(0), {tensor.name for tensor in model.graph.initializer}
    inputs = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value for d in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        numbers = rng.standard_normal(shape) * 2 if dtype.kind == "f" else rng.integers(0, 5, shape)
        if value.name not in given:
            inputs[value.name] = np.asarray(numbers).astype(dtype)
    return inputs


def compare(
    model: onnx.ModelProto, inputs: dict[str, Array] | None = None, reference: onnx.ModelProto | None = None
) -> None:
    """Run a model, and hold it against onnxruntime, which may need the same model in other words."""
    inputs = random_inputs(model) if inputs is None else inputs
    want = run_onnxruntime((reference or model).SerializeToString(), inputs)
    assert_close(run_compiled(compile_model(model.SerializeToString()), inputs), want)


BRANCHES = """
    sum = ReduceSum <keepdims = 0> (x) zero = Constant <value = float {0}> () positive = Greater(sum, zero)
"""
ODD = {
    "an output that is an input": "g (float[2] x) => (float[2] x, float[2] y) { y = Relu(x) }",
    "nothing but an input": "g (float[2] x) => (float[2] x) { }",
    "an output that is constant": "g (float[2] x) => (float[2] c, float[2] y) <float[2] c = {1, 2}> { y = Mul(x, c) }",
    "one value twice": "g (float[2] x) => (float[2] y, float[2] z) { r = Relu(x) y = Identity(r) z = Identity(r) }",
    "an input that nobody reads": "g (float[2] x, float[3] u) => (float[2] y) { y = Relu(x) }",
    "an input with a default": "g (float[2] x, float[2] c = {1, 2}) => (float[2] y) { y = Add(x, c) }",
    "numbers without dimensions": "g (float x, float z) => (float y) { y = Mul(x, z) }",
    "a sum of everything": "g (float[3, 4] x) => (float y) { y = ReduceSum <keepdims = 0> (x) }",
    "a negative index": "g (float[3, 4] x) => (float[4] y) { i = Constant <value = int64 {-1}> () y = Gather(x, i) }",
    "inputs left out": "g (float[4] x) => (float[4] y) { h = Constant <value = float {0.5}> () y = Clip(x, , h) }",
    "nodes without names": "g (float[4] x) => (float[4] y) { a = Relu(x) b = Neg(a) c = Abs(b) y = Sqrt(c) }",
    "a node that nobody needs": "g (float[4] x) => (float[4] y) { u = Unique(x) n = NonZero(u) y = Relu(x) }",
    "a cut of nothing": """g (float[3, 2] x) => (float[3, 2] y)
        { s = Constant <value_ints = [2]> () z = Slice(x, s, s) y = Concat <axis = 0> (z, x) }""",
    "a sum of nothing": """g (float[3, 2] x) => (float[2] y)
        { s = Constant <value_ints = [2]> () a = Constant <value_ints = [0]> ()
          z = Slice(x, s, s) y = ReduceSum <keepdims = 0> (z, a) }""",
    "a product over nothing": """g (float[3, 4] x, float[4, 5] w) => (float[3, 5] y)
        { s = Constant <value_ints = [2]> () a = Constant <value_ints = [1]> () b = Constant <value_ints = [0]> ()
          z = Slice(x, s, s, a) v = Slice(w, s, s, b) y = MatMul(z, v) }""",
    "a dimension as it was, and the rest": """g (float[2, 3, 4] x) => (float[2, 12] y)
        { s = Constant <value_ints = [0, -1]> () y = Reshape(x, s) }""",
    "a branch that reads what is around it": f"""g (float[2, 3] x) => (float[2, 3] y) {{ {BRANCHES}
        h = Relu(x)
        y = If (positive) <then_branch = t () => (float[2, 3] a) {{ a = Add(x, h) }},
                           else_branch = e () => (float[2, 3] b) {{ b = Sub(x, h) }}> }}""",
    "branches in branches": f"""g (float[2, 3] x) => (float[2, 3] y) {{ {BRANCHES}
        h = Relu(x) five = Constant <value = float {{5}}> () small = Less(sum, five)
        y = If (positive) <
            then_branch = t () => (float[2, 3] a) {{
                a = If (small) <then_branch = tt () => (float[2, 3] c) {{ c = Add(x, h) }},
                                else_branch = te () => (float[2, 3] d) {{ d = Sub(x, h) }}> }},
            else_branch = e () => (float[2, 3] b) {{ b = Identity(h) }}> }}""",
    "a loop that collects": """g (float[2] x) => (float[2] last, float[5, 2] all)
        { n = Constant <value = int64 {5}> () t = Constant <value = bool {1}> ()
          last, all = Loop (n, t, x) <body = b (int64 i, bool go, float[2] v)
              => (bool on, float[2] w, float[2] s) { on = Identity(go) w = Add(v, x) s = Mul(w, x) }> }""",
    "a loop of no round": """g (float[2] x) => (float[2] last)
        { n = Constant <value = int64 {0}> () t = Constant <value = bool {1}> ()
          last, all = Loop (n, t, x) <body = b (int64 i, bool go, float[2] v)
              => (bool on, float[2] w, float[2] s) { on = Identity(go) w = Add(v, x) s = Mul(w, x) }> }""",
    "a loop as long as something holds": """g (float x) => (float y)
        { t = Constant <value = bool {1}> ()
          y = Loop (, t, x) <body = b (int64 i, bool go, float v) => (bool on, float w)
              { f = Cast <to = 1> (i) w = Add(v, f) lim = Constant <value = float {50}> () on = Less(w, lim) }> }""",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_odd_graphs(text: str) -> None:
    """Each is legal."""
    compare(graph(text))


def test_an_output_may_have_no_shape() -> None:
    """Exporters leave it out; it is known all the same."""
    model = graph("g (float[2, 4] x) => (float y) { y = Relu(x) }")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    compare(model)


@pytest.mark.parametrize("name", ["same", "fleet_infer", "memory", 'a/b:c "q" é\n', "L" * 5000])
def test_names_of_nodes_are_free(name: str) -> None:
    """Equal ones, those of our own exports, any characters, any length."""
    model = graph("g (float[4] x) => (float[4] y) { a = Relu(x) b = Neg(a) y = Exp(b) }")
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for node in model.graph.node:
        node.name = name
    compare(model, reference=plain)


def test_a_branch_that_is_never_taken_may_hold_anything() -> None:
    """What a constant decides is decided before anything is refused."""
    text = """g (float[4] x) => (float[4] y)
        {{ c = Constant <value = bool {{1}}> ()
           y = If (c) <then_branch = t () => (float[4] a) {{ a = Relu(x) }},
                       else_branch = e () => (float[4] b) {{ b = {operator}(x) }}> }}"""
    compare(graph(text.format(operator="RandomNormalLike")), reference=graph(text.format(operator="Neg")))


def test_functions_of_the_file() -> None:
    """Used twice, under one name."""
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "own": 1]>
        g (float[3] x) => (float[3] y) { a = own.Twice(x) y = own.Twice(a) }
        <opset_import: ["": 17], domain: "own"> Twice (a) => (b) { b = Add(a, a) }""")
    compare(model)


def sparse(name: str, shape: list[int], indices: Any) -> onnx.SparseTensorProto:
    """Return a sparse constant with the values 1, 2, …"""
    places = np.asarray(indices, np.int64)
    values = numpy_helper.from_array(np.arange(1, len(places) + 1, dtype=np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places), shape)


@pytest.mark.parametrize("indices", [[0, 5, 7], [[0, 0], [1, 1], [1, 3]]])
def test_sparse_constants(indices: Any) -> None:
    """As an initializer and in a node; by one index for each number, or by one for each dimension."""
    model = graph("g (float[2, 4] x) => (float[2, 4] y) { y = Add(x, c) }", 13)
    dense = np.zeros((2, 4), np.float32)
    dense[[0, 1, 1], [0, 1, 3]] = [1, 2, 3]
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    plain.graph.initializer.append(numpy_helper.from_array(dense, "c"))
    inside = onnx.ModelProto()
    inside.CopyFrom(model)
    inside.graph.node.insert(0, helper.make_node("Constant", [], ["c"], sparse_value=sparse("c", [2, 4], indices)))
    model.graph.sparse_initializer.append(sparse("c", [2, 4], indices))
    for each in (model, inside):
        compare(each, reference=plain)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_weights_that_are_stored_as_halves(kind: int) -> None:
    """They may be 16 bits wide in the file, in a branch, too."""
    text = f"""g (float[2, 2] x) => (float[2, 2] y) {{ {BRANCHES}
        v = Cast <to = 1> (w) z = MatMul(x, v)
        y = If (positive) <then_branch = t () => (float[2, 2] a) {{ u = Cast <to = 1> (w) a = Add(z, u) }},
                           else_branch = e () => (float[2, 2] b) {{ b = Identity(z) }}> }}"""
    model = graph(text)
    model.graph.initializer.append(helper.make_tensor("w", kind, [2, 2], [1.5, -2.25, 0.1, 3.0]))
    compare(model)


def test_models_of_halves() -> None:
    """They are computed with 32-bit floats, which are their inputs and outputs too."""
    model = graph("""g (float16[2, 8] x) => (float16[2, 8] y) {
        p = MatMul(x, w) s = Sigmoid(p) m = Mul(s, c) t = Softmax(m)
        f = Cast <to = 1> (t) g = Exp(f) h = Cast <to = 10> (g) y = Add(h, c) }""")
    weights = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float16)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    half = numpy_helper.from_array(np.float16(0.5), "c")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=half))
    x = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float16)
    [want] = run_onnxruntime(model.SerializeToString(), {"x": x})
    compiled = compile_model(model.SerializeToString())
    assert ["FP32", "FP32"] == [t.datatype for t in (*compiled.spec.inputs, *compiled.spec.outputs)]
    [got] = run_compiled(compiled, {"x": x.astype(np.float32)})
    np.testing.assert_allclose(got, want, rtol=2e-3)


def test_places_in_what_is_known_are_known() -> None:
    """Operators whose results have a size that depends on the data are computed of constants, and refused otherwise."""
    compare(
        graph("""g (float[2, 3] x) => (float[3] y, float[2, 2] z)
        <int64[2, 3] m = {1, 0, 2, 0, 0, 3}, bool[3] c = {1, 0, 1}> {
        i = NonZero(m) t = Transpose(i) y = GatherND(x, t) z = Compress <axis = 1> (x, c) }""")
    )
    with pytest.raises(UnsupportedError, match="let the host do this"):
        compile_model(graph("g (float[3] x) => (int64[1, n] y) { y = NonZero(x) }").SerializeToString())


def test_long_chains_take_time_in_proportion() -> None:
    """Thousands of elementwise nodes are a few kernels, made in seconds."""
    steps = [f"v{n + 1} = {'Add' if n % 2 else 'Mul'}(v{n}, c)" for n in range(2000)]
    model = graph(
        f"g (float[4] v0) => (float[4] v2000) <float[4] c = {{0.99, 1.01, 0.98, 1.0}}> {{ {' '.join(steps)} }}"
    )
    started = time.process_time()
    compare(model)
    assert time.process_time() - started < 20


NUMBERS = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 87.0, -104, 0.5, 1.5, 2.5, -2.5], np.float32)


@pytest.mark.parametrize(
    "operator",
    [
        "Round",
        "Floor",
        "Ceil",
        "Sign",
        "Abs",
        "Neg",
        "Sqrt",
        "Exp",
        "Log",
        "Tanh",
        "Sigmoid",
        "Erf",
        "Sin",
        "Cos",
        "Softplus",
        "Softsign",
        "Elu",
        "Selu",
        "Celu",
        "HardSwish",
        "Reciprocal",
        "Relu",
        "Sinh",
        "Cosh",
        "Tan",
        "Atan",
        "Asin",
        "Acos",
        "Asinh",
        "Acosh",
        "Atanh",
    ],
)
def test_numbers_that_are_none(operator: str) -> None:
    """NaN, infinities, zeros with a sign and the smallest numbers come out as they do elsewhere."""
    compare(graph(f"g (float[12] x) => (float[12] y) {{ y = {operator}(x) }}"), {"x": NUMBERS})


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"])
def test_pairs_of_numbers_that_are_none(operator: str) -> None:
    """The same for operators on two values: each with each."""
    pairs = {"x": np.repeat(NUMBERS, 12), "z": np.tile(NUMBERS, 12)}
    with np.errstate(all="ignore"):
        compare(graph(f"g (float[144] x, float[144] z) => (float[144] y) {{ y = {operator}(x, z) }}"), pairs)


REFUSED: dict[str, tuple[type[CompilerError], str, str]] = {
    "two outputs of one name": (
        UnsupportedError,
        "a name of its own",
        "g (float[2] x) => (float[2] y, float[2] y) { y = Relu(x) }",
    ),
    "no input": (
        UnsupportedError,
        "1 to 64 inputs, got 0",
        "g () => (float y) { y = Constant <value = float {1}> () }",
    ),
    "an output of nothing": (
        UnsupportedError,
        r"each at least 1, got \[0, 2\]",
        "g (float[3, 2] x) => (float[0, 2] y) { s = Constant <value_ints = [2]> () y = Slice(x, s, s) }",
    ),
    "an output of another type": (
        ModelFileError,
        "'y' is said to be INT64, what is computed is float32",
        "g (float[2] x) => (int64[2] y) { y = Relu(x) }",
    ),
    "small floats": (
        UnsupportedError,
        "'x' has elements of type FLOAT8E5M2",
        "g (float8e5m2[2] x) => (float8e5m2[2] y) { y = Identity(x) }",
    ),
    "a shape that comes late": (
        UnsupportedError,
        "has to be constant",
        "g (float[2, 3] x, int64[2] s) => (float[a, b] y) { y = Reshape(x, s) }",
    ),
    "an index beyond the end": (
        UnsupportedError,
        "Gather",
        "g (float[2] x) => (float[1] y) { i = Constant <value_ints = [7]> () y = Gather(x, i) }",
    ),
    "text": (
        UnsupportedError,
        "it is text",
        'g (float[2] x) => (float[2] y, string z) { z = Constant <value_string = "a"> () y = Relu(x) }',
    ),
    "an attribute that is missing": (
        ModelFileError,
        "Required attribute 'axis' is missing",
        "g (float[2] x) => (float[4] y) { y = Concat(x, x) }",
    ),
    "chance": (
        UnsupportedError,
        "RandomNormalLike",
        "g (float[2] x) => (float[2] y) { y = RandomNormalLike(x) }",
    ),
    "branches of different shapes": (
        UnsupportedError,
        "different types or shapes",
        f"""g (float[2] x) => (float[n] y) {{ {BRANCHES}
        y = If (positive) <then_branch = t () => (float[2] a) {{ a = Relu(x) }},
                           else_branch = e () => (float[4] b) {{ b = Concat <axis = 0> (x, x) }}> }}""",
    ),
}


@pytest.mark.parametrize(("kind", "message", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(kind: type[CompilerError], message: str, text: str) -> None:
    """With the reason."""
    with pytest.raises(kind, match=message):
        compile_model(graph(text).SerializeToString())


def test_constants_whose_data_do_not_fit() -> None:
    """A damaged shape is an error that names the constant."""
    model = graph("g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { y = Add(x, c) }")
    del model.graph.initializer[0].dims[:]
    with pytest.raises(CompilerError, match=r"'c'|not a valid"):
        compile_model(model.SerializeToString())


def test_damaged_files_never_end_in_a_traceback() -> None:
    """Whatever bits are turned over, the compiler compiles the file or says what is wrong with it."""
    rng = np.random.default_rng(0)
    models = [graph(text).SerializeToString() for text in ODD.values()]
    for number in range(1500):
        damaged = bytearray(models[number % len(models)])
        for place in rng.integers(0, len(damaged), rng.integers(1, 4)):
            damaged[place] ^= 1 << int(rng.integers(8))
        with contextlib.suppress(CompilerError):
            compile_model(bytes(damaged))
