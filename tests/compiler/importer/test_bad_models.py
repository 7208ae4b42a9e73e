"""Models that cannot be compiled: each has an error that says why and what to do, and nothing else happens."""

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import json_format, text_format  # type: ignore[import-untyped]  # protobuf has no types
from onnx import TensorProto, helper

from compiler import CompileOptions, Normalization, compile_model
from compiler.errors import (
    CompilerError,
    ModelFileError,
    OptionError,
    TooLargeError,
    UnboundShapeError,
    UnsupportedError,
)
from compiler.importer import source
from tests.compiler.onnx_models import ModelWriter, mlp


def relu(shape: list[int | str | None], kind: int = TensorProto.FLOAT) -> bytes:
    """Return a model of one node."""
    x, y = (helper.make_tensor_value_info(name, kind, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )


def test_files_that_are_no_models(tmp_path: Path) -> None:
    """Empty, foreign and cut off."""
    (tmp_path / "empty.onnx").write_bytes(b"")
    for content in (b"", mlp()[:-100]):
        with pytest.raises(ModelFileError, match=r"not an ONNX model|not a valid ONNX model"):
            compile_model(content)
    with pytest.raises(ModelFileError, match="no graph"):
        compile_model(tmp_path / "empty.onnx")
    for path in (tmp_path / "missing.onnx", str(tmp_path / "missing.onnx"), tmp_path):
        with pytest.raises(ModelFileError, match="cannot read"):
            compile_model(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(mlp()), "compressed with gzip: unpack it"),
        (b"PK\3\4 and more", "ZIP archive"),
        (b"\0asm\1\0\0\0", "compiled already"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (json_format.MessageToJson(onnx.load_model_from_string(mlp())).encode(), "looks like JSON"),
        (text_format.MessageToString(onnx.load_model_from_string(mlp())).encode(), "looks like text"),
        (onnx.printer.to_text(onnx.load_model_from_string(mlp())).encode(), "looks like text"),
    ],
)
def test_files_of_other_formats(content: bytes, said: str) -> None:
    """What they are, and what to do."""
    with pytest.raises(ModelFileError, match=rf"not an ONNX model: .*{said}"):
        compile_model(content)


def test_every_cut_is_an_error() -> None:
    """A model that ends early never compiles to something else."""
    model = relu([1, 4])
    for length in range(len(model) - 1):
        with pytest.raises(CompilerError):
            compile_model(model[:length])


