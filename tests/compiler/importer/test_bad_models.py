"""Models that cannot be compiled: each has an error that says why and what to do, and nothing else happens."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compiler import CompileOptions, compile_model
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
    for content in (b"", b"PK\3\4 not a model", b"\0asm\1\0\0\0", mlp()[:-100]):
        with pytest.raises(ModelFileError, match=r"not an ONNX model|not a valid ONNX model"):
            compile_model(content)
    with pytest.raises(ModelFileError, match="no graph"):
        compile_model(tmp_path / "empty.onnx")
    with pytest.raises(ModelFileError, match="cannot read"):
        compile_model(tmp_path / "missing.onnx")


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


def test_open_dimensions() -> None:
    """Each is named together with the option that binds it; one with a name is bound for all inputs."""
    w = ModelWriter()
    model = w.model(w.node("Add", w.input("left", ["batch", 4]), w.input("right", ["batch", 4])))
    with pytest.raises(UnboundShapeError, match=r"left \[batch, 4\], right \[batch, 4\]; .*--input-shape left=1x4"):
        compile_model(model)
    spec = compile_model(model, CompileOptions(input_shapes={"left": (3, 4)})).spec
    assert [(3, 4), (3, 4)] == [t.shape for t in spec.inputs]
    for shapes, message in (
        ({"left": (3, 5)}, r"has \['batch', '4'\]"),
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


def test_types_that_modules_lack() -> None:
    """Text and complex numbers."""
    with pytest.raises(UnsupportedError, match="elements of type"):
        compile_model(relu([1, 4], TensorProto.STRING))


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
