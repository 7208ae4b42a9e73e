"""Small ONNX models with fixed random weights, written node by node."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
OPSET = 17


class ModelWriter:
    """An ONNX graph under construction."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> str:
        """Add an input."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, array: Array) -> str:
        """Add an initializer."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def weights(self, *shape: int, scale: float | None = None) -> str:
        """Add random weights that keep the size of what they are applied to."""
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        values = self.rng.standard_normal(shape) * (np.sqrt(2 / fan_in) if scale is None else scale)
        return self.constant(values.astype(np.float32))

    def node(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return its first result; the others are named behind it."""
        number = len(self._nodes)
        names = [f"{op_type.lower()}{number}"] + [f"{op_type.lower()}{number}_{n}" for n in range(1, outputs)]
        self._nodes.append(helper.make_node(op_type, inputs, names, name=f"{op_type}_{number}", **attributes))
        return names[0]

    def named(self, op_type: str, first: str, name: str, *others: str, **attributes: Any) -> str:
        """Add a node whose result has a given name, such as that of an output."""
        self._nodes.append(helper.make_node(op_type, [first, *others], [name], name=name, **attributes))
        return name

    def model(
        self,
        *outputs: str,
        opset: int = OPSET,
        domains: Mapping[str, int] | None = None,
        types: Mapping[str, tuple[int, Sequence[int]]] | None = None,
    ) -> bytes:
        """Return the file.

        `domains` are those of operators that are not ONNX's own, with their versions; `types` those of outputs whose
        type cannot be inferred.
        """
        values = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self._nodes, "small model", self._inputs, values, self._constants)
        opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*d) for d in (domains or {}).items())]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        types_by_name = {value.name: value for value in inferred.graph.value_info} | {
            v.name: v for v in inferred.graph.output
        }
        types_by_name |= {n: helper.make_tensor_value_info(n, *kind) for n, kind in (types or {}).items()}
        del inferred.graph.output[:]
        inferred.graph.output.extend(types_by_name[name] for name in outputs)
        onnx.checker.check_model(inferred)
        return bytes(inferred.SerializeToString())


class Session:
    """A model in the reference engine."""

    def __init__(self, model: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        """Return the outputs for inputs by name."""
        return [np.asarray(output) for output in self._session.run(None, inputs)]


def run_onnxruntime(model: bytes, inputs: dict[str, Array]) -> list[Array]:
    """Return the outputs of a model in the reference engine."""
    return Session(model).run(inputs)


def mlp() -> bytes:
    """Return three dense layers and a softmax."""
    w = ModelWriter()
    x = w.input("image", [1, 784])
    for rows, columns in ((784, 128), (128, 64), (64, 10)):
        x = w.node("Gemm", x, w.weights(columns, rows), w.weights(columns), transB=1)
        if columns != 10:
            x = w.node("Relu", x)
    return w.model(w.node("Softmax", x, axis=-1))


def small_cnn() -> bytes:
    """Return two convolutions with batch normalisation, pooling and a classifier."""
    w = ModelWriter()
    x = w.input("image", [1, 1, 28, 28])
    for before, after in ((1, 16), (16, 32)):
        x = w.node("Conv", x, w.weights(after, before, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        statistics = [w.constant(w.rng.uniform(0.5, 1.5, after).astype(np.float32)) for _ in range(4)]
        x = w.node("BatchNormalization", x, *statistics)
        x = w.node("Relu", x)
        x = w.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = w.node("Flatten", x)
    x = w.node("Gemm", x, w.weights(10, 32 * 49), w.weights(10), transB=1)
    return w.model(w.node("Softmax", x, axis=-1))


def residual_cnn() -> bytes:
    """Return what mobile networks are made of: depthwise and pointwise convolutions, a squeeze, residual sums."""
    w = ModelWriter()
    x = w.input("image", [1, 3, 32, 32])
    x = w.node("Conv", x, w.weights(16, 3, 3, 3), w.weights(16), kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
    x = w.node("HardSwish", x)
    for stride in (1, 2, 1):
        wide = w.node("Conv", x, w.weights(40, 16, 1, 1), w.weights(40))
        wide = w.node("Clip", wide, w.constant(np.float32(0)), w.constant(np.float32(6)))
        deep = w.node(
            "Conv", wide, w.weights(40, 1, 3, 3), w.weights(40), pads=[1, 1, 1, 1], strides=[stride, stride], group=40
        )
        squeezed = w.node("GlobalAveragePool", deep)
        squeezed = w.node("HardSigmoid", w.node("Conv", squeezed, w.weights(40, 40, 1, 1)))
        deep = w.node("Mul", deep, squeezed)
        narrow = w.node("Conv", deep, w.weights(16, 40, 1, 1), w.weights(16))
        x = w.node("Add", x, narrow) if stride == 1 else narrow
    return w.model(w.node("Flatten", w.node("GlobalAveragePool", x)))


def encoder() -> bytes:
    """Return one block of a transformer: attention over heads, layer normalisation, a wide layer."""
    w = ModelWriter()
    length, width, heads = 12, 32, 4
    x = w.input("tokens", [1, length, width])

    def dense(value: str, rows: int, columns: int) -> str:
        return w.node("Add", w.node("MatMul", value, w.weights(rows, columns, scale=rows**-0.5)), w.weights(columns))

    shape = w.constant(np.array([1, length, heads, width // heads]))
    q, k, v = (w.node("Reshape", dense(x, width, width), shape) for _ in range(3))
    q, v = (w.node("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    k = w.node("Transpose", k, perm=[0, 2, 3, 1])
    scores = w.node("Div", w.node("MatMul", q, k), w.constant(np.float32((width // heads) ** 0.5)))
    mixed = w.node("Transpose", w.node("MatMul", w.node("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    mixed = w.node("Reshape", mixed, w.constant(np.array([1, length, width])))
    x = w.node("LayerNormalization", w.node("Add", dense(mixed, width, width), x), w.weights(width), w.weights(width))
    hidden = dense(x, width, 4 * width)
    gate = w.node(
        "Add", w.node("Erf", w.node("Div", hidden, w.constant(np.float32(2**0.5)))), w.constant(np.float32(1))
    )
    hidden = w.node("Mul", w.node("Mul", hidden, gate), w.constant(np.float32(0.5)))
    return w.model(w.node("Add", dense(hidden, 4 * width, width), x))
