"""Operators whose form changed from one version of ONNX to the next, in every version that is read.

What was an attribute became an input, defaults changed, names went. The tests of the ONNX project know the last form.
"""

import re

import pytest
from onnx import defs

from compiler.importer.source import NEWEST_OPSET, OLDEST_OPSET
from tests.compiler.importer.test_odd_graphs import compare, graph

NEWEST_OF_ONNXRUNTIME = 26
OPSETS = range(OLDEST_OPSET, min(NEWEST_OPSET, NEWEST_OF_ONNXRUNTIME) + 1)

FORMS: dict[str, dict[int, str]] = {
    "Squeeze": {
        7: "g (float[1, 3, 1] x) => (float[3, 1] y) { y = Squeeze <axes = [0]> (x) }",
        13: "g (float[1, 3, 1] x) => (float[3, 1] y) <int64[1] a = {0}> { y = Squeeze(x, a) }",
    },
    "Unsqueeze": {
        7: "g (float[3] x) => (float[1, 3, 1] y) { y = Unsqueeze <axes = [0, 2]> (x) }",
        13: "g (float[3] x) => (float[1, 3, 1] y) <int64[2] a = {0, 2}> { y = Unsqueeze(x, a) }",
    },
    "ReduceSum": {
        7: "g (float[2, 3, 4] x) => (float[2, 1, 4] y) { y = ReduceSum <axes = [1]> (x) }",
        13: "g (float[2, 3, 4] x) => (float[2, 1, 4] y) <int64[1] a = {1}> { y = ReduceSum(x, a) }",
    },
    "ReduceL2": {
        7: "g (float[2, 3, 4] x) => (float[2, 4] y) { y = ReduceL2 <axes = [1], keepdims = 0> (x) }",
        18: "g (float[2, 3, 4] x) => (float[2, 4] y) <int64[1] a = {1}> { y = ReduceL2 <keepdims = 0> (x, a) }",
    },
    "Slice": {
        7: "g (float[2, 4] x) => (float[2, 2] y) { y = Slice <axes = [1], starts = [1], ends = [3]> (x) }",
        10: "g (float[2, 4] x) => (float[2, 2] y) <int64[1] a = {1}, int64[1] e = {3}> { y = Slice(x, a, e, a) }",
    },
    "Split": {
        7: "g (float[4, 2] x) => (float[1, 2] y, float[3, 2] z) { y, z = Split <axis = 0, split = [1, 3]> (x) }",
        13: """g (float[4, 2] x) => (float[1, 2] y, float[3, 2] z) <int64[2] s = {1, 3}>
            { y, z = Split <axis = 0> (x, s) }""",
    },
    "Split into equal parts": {
        7: "g (float[4, 2] x) => (float[2, 2] y, float[2, 2] z) { y, z = Split <axis = 0> (x) }",
        18: "g (float[4, 2] x) => (float[2, 2] y, float[2, 2] z) { y, z = Split <axis = 0, num_outputs = 2> (x) }",
    },
    "Clip": {
        7: "g (float[9] x) => (float[9] y) { y = Clip <min = -0.5, max = 1.0> (x) }",
        11: "g (float[9] x) => (float[9] y) <float a = {-0.5}, float b = {1}> { y = Clip(x, a, b) }",
    },
    "Pad": {
        7: 'g (float[2, 4] x) => (float[2, 7] y) { y = Pad <mode = "reflect", pads = [0, 1, 0, 2]> (x) }',
        11: 'g (float[2, 4] x) => (float[2, 7] y) <int64[4] p = {0, 1, 0, 2}> { y = Pad <mode = "reflect"> (x, p) }',
    },
    "Softmax": {7: "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax(x) }"},
    "LogSoftmax": {7: "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = LogSoftmax <axis = 1> (x) }"},
    "Hardmax": {7: "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Hardmax <axis = 1> (x) }"},
    "Upsample": {
        7: "g (float[1, 2, 3, 3] x) => (float[1, 2, 6, 6] y) { y = Upsample <scales = [1.0, 1.0, 2.0, 2.0]> (x) }",
        9: "g (float[1, 2, 3, 3] x) => (float[1, 2, 6, 6] y) <float[4] s = {1, 1, 2, 2}> { y = Upsample(x, s) }",
        10: "g (float[1, 2, 3, 3] x) => (float[1, 2, 6, 6] y) <float[4] s = {1, 1, 2, 2}> { y = Resize(x, s) }",
        11: """g (float[1, 2, 3, 3] x) => (float[1, 2, 6, 6] y) <float[4] s = {1, 1, 2, 2}, float[0] r = {}>
            { y = Resize(x, r, s) }""",
        13: "g (float[1, 2, 3, 3] x) => (float[1, 2, 6, 6] y) <float[4] s = {1, 1, 2, 2}> { y = Resize(x, , s) }",
    },
    "TopK": {
        7: "g (float[3, 5] x) => (float[3, 2] y, int64[3, 2] i) { y, i = TopK <k = 2> (x) }",
        10: "g (float[3, 5] x) => (float[3, 2] y, int64[3, 2] i) <int64[1] k = {2}> { y, i = TopK(x, k) }",
    },
    "Dropout": {
        7: "g (float[4] x) => (float[4] y) { y = Dropout <ratio = 0.5> (x) }",
        12: "g (float[4] x) => (float[4] y) <float r = {0.5}> { y = Dropout(x, r) }",
    },
    "BatchNormalization": {
        7: """g (float[1, 2, 3] x) => (float[1, 2, 3] y) <float[2] a = {1, 2}, float[2] b = {3, 4}>
            { y = BatchNormalization <epsilon = 0.01> (x, a, b, b, a) }""",
    },
    "Gemm": {
        7: """g (float[2, 3] x) => (float[2, 2] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[2] b = {1, 2}>
            { y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b) }""",
    },
    "PRelu": {7: "g (float[1, 2, 3] x) => (float[1, 2, 3] y) <float[2, 1] s = {0.1, 0.2}> { y = PRelu(x, s) }"},
    "AveragePool": {
        7: """g (float[1, 2, 8, 8] x) => (float[1, 2, 4, 4] y)
            { y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x) }""",
    },
    "MaxPool": {
        7: """g (float[1, 2, 7, 8] x) => (float[1, 2, 4, 4] y)
            { y = MaxPool <kernel_shape = [3, 3], auto_pad = "SAME_UPPER", strides = [2, 2]> (x) }""",
    },
}


def form(operator: str, opset: int) -> str:
    """Return the last form of an operator that a version has."""
    return next(text for since, text in sorted(FORMS[operator].items(), reverse=True) if since <= opset)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_version(opset: int) -> None:
    """All forms, each against onnxruntime."""
    for operator in FORMS:
        compare(graph(form(operator, opset), opset))


def test_the_forms_are_those_of_onnx() -> None:
    """A version in which an operator got its next form here is one in which ONNX changed it."""
    for operator, forms in FORMS.items():
        for since, text in forms.items():
            name = re.findall(r"= (\w+) ?[<(]", text)[-1]
            assert since == OLDEST_OPSET or defs.get_schema(name, since).since_version == since, operator