def test_invalid_graphs() -> None:
    """Nodes that read what comes later, and values that nobody makes."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    cyclic = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["x", "a"], ["b"])]
    for nodes in (cyclic, [helper.make_node("Relu", ["nobody"], ["y"])]):
        model = helper.make_model(helper.make_graph(nodes, "g", [value], [result]), ir_version=9)
        model.opset_import[0].version = 17
        with pytest.raises(ModelFileError, match="not a valid ONNX model"):
            compile_model(model.SerializeToString())


def test_operators_of_another_time() -> None:
    """Opsets before 7 and after the newest that the onnx package knows."""
    model = onnx.load_model_from_string(relu([1, 4]))
    for version in (6, source.NEWEST_OPSET + 1):
        model.opset_import[0].version = version
        with pytest.raises(ModelFileError, match=f"opset 7 to .*, got {version}"):
            compile_model(model.SerializeToString())


def test_data_in_another_file(tmp_path: Path) -> None:
    """It is read when it is there, and asked for when it is not."""
    w = ModelWriter()
    model = onnx.load_model_from_string(w.model(w.node("Add", w.input("x", [64]), w.weights(64))))
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert compile_model(path).constant_bytes == 256
    with pytest.raises(ModelFileError, match="give the path of the model file"):
        compile_model(path.read_bytes())
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelFileError, match=r"model\.onnx: the data that lies in another file"):
        compile_model(path)


def stored_outside(tmp_path: Path, *, is_in_node: bool, length: int | None) -> Path:
    """Return a model with a constant of 1 GiB twice, whose data are a file with nothing in it."""
    tensors = []
    for name in "ab":
        tensor = TensorProto(name=name, dims=[1 << 28], data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
        if length is not None:
            tensor.external_data.add(key="length", value=str(length))
        tensors.append(tensor)
    nodes = [helper.make_node("ReduceSum", [name], [f"{name}_sum"], keepdims=0) for name in "ab"]
    if is_in_node:
        nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors] + nodes
    nodes.append(helper.make_node("Sum", ["x", "a_sum", "b_sum"], ["y"]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [] if is_in_node else tensors)
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(1 << 32)
    return path


@pytest.mark.parametrize("length", [(1 << 31) + 4, None, 1 << 62])
@pytest.mark.parametrize("is_in_node", [False, True])
def test_data_in_another_file_count(tmp_path: Path, *, is_in_node: bool, length: int | None) -> None:
    """A small file with more than 2 GiB beside it is refused before those are read."""
    with pytest.raises(TooLargeError, match=r"model\.onnx: expected at most 2,147,483,648 bytes with its data"):
        compile_model(stored_outside(tmp_path, is_in_node=is_in_node, length=length))


def test_data_in_another_file_of_a_node(tmp_path: Path) -> None:
    """Without the file, what lies inside of a node is missed as well."""
    path = stored_outside(tmp_path, is_in_node=True, length=1 << 30)
    with pytest.raises(ModelFileError, match="'a' lies in another file"):
        compile_model(path.read_bytes())


def test_open_dimensions() -> None:
    """Each is named together with the option that binds it; one with a name is bound for all inputs."""
    w = ModelWriter()
    model = w.model(w.node("Add", w.input("left", ["batch", 4]), w.input("right", ["batch", 4])))
    with pytest.raises(UnboundShapeError, match=r"left \[batch, 4\], right \[batch, 4\]; .*--input-shape left=1x4"):
        compile_model(model)
    spec = compile_model(model, CompileOptions(input_shapes={"left": (3, 4)})).spec
    assert [(3, 4), (3, 4)] == [t.shape for t in spec.inputs]
    for shapes, message in (
        ({"left": (3, 5)}, r"input left \[batch, 4\] cannot have the shape \[3, 5\]"),
        ({"left": (3,)}, "has 2 dimensions"),
        ({"left": (3, 4), "right": (2, 4)}, "'batch' is 3 and 2"),
        ({"other": (3, 4)}, r"no inputs \['other'\]"),
        ({"left": (0, 4)}, "unbound|at least 1|expected"),
    ):
        with pytest.raises((OptionError, UnboundShapeError), match=message):
            compile_model(model, CompileOptions(input_shapes=shapes))


def test_everything_unsupported_is_listed_at_once() -> None:
    """With name, opset and reason, also behind the first one."""
    w = ModelWriter()
    x = w.input("x", [4, 4])
    first = w.node("Det", x)
    second = w.node("Unique", w.node("Relu", x))
    with pytest.raises(UnsupportedError) as caught:
        compile_model(w.model(first, second))
    assert 2 == len(caught.value.problems)
    assert "Det (Det_0, opset 17): the operator is not implemented" in caught.value.problems[0]
    assert "Unique (Unique_2, opset 17): the size of its result depends on the data" in caught.value.problems[1]


BEHIND = {
    "what has no size": """g (float[4, 4] x) => (float y) { u = Unique(x) y = Det(u) }""",
    "inputs that modules lack": """g (string[2] x, complex64[2] z, float[n] v)
        => (string[m] u, float[k] d, float y) { u = StringNormalizer(x) d = Unique(v) y = Det(z) }""",
    "both branches": """g (float[2, 2] x, bool c) => (float y) { y = If (c) <
        then_branch = t () => (float a) { a = Unique(x) }, else_branch = e () => (float b) { b = Det(x) }> }""",
    "branches and loops behind a problem": """g (float[2, 2] x, int64 n, bool t) => (float y)
        { u = Unique(x) c = Cast <to = 9> (u)
          y = If (c) <then_branch = t () => (float a) { a = Loop (n, t, x) <body = b
                (int64 i, bool go, float[2, 2] v) => (bool on, float w) { on = Identity(go) w = Det(v) }> },
            else_branch = e () => (float b) { s = Unique(x) b = Relu(s) }> }""",
}


@pytest.mark.parametrize("text", BEHIND.values(), ids=BEHIND.keys())
def test_what_lies_behind_a_problem_is_listed_too(text: str) -> None:
    """Each node that cannot be converted in any case, inside of others too; none twice, and none that could be."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    with pytest.raises(UnsupportedError) as caught:
        compile_model(model.SerializeToString())
    operators = [problem.split()[0] for problem in caught.value.problems]
    wanted = re.findall(r"(Unique|Det|StringNormalizer)\(", text)
    assert sorted(wanted) == sorted(o for o in operators if o not in ("input", "If")), caught.value.problems


