"""Quantised operators of onnxruntime (`com.microsoft`), which its quantiser writes around those of ONNX.

Those without products are computed with floats; QGemm has exact sums like `compiler.importer.operators.quantised`.
"""

from typing import Final

import numpy as np

from compiler.dtypes import DType
from compiler.formula import formula_of
from compiler.importer.context import NodeContext
from compiler.importer.operators.activation import normalised
from compiler.importer.operators.pooling import averaged
from compiler.importer.operators.quantised import Integers, along, dequantise, product_of, quantise
from compiler.importer.registry import operator
from compiler.ir import operations as ops

MICROSOFT: Final = "com.microsoft"


def _floats(n: NodeContext, position: int) -> str:
    """Return an input, behind which are its scale and its zero point, as floats."""
    return dequantise(n, n[position], n[position + 1], n[position + 2] if n.has(position + 2) else None)


def _set(n: NodeContext, value: str, position: int) -> None:
    """Set the result: floats quantised by the scale and the zero point at a position."""
    zero = n[position + 1] if n.has(position + 1) else None
    n.set(quantise(n, value, n[position], zero, n.dtype() if zero is None else n.dtype(position + 1)))


_BINARY: Final = {"QLinearAdd": "add", "QLinearMul": "mul"}


@operator(*_BINARY, domain=MICROSOFT)
def quantised_binary(n: NodeContext) -> None:
    """Arithmetic."""
    _set(n, n.graph.apply(_BINARY[n.node.op_type], _floats(n, 0), _floats(n, 3)), 6)


@operator("QLinearSigmoid", domain=MICROSOFT)
def quantised_sigmoid(n: NodeContext) -> None:
    """A sigmoid."""
    _set(n, n.graph.apply("sigmoid", _floats(n, 0)), 3)


@operator("QLinearLeakyRelu", domain=MICROSOFT)
def quantised_leaky(n: NodeContext) -> None:
    """A slope for negative values."""
    alpha = n.number("alpha", 0.01)
    _set(n, n.map(lambda x: (x < 0).choose(x * alpha, x), _floats(n, 0)), 3)


@operator("QLinearSoftmax", domain=MICROSOFT)
def quantised_softmax(n: NodeContext) -> None:
    """As the opset that an attribute names defines it."""
    _set(n, normalised(n, _floats(n, 0), n.integer("opset", 13)), 3)


@operator("QLinearWhere", domain=MICROSOFT)
def quantised_where(n: NodeContext) -> None:
    """One of two values."""
    value = n.graph.apply("select", n[0], _floats(n, 1), _floats(n, 4))
    n.set(quantise(n, value, n[7], n[8] if n.has(8) else None, n.dtype(1)))  # the first input is the truth


@operator("QLinearAveragePool", domain=MICROSOFT)
def quantised_average_pool(n: NodeContext) -> None:
    """The mean of each window."""
    if n.integer("channels_last", 0):
        raise n.refuse("images with their channels last are not implemented")
    _set(n, averaged(n, _floats(n, 0)), 3)


@operator("QLinearGlobalAveragePool", domain=MICROSOFT)
def quantised_global_average_pool(n: NodeContext) -> None:
    """The mean of each channel."""
    shape = n.shape()
    first = 1 if n.integer("channels_last", 0) else 2
    axes = list(range(first, first + len(shape) - 2))
    count = int(np.prod([shape[a] for a in axes]))
    mean = n.graph.reduce("add", _floats(n, 0), axes, formula_of(lambda t: t * (1 / count), DType.F32))
    _set(n, n.graph.reshape(mean, [1 if a in axes else d for a, d in enumerate(shape)]), 3)


@operator("QLinearConcat", domain=MICROSOFT)
def quantised_concat(n: NodeContext) -> None:
    """One behind the other, each brought to the scale of the result."""
    parts = [_floats(n, p) for p in range(2, n.count, 3)]
    axis = n.axis(n.integer("axis", 0), len(n.graph.shape(parts[0])))
    value = n.graph.add(ops.Concat(axis), *parts) if len(parts) > 1 else parts[0]
    n.set(quantise(n, value, n[0], n[1], n.dtype(1)))


@operator("QGemm", domain=MICROSOFT)
def quantised_gemm(n: NodeContext) -> None:
    """A product of two matrices, each of which may be transposed, and a sum; floats unless there is a scale for it."""
    left, right = Integers(n, 0, 2, -2), Integers(n, 3, 5, 0 if n.integer("transB", 0) else -1)
    for operand, name in ((left, "transA"), (right, "transB")):
        if n.integer(name, 0):
            operand.value = n.graph.transpose(operand.value, (1, 0))
    total = product_of(n, left, right)
    if n.has(6):
        total = n.graph.apply("add", total, n[6])
    alpha = n.number("alpha", 1.0)
    scale = n.map(lambda a, b: a * b * alpha, n.graph.reshape(n[1], ()), along(n, 4, 3, -1))
    value = n.map(lambda t, s: t.cast(DType.F32) * s, total, scale)
    if n.has(7):
        _set(n, value, 7)
    else:
        n.set(value)
