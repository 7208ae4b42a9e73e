"""Activation functions, and the softmax family."""

import math
from collections.abc import Callable
from typing import Final

from compiler.formula import Term
from compiler.importer.context import NodeContext
from compiler.importer.registry import operator
from compiler.ir import operations as ops

_SELU_ALPHA: Final = 1.67326319217681884765625
_SELU_GAMMA: Final = 1.05070102214813232421875


def relu(x: Term) -> Term:
    """Return x above 0, and 0 below."""
    return x.apply("at_least", 0)


def elu(x: Term, alpha: float) -> Term:
    """Return x above 0; below, a power that falls to -alpha."""
    return (x < 0).choose((x.apply("exp") - 1) * alpha, x)


def leaky_relu(x: Term, alpha: float) -> Term:
    """Return x above 0; below, a share of it."""
    return (x < 0).choose(x * alpha, x)


def thresholded_relu(x: Term, alpha: float) -> Term:
    """Return x above alpha, and 0 below."""
    return (x > alpha).choose(x, 0)


def hard_sigmoid(x: Term, alpha: float, beta: float) -> Term:
    """Return a line between 0 and 1."""
    return (x * alpha + beta).apply("at_least", 0).apply("at_most", 1)


def softsign(x: Term) -> Term:
    """Return x / (1 + |x|)."""
    return x / (x.apply("abs") + 1)


def softplus(x: Term) -> Term:
    """Return log(1 + e**x), without the overflow of the power."""
    return ((-x.apply("abs")).apply("exp") + 1).apply("log") + x.apply("at_least", 0)


def _celu(n: NodeContext) -> Callable[[Term], Term]:
    alpha = n.number("alpha", 1.0)
    return lambda x: x.apply("at_least", 0) + (((x / alpha).apply("exp") - 1) * alpha).apply("at_most", 0)


def _selu(n: NodeContext) -> Callable[[Term], Term]:
    alpha, gamma = n.number("alpha", _SELU_ALPHA), n.number("gamma", _SELU_GAMMA)
    return lambda x: (x <= 0).choose((x.apply("exp") - 1) * alpha, x) * gamma


def _hard_sigmoid(n: NodeContext) -> Callable[[Term], Term]:
    alpha, beta = n.number("alpha", 0.2), n.number("beta", 0.5)
    return lambda x: hard_sigmoid(x, alpha, beta)


def _gelu(n: NodeContext) -> Callable[[Term], Term]:
    if n.choice("approximate", "none", "tanh") == "tanh":
        scale = math.sqrt(2 / math.pi)
        return lambda x: x * 0.5 * (((x + x * x * x * 0.044715) * scale).apply("tanh") + 1)
    return lambda x: x * 0.5 * ((x * math.sqrt(0.5)).apply("erf") + 1)


def _shrink(n: NodeContext) -> Callable[[Term], Term]:
    bias, limit = n.number("bias", 0.0), n.number("lambd", 0.5)
    return lambda x: (x < -limit).choose(x + bias, (x > limit).choose(x - bias, 0))


def _swish(n: NodeContext) -> Callable[[Term], Term]:
    alpha = n.number("alpha", 1.0)
    return lambda x: x * (x * alpha).apply("sigmoid")


def _of_alpha(
    function: Callable[[Term, float], Term], default: float
) -> Callable[[NodeContext], Callable[[Term], Term]]:
    """Return an activation whose one attribute is alpha."""
    return lambda n: lambda x: function(x, n.number("alpha", default))


_FORMULAS: Final[dict[str, Callable[[NodeContext], Callable[[Term], Term]]]] = {
    "Celu": _celu,
    "Elu": _of_alpha(elu, 1.0),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _: lambda x: x * (x * (1 / 6) + 0.5).apply("at_least", 0).apply("at_most", 1),
    "LeakyRelu": _of_alpha(leaky_relu, 0.01),
    "Mish": lambda _: lambda x: x * softplus(x).apply("tanh"),
    "Relu": lambda _: relu,
    "Selu": _selu,
    "Shrink": _shrink,
    "Softplus": lambda _: softplus,
    "Softsign": lambda _: softsign,
    "Swish": _swish,
    "ThresholdedRelu": _of_alpha(thresholded_relu, 1.0),
}


@operator(*_FORMULAS)
def activation(n: NodeContext) -> None:
    """A formula of one value."""
    n.set(n.map(_FORMULAS[n.node.op_type](n), n[0]))


@operator("PRelu")
def prelu(n: NodeContext) -> None:
    """A slope for negative values, which broadcasts."""
    n.set(n.map(lambda x, slope: (x < 0).choose(x * slope, x), n[0], n[1]))


@operator("Softmax", "LogSoftmax")
def softmax(n: NodeContext) -> None:
    """Along one axis; before opset 13 along all axes from one on."""
    n.require_float()
    n.set(normalised(n, n[0], n.opset, is_log=n.node.op_type == "LogSoftmax"))


def normalised(n: NodeContext, value: str, opset: int, *, is_log: bool = False) -> str:
    """Return the softmax of floats as an opset defines it."""
    shape = n.graph.shape(value)
    if opset < 13:
        axis = n.axis(n.integer("axis", 1), len(shape))
        rows = n.graph.reshape(value, (math.prod(shape[:axis]), math.prod(shape[axis:])))
        return n.graph.reshape(n.graph.add(ops.Softmax(is_log), rows), shape)
    axis = n.axis(n.integer("axis", -1), len(shape))
    order = [*(a for a in range(len(shape)) if a != axis), axis]
    result = n.graph.add(ops.Softmax(is_log), n.graph.transpose(value, order))
    return n.graph.transpose(result, [order.index(a) for a in range(len(shape))])