def test_types_that_modules_lack() -> None:
    """Text, complex numbers and what is no tensor: all such inputs, whatever else is open."""
    with pytest.raises(UnsupportedError, match="elements of type STRING"):
        compile_model(relu([1, 4], TensorProto.STRING))
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (string[2] s, complex64[2] c, seq(float[2]) q, float[n] x) => (float[n] y) { y = Relu(x) }""")
    with pytest.raises(UnsupportedError) as caught:
        compile_model(model.SerializeToString())
    assert ["'s'", "'c'", "'q'"] == [problem.split()[1] for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("kind", "number", "is_held"),
    [
        (TensorProto.INT64, 16000.0, True),
        (TensorProto.INT64, 16000.5, False),
        (TensorProto.INT64, 1 << 63, False),
        (TensorProto.INT64, float("nan"), False),
        (TensorProto.UINT8, -1, False),
        (TensorProto.BOOL, True, True),
        (TensorProto.BOOL, 2, False),
        (TensorProto.FLOAT, 0.1, True),
        (TensorProto.FLOAT, 1e39, False),
        (TensorProto.FLOAT, 10**400, False),
    ],
)
def test_numbers_for_inputs(kind: int, number: float, *, is_held: bool) -> None:
    """A number that the input cannot be is never made into another one."""
    w = ModelWriter()
    setting = w.node("Cast", w.input("s", [], kind), to=TensorProto.FLOAT)
    model = w.model(w.node("Add", w.input("x", [2]), setting))
    options = CompileOptions(input_values={"s": number})
    if is_held:
        assert ["x"] == [t.name for t in compile_model(model, options).spec.inputs]
    else:
        with pytest.raises(OptionError, match=r"input 's' is \w+, which cannot be"):
            compile_model(model, options)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((1e300,), (1.0,)), ((0.0,), (1e-50,)), ((0.0,), (1e50,)), ((0.0,), (0.0,)), ((0.0,), (float("nan"),))],
)
def test_pixels_that_would_all_be_infinite_or_zero(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Numbers are judged as the 32-bit floats that they become."""
    options = CompileOptions(uint8_inputs={"x": Normalization(mean, std)})
    with pytest.raises(OptionError, match="expected a finite mean, and a finite std other than 0"):
        compile_model(relu([1, 4]), options)


@pytest.mark.parametrize(
    "options", [{"name": "Bad Name"}, {"name": "all"}, {"version": "one"}, {"deadline_ms": 0}, {"deadline_ms": 10**9}]
)
def test_words_that_no_device_takes(options: dict[str, Any]) -> None:
    """The compiler says so, before a device does; a graph may be called anything."""
    with pytest.raises(OptionError):
        compile_model(relu([1, 4]), CompileOptions(**options))
    model = onnx.load_model_from_string(relu([1, 4]))
    for name, plain in (("all", None), ("Bad Name!", "bad-name"), ("---", None)):
        model.graph.name = name
        assert plain == compile_model(model.SerializeToString()).spec.name


