"""Small files that ask for more than any machine has: refused at once, by name, without taking the memory."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler import compile_model
from compiler.errors import ModelFileError, TooLargeError, UnsupportedError
from tests.compiler.onnx_models import ModelWriter

MAX_PEAK_BYTES = 256 * 1024 * 1024
"""What the import may take of Python's memory; each of these models asks for many times as much."""
HUGE = np.array([1 << 20, 1 << 20, 4], np.int64)
ONES = np.ones((1, 1, 4), np.float32)


def integers(*numbers: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array(numbers, np.int64)


def range_of(*numbers: np.generic) -> bytes:
    """Return the sum of a range, made without inferring shapes: the onnx package counts the numbers out for that."""
    nodes = [
        helper.make_node("Range", ["start", "limit", "delta"], ["range"]),
        helper.make_node("Cast", ["range"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["floats"], ["sum"], keepdims=0),
        helper.make_node("Add", ["sum", "x"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    constants = [
        numpy_helper.from_array(np.asarray(number), name)
        for name, number in zip(("start", "limit", "delta"), numbers, strict=True)
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def refuse(model: bytes, said: str) -> None:
    """Check that the model is refused, and that little memory was taken until then."""
    tracemalloc.start()
    try:
        with pytest.raises((UnsupportedError, TooLargeError), match=said):
            compile_model(model)
        assert tracemalloc.get_traced_memory()[1] < MAX_PEAK_BYTES
    finally:
        tracemalloc.stop()


def eye(w: ModelWriter) -> str:
    return w.node("EyeLike", w.node("ConstantOfShape", w.constant(integers(1 << 16, 1 << 15))))


def one_hot(w: ModelWriter) -> str:
    return w.node(
        "OneHot", w.constant(integers(1, 2)), w.constant(np.int64(1 << 40)), w.constant(np.array([0, 1], np.float32))
    )


REFUSED: dict[str, tuple[Callable[[ModelWriter], str], str]] = {
    "ConstantOfShape": (lambda w: w.node("ConstantOfShape", w.constant(HUGE)), "expected at most .* elements"),
    "Expand": (lambda w: w.node("Expand", w.constant(ONES), w.constant(HUGE)), "expected at most .* elements"),
    "Expand of an input": (
        lambda w: w.node("Expand", w.input("y", [1, 1, 4]), w.constant(HUGE)),
        "expected at most .* elements",
    ),
    "Tile": (lambda w: w.node("Tile", w.constant(ONES), w.constant(HUGE)), "expected at most .* elements"),
    "OneHot": (one_hot, "expected a constant of at most"),
    "EyeLike": (eye, "expected a constant of at most"),
    "Pad": (lambda w: w.node("Pad", w.constant(ONES), w.constant(integers(0, 0, 1 << 40, 0, 0, 1 << 40))), "at most"),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_huge_constants(make: Callable[[ModelWriter], str], said: str) -> None:
    """The node that asks for too much is named, whether a value would be stored or only walked through."""
    w = ModelWriter()
    x = w.input("x", [1])
    huge = w.node("ReduceSum", w.node("Cast", make(w), to=TensorProto.FLOAT), keepdims=0)
    model = w.model(w.node("Add", huge, x), types={"add3": (TensorProto.FLOAT, [1])})
    refuse(model, said)


@pytest.mark.parametrize(
    ("limit", "delta", "said"),
    [
        (1 << 42, 1, "expected a constant of at most"),
        (1 << 32, 1, "expected a constant of at most"),
        (4, 0, "division by zero"),
        (np.inf, 1, "infinity"),
        (np.nan, 1, "NaN"),
    ],
)
@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_ranges_without_end(kind: type[np.generic], limit: float, delta: float, said: str) -> None:
    """Too many numbers, or steps that never arrive, of both kinds of numbers."""
    if kind is np.int64 and not np.isfinite(limit):
        limit, said = 1 << 62, "expected a constant of at most"
    with np.errstate(all="raise"):
        refuse(range_of(*(np.asarray(number).astype(kind)[()] for number in (0, limit, delta))), f"Range .*{said}")


def field(number: int, content: bytes) -> bytes:
    """Return a field of a protobuf message: bytes, or a message inside."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    head = b""
    while value > 127:
        head += bytes([value & 127 | 128])
        value >>= 7
    return head + bytes([value])


def nested(depth: int, operator: str, attribute: str, inputs: list[str]) -> bytes:
    """Return a model of nodes inside of nodes, written as bytes: no library would write it."""
    result = field(12, helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]).SerializeToString())
    graph = field(1, helper.make_node("Identity", ["x"], ["y"]).SerializeToString()) + field(2, b"g") + result
    for _ in range(depth):
        inner = field(5, field(1, attribute.encode()) + field(6, graph) + varint(20 << 3) + b"\x05")
        reads = b"".join(field(1, name.encode()) for name in inputs)
        graph = field(1, reads + field(2, b"y") + field(4, operator.encode()) + inner) + field(2, b"g") + result
    return varint(1 << 3) + b"\x08" + field(8, varint(2 << 3) + b"\x11") + field(7, graph)


@pytest.mark.parametrize(
    ("operator", "attribute", "inputs"), [("If", "then_branch", ["c"]), ("Loop", "body", ["n", "c", "x"])]
)
@pytest.mark.parametrize("depth", [100, 10_000])
def test_graphs_inside_of_graphs(operator: str, attribute: str, inputs: list[str], depth: int) -> None:
    """Branches and loops as deep as nobody needs them are refused with words, not with a stack that ran out."""
    with pytest.raises(ModelFileError, match="nested too deep"):
        compile_model(nested(depth, operator, attribute, inputs))