def test_names_that_a_shell_would_take_apart() -> None:
    """The option to type is quoted."""
    with pytest.raises(UnboundShapeError) as caught:
        compile_model(relu(["n", 4]).replace(b"\x01x", b"\x01$"))
    assert str(caught.value).endswith("--input-shape '$'=1x4")


def test_shapes_that_overflow() -> None:
    """A tensor, or the whole, that does not fit the memory of a module."""
    with pytest.raises(CompilerError, match=r"expected at most|4 GiB"):
        compile_model(relu([1 << 20, 1 << 20]))
    w = ModelWriter()
    x = w.input("x", [1 << 13, 1])
    big = w.node("MatMul", x, w.constant(np.ones((1, 1 << 17), np.float32)))
    with pytest.raises(TooLargeError, match="4 GiB"):
        compile_model(w.model(w.node("ReduceSum", w.node("Softmax", big, axis=-1), axes=[1]), opset=11))


def test_files_over_two_gib(tmp_path: Path) -> None:
    """They are refused before they are read."""
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(source.MAX_MODEL_BYTES + 1)
    with pytest.raises(TooLargeError, match="expected at most"):
        compile_model(path)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_weights_that_are_no_numbers(operator: str, number: float) -> None:
    """Every answer would be none either: the model is refused, with the node and the name of the weights."""
    w = ModelWriter()
    weights = np.array([[1, 1], [2, number]], np.float32)
    y = w.node(operator, w.input("x", [1, 2]), w.constant(weights))
    with pytest.raises(UnsupportedError, match=rf"{operator}_0, opset 17\): its weights 'c0' hold NaN or infinity"):
        compile_model(w.model(y))


def test_infinity_is_a_mask() -> None:
    """Where it is added, nothing is spoilt."""
    w = ModelWriter()
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    assert compile_model(w.model(w.node("Softmax", w.node("Add", w.input("x", [4, 4]), w.constant(mask))))).wasm


@pytest.mark.parametrize(
    ("operator", "attributes", "said"),
    [
        ("MaxPool", {"kernel_shape": [9, 9]}, "its window reaches over 9 elements"),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [0, 0]}, "expected strides of at least 1"),
        ("AveragePool", {"kernel_shape": [-2, 2]}, "expected kernel_shape of at least 1"),
        ("Conv", {"strides": [0, 0]}, "expected strides of at least 1"),
        ("Conv", {"dilations": [1, -1]}, r"expected dilations of at least 1, got \[1, -1\]"),
        ("Conv", {"group": 3}, "its inputs do not fit it"),
        ("Conv", {"dilations": [9, 9]}, "its inputs do not fit it"),
        ("Conv", {"pads": [1 << 40] * 4}, "expected at most 4,294,967,295 elements"),
        ("Conv", {"auto_pad": "SAME"}, "to be one of NOTSET, VALID, SAME_UPPER, SAME_LOWER, got 'SAME'"),
        ("AveragePool", {"kernel_shape": [2, 2], "auto_pad": "same_upper"}, "expected auto_pad to be one of"),
        ("MaxPool", {"kernel_shape": [2, 2], "pads": [0, 0, 0, 2]}, "a window along axis 3 has no element"),
        ("AveragePool", {"kernel_shape": [1, 1], "pads": [1, 0, 0, 0]}, "a window along axis 2 has no element"),
        ("Conv", {"pads": [0, 0, 0, -1]}, r"expected pads of at least 0, got \[0, 0, 0, -1\]"),
        ("Conv", {"pads": [1, 1]}, r"expected 4 numbers as pads, got \[1, 1\]"),
        ("Conv", {"strides": [1, 1, 2]}, r"expected 2 numbers as strides, got \[1, 1, 2\]"),
        ("Conv", {"kernel_shape": [2, 3]}, r"expected filters of \[2, 3\] as kernel_shape says, got \[3, 3\]"),
        ("MaxPool", {"kernel_shape": [2]}, r"expected 2 numbers as kernel_shape, got \[2\]"),
        ("AveragePool", {"kernel_shape": [2, 2], "pads": [-1, 0, 0, 0]}, "expected pads of at least 0"),
        ("DepthToSpace", {"blocksize": 1, "mode": "CDR"}, "expected mode to be one of DCR, CRD, got 'CDR'"),
    ],
)
def test_attributes_that_do_not_fit(operator: str, attributes: dict[str, object], said: str) -> None:
    """The file is valid, and the node is not possible."""
    x, y = (helper.make_tensor_value_info(*v) for v in (("x", 1, [1, 2, 8, 8]), ("y", 1, None)))
    names = ["x", "w"] if operator == "Conv" else ["x"]
    node = helper.make_node(operator, names, ["y"], **attributes)
    graph = helper.make_graph([node], "g", [x], [y])
    graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [4, 2, 3, 3], np.zeros(72)))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(CompilerError, match=said):
        compile_model(model.SerializeToString())


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (([1, 3], [3, 4], [5, 4]), r"expected C to fit \[1, 4\], got \[5, 4\]"),
        (([2, 3], [3, 4], [1, 2, 4]), r"expected C to fit \[2, 4\], got \[1, 2, 4\]"),
        (([2, 3], [3, 4], [3]), "its inputs do not fit it"),
        (([2, 2, 3], [3, 4], [4]), r"expected two matrices, got \[2, 2, 3\] and \[3, 4\]"),
    ],
)
def test_matrices_that_do_not_fit(shapes: tuple[list[int], ...], said: str) -> None:
    """The result of Gemm has the rows of A and the columns of B, whatever is added."""
    w = ModelWriter()
    y = w.node("Gemm", *(w.input(name, shape) for name, shape in zip("abc", shapes, strict=True)))
    with pytest.raises(UnsupportedError, match=said):
        compile_model(w.model(y, types={y: (TensorProto.FLOAT, [1, 4])}))


def test_inputs_that_overflow() -> None:
    """Of a size that no number counts."""
    with pytest.raises(TooLargeError, match="expected at most"):
        compile_model(relu([1 << 40, 1 << 40]))


def test_functions_that_multiply() -> None:
    """Thirty functions, each of which calls the one before twice, are a billion nodes: nobody expands them."""
    parts = ['<opset_import: ["": 17, "own": 1], domain: "own"> F0 (a) => (b) { b = Relu(a) }']
    for k in range(1, 31):
        calls = f"c = own.F{k - 1}(a) b = own.F{k - 1}(c)"
        parts.append(f'<opset_import: ["": 17, "own": 1], domain: "own"> F{k} (a) => (b) {{ {calls} }}')
    text = '<ir_version: 8, opset_import: ["": 17, "own": 1]> g (float[2] x) => (float[2] y) { y = own.F30(x) }'
    with pytest.raises(TooLargeError, match=r"expected at most 50,000 nodes, .*, got 1,073,741,824"):
        compile_model(onnx.parser.parse_model(" ".join([text, *parts])).SerializeToString())


def test_two_versions_of_the_operators() -> None:
    """Nobody knows which is meant."""
    model = onnx.load_model_from_string(relu([1, 4]))
    model.opset_import.append(helper.make_opsetid("ai.onnx", 7))
    with pytest.raises(ModelFileError, match=r"several versions at once: \{'ai.onnx': \[7, 17\]\}"):
        compile_model(model.SerializeToString())


def test_names_that_are_no_text() -> None:
    """The names of inputs and outputs are UTF-8."""
    named = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2] QQ) => (float[2] y) { y = Relu(QQ) }'
    )
    with pytest.raises(ModelFileError, match="expected names in UTF-8"):
        compile_model(named.SerializeToString().replace(b"QQ", b"\xff\xfe"))
