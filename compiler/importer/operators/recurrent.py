"""Recurrent layers: the part that depends on the input alone as one matrix product, the rest as a loop over time."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from compiler.dtypes import DType
from compiler.formula import Term, formula_of
from compiler.importer.context import NodeContext
from compiler.importer.operators.activation import (
    elu,
    hard_sigmoid,
    leaky_relu,
    relu,
    softplus,
    softsign,
    thresholded_relu,
)
from compiler.importer.operators.indexing import reversed_starts
from compiler.importer.operators.linear import multiply
from compiler.importer.registry import operator
from compiler.ir import GraphBuilder, TensorType
from compiler.ir import operations as ops

Activation = Callable[[Term], Term]


_ACTIVATIONS: Final[dict[str, tuple[Callable[..., Term], tuple[float | None, ...]]]] = {
    "affine": (lambda x, alpha, beta: x * alpha + beta, (1.0, 0.0)),
    "elu": (elu, (1.0,)),
    "hardsigmoid": (hard_sigmoid, (0.2, 0.5)),
    "leakyrelu": (leaky_relu, (0.01,)),
    "relu": (relu, ()),
    "scaledtanh": (lambda x, alpha, beta: (x * beta).apply("tanh") * alpha, (None, None)),
    "sigmoid": (lambda x: x.apply("sigmoid"), ()),
    "softplus": (softplus, ()),
    "softsign": (softsign, ()),
    "tanh": (lambda x: x.apply("tanh"), ()),
    "thresholdedrelu": (thresholded_relu, (1.0,)),
}
"""By name, with the defaults of the numbers that each takes: its alpha, then its beta."""


def _bound(function: Callable[..., Term], numbers: Sequence[float]) -> Activation:
    return lambda x: function(x, *numbers)


def _activations(n: NodeContext, names: Sequence[str]) -> list[Activation]:
    """Return functions by their names; each that takes numbers takes the next of the attributes that list them."""
    given = [iter(n.attribute(f"activation_{which}") or ()) for which in ("alpha", "beta")]
    functions = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise n.refuse(f"the activation {name} is not implemented")
        function, defaults = _ACTIVATIONS[name.lower()]
        taken = [next(values, default) for values, default in zip(given, defaults, strict=False)]
        numbers = [number for number in taken if number is not None]
        if len(numbers) < len(defaults):
            raise n.refuse(f"the activation {name} has no alpha or no beta, and no defaults")
        functions.append(_bound(function, numbers))
    return functions


class _Kind(msgspec.Struct, frozen=True):
    """What sets one kind of recurrent layer apart."""

    gates: int
    activations: tuple[str, ...]
    states: int


_KINDS: Final = {
    "RNN": _Kind(1, ("Tanh",), 1),
    "GRU": _Kind(3, ("Sigmoid", "Tanh"), 1),
    "LSTM": _Kind(4, ("Sigmoid", "Tanh", "Tanh"), 2),
}


class _Layer:
    """One node, with its weights by direction."""

    def __init__(self, n: NodeContext) -> None:
        self.n = n
        self.kind = _KINDS[n.node.op_type]
        self.is_batch_first = bool(n.integer("layout", 0))
        g = n.graph
        self.x = g.transpose(n[0], (1, 0, 2)) if self.is_batch_first else n[0]
        self.time, self.batch, width = g.shape(self.x)
        direction = n.choice("direction", "forward", "reverse", "bidirectional")
        self.directions = [False, True] if direction == "bidirectional" else [direction == "reverse"]
        self.hidden = n.integer("hidden_size", n.shape(2)[-1])
        self._check_shapes(width)
        self.clip = n.attribute("clip")
        if self.clip is not None and not self.clip >= 0:
            raise n.refuse(f"expected clip of at least 0, got {self.clip}")
        self.lengths = self._lengths()
        names = n.attribute("activations")
        every = self.kind.activations * len(self.directions) if names is None else [a.decode() for a in names]
        if len(every) != len(self.kind.activations) * len(self.directions):
            raise n.refuse(f"{len(every)} activations do not fit {len(self.directions)} directions")
        self._activations = _activations(n, every)

    def _check_shapes(self, width: int) -> None:
        """Refuse inputs of other shapes: parts of those that are too large would be taken for them."""
        n, directions, size = self.n, len(self.directions), self.kind.gates * self.hidden
        state = (self.batch, directions, self.hidden) if self.is_batch_first else (directions, self.batch, self.hidden)
        expected = {
            "W": (directions, size, width),
            "R": (directions, size, self.hidden),
            "B": (directions, 2 * size),
            "sequence_lens": (self.batch,),
            "initial_h": state,
            "initial_c": state,
            "P": (directions, 3 * self.hidden),
        }
        for position, (name, shape) in enumerate(expected.items(), 1):
            if n.has(position) and n.shape(position) != shape:
                raise n.refuse(f"expected {name} to be {list(shape)}, got {list(n.shape(position))}")

    def _lengths(self) -> str | None:
        """Return the length of each sequence, or None when all are as long as the input."""
        n = self.n
        if not n.has(4) or (n.is_constant(4) and (n.constant(4) == self.time).all()):
            return None
        return n.graph.reshape(n[4], (self.batch, 1))

    def activations(self, direction: int) -> list[Activation]:
        """Return the activation functions of one direction."""
        count = len(self.kind.activations)
        return self._activations[direction * count : (direction + 1) * count]

    def part(self, position: int, direction: int) -> str | None:
        """Return one direction of an input, without the dimension of directions."""
        n = self.n
        if not n.has(position):
            return None
        shape = n.shape(position)
        cut = n.graph.slice(n[position], (direction, *([0] * (len(shape) - 1))), (1, *shape[1:]))
        return n.graph.reshape(cut, shape[1:])

    def initial(self, position: int, direction: int) -> str:
        """Return the state to begin with, (batch, hidden)."""
        n = self.n
        if not n.has(position):
            return n.graph.constant(np.zeros((self.batch, self.hidden), np.float32))
        value = n.graph.transpose(n[position], (1, 0, 2)) if self.is_batch_first else n[position]
        cut = n.graph.slice(value, (direction, 0, 0), (1, self.batch, self.hidden))
        return n.graph.reshape(cut, (self.batch, self.hidden))

    def projected(self, direction: int, *, adds_recurrent_bias: Sequence[int]) -> str:
        """Return what each step gets from the input alone, (time, batch, gates * hidden).

        The recurrent biases of the given gates are added here too.
        """
        g, size = self.n.graph, self.kind.gates * self.hidden
        weights = self.part(1, direction)
        bias = self.part(3, direction)
        assert weights is not None  # a layer without weights is no valid model
        result = multiply(self.n, self.x, g.transpose(weights, (1, 0)))
        if bias is None:
            return result
        own, recurrent = (g.slice(bias, (start,), (size,)) for start in (0, size))
        mask = np.isin(np.arange(size) // self.hidden, list(adds_recurrent_bias))
        chosen = g.apply("mul", recurrent, g.constant(mask.astype(np.float32)))
        return g.apply("add", result, g.apply("add", own, chosen))


class _Cell:
    """The body of the loop over time, under construction."""

    def __init__(self, layer: _Layer, direction: int, outer: Sequence[str]) -> None:
        self.layer = layer
        self.graph = GraphBuilder()
        self.graph.layer = layer.n.graph.layer
        self.functions = layer.activations(direction)
        row = TensorType(DType.F32, (layer.batch, layer.hidden))
        self.states = [self.graph.input(row) for _ in range(layer.kind.states)]
        gates = TensorType(DType.F32, (layer.batch, layer.kind.gates * layer.hidden))
        self.entry = self.graph.input(gates)
        self.number = self.graph.input(TensorType(DType.I64, ()))
        around = layer.n.graph
        self.outer = [self._known(around, name) for name in outer]
        self.captured = [name for name in outer if around.value_of(name) is None]

    def _known(self, around: GraphBuilder, name: str) -> str:
        numbers = around.value_of(name)
        return self.graph.input(around.type(name)) if numbers is None else self.graph.constant(numbers)

    def gate(self, value: str, number: int, count: int = 1) -> str:
        """Return one or more gates of a row of gates."""
        hidden = self.layer.hidden
        return self.graph.slice(value, (0, number * hidden), (self.layer.batch, count * hidden))

    def map(self, function: Callable[..., Term], *values: str) -> str:
        """Add a formula."""
        return self.graph.map(formula_of(function, *([DType.F32] * len(values))), *values)

    def product(self, value: str, weights: str) -> str:
        """Return a row times transposed weights."""
        g = self.graph
        columns = g.transpose(weights, (1, 0))
        bias = g.constant(np.zeros(g.shape(columns)[1], np.float32))
        return g.add(ops.MatMul(formula_of(lambda x: x, DType.F32)), value, columns, bias)

    def clipped(self, function: Activation) -> Activation:
        """Return an activation of what is brought into the range of the attribute `clip` first."""
        limit = self.layer.clip
        if limit is None:
            return function
        return lambda x: function(x.apply("at_least", -float(limit)).apply("at_most", float(limit)))


def _lstm(layer: _Layer, direction: int) -> tuple[_Cell, list[str], str]:
    """Gates in the order input, output, forget, cell."""
    recurrent, peepholes = layer.part(2, direction), layer.part(7, direction)
    assert recurrent is not None
    outer = [recurrent, *([peepholes] if peepholes else [])]
    cell = _Cell(layer, direction, outer)
    h, c = cell.states
    f, g = (cell.clipped(function) for function in cell.functions[:2])
    k = cell.functions[2]  # as in onnxruntime, the state is not clipped on its way out
    gates = cell.graph.apply("add", cell.entry, cell.product(h, cell.outer[0]))
    i, o, r, t = (cell.gate(gates, number) for number in range(4))
    if peepholes:
        p = [cell.graph.slice(cell.outer[1], (s * layer.hidden,), (layer.hidden,)) for s in range(3)]
        i, r = (cell.map(lambda x, w, s: x + w * s, x, w, c) for x, w in ((i, p[0]), (r, p[2])))
    if layer.n.integer("input_forget", 0):
        new_c = cell.map(lambda i, t, c: (1 - f(i)) * c + f(i) * g(t), i, t, c)
    else:
        new_c = cell.map(lambda i, r, t, c: f(r) * c + f(i) * g(t), i, r, t, c)
    if peepholes:
        o = cell.map(lambda x, w, s: x + w * s, o, p[1], new_c)
    new_h = cell.map(lambda o, c: f(o) * k(c), o, new_c)
    return cell, [new_h, new_c], layer.projected(direction, adds_recurrent_bias=range(4))


def _gru(layer: _Layer, direction: int) -> tuple[_Cell, list[str], str]:
    """Gates in the order update, reset, hidden."""
    n = layer.n
    recurrent, bias = layer.part(2, direction), layer.part(3, direction)
    assert recurrent is not None
    is_linear = bool(n.integer("linear_before_reset", 0))
    hidden_bias = n.graph.slice(bias, (5 * layer.hidden,), (layer.hidden,)) if is_linear and bias else None
    cell = _Cell(layer, direction, [recurrent, *([hidden_bias] if hidden_bias else [])])
    [h] = cell.states
    f, g = (cell.clipped(function) for function in cell.functions)
    weights = cell.outer[0]
    z, r, x = (cell.gate(cell.entry, number) for number in range(3))
    if is_linear:
        products = cell.product(h, weights)
        hz, hr, hh = (cell.gate(products, number) for number in range(3))
        if hidden_bias:
            hh = cell.graph.apply("add", hh, cell.outer[1])
        new_h = cell.map(
            lambda z, hz, r, hr, x, hh, h: (1 - f(z + hz)) * g(x + f(r + hr) * hh) + f(z + hz) * h,
            z, hz, r, hr, x, hh, h,
        )  # fmt: skip
    else:
        size = 2 * layer.hidden
        products = cell.product(h, cell.graph.slice(weights, (0, 0), (size, layer.hidden)))
        hz, hr = cell.gate(products, 0), cell.gate(products, 1)
        reset = cell.map(lambda r, hr, h: f(r + hr) * h, r, hr, h)
        hh = cell.product(reset, cell.graph.slice(weights, (size, 0), (layer.hidden, layer.hidden)))
        new_h = cell.map(lambda z, hz, x, hh, h: (1 - f(z + hz)) * g(x + hh) + f(z + hz) * h, z, hz, x, hh, h)
    return cell, [new_h], layer.projected(direction, adds_recurrent_bias=(0, 1) if is_linear else range(3))


def _rnn(layer: _Layer, direction: int) -> tuple[_Cell, list[str], str]:
    recurrent = layer.part(2, direction)
    assert recurrent is not None
    cell = _Cell(layer, direction, [recurrent])
    f = cell.clipped(cell.functions[0])
    new_h = cell.map(lambda x, y: f(x + y), cell.entry, cell.product(cell.states[0], cell.outer[0]))
    return cell, [new_h], layer.projected(direction, adds_recurrent_bias=(0,))


_CELLS: Final = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}


@operator("RNN", "GRU", "LSTM")
def recurrent(n: NodeContext) -> None:
    """In one direction or in both, for sequences of one length or of several."""
    n.require_finite()
    n.require_float(0, 1, 2)
    layer = _Layer(n)
    g = n.graph
    whole, last = [], []
    for direction, is_reverse in enumerate(layer.directions):
        stacked, states = _run(layer, direction, is_reverse=is_reverse)
        whole.append(g.reshape(stacked, (layer.time, 1, layer.batch, layer.hidden)))
        last.append([g.reshape(state, (1, layer.batch, layer.hidden)) for state in states])
    y = g.add(ops.Concat(1), *whole) if len(whole) > 1 else whole[0]
    finals = [g.add(ops.Concat(0), *parts) if len(parts) > 1 else parts[0] for parts in zip(*last, strict=True)]
    if layer.is_batch_first:
        y = g.transpose(y, (2, 0, 1, 3))
        finals = [g.transpose(final, (1, 0, 2)) for final in finals]
    n.set(y, *finals)


def _run(layer: _Layer, direction: int, *, is_reverse: bool) -> tuple[str, list[str]]:
    """Return the hidden states of all steps, and the last states."""
    n = layer.n
    cell, results, entries = _CELLS[n.node.op_type](layer, direction)
    captured = list(cell.captured)
    output = results[0]
    # The end of a sequence is where its own length says: it is turned around beforehand, and read forwards.
    is_turned = is_reverse and layer.lengths is not None
    if is_turned:
        entries = reversed_starts(n, entries, n[4], time=0, batch=1)
    if layer.lengths is not None:
        captured.append(layer.lengths)
        length = cell.graph.input(n.graph.type(layer.lengths))
        number = cell.graph.cast(n.graph.type(layer.lengths).dtype, cell.number)
        is_inside = cell.graph.apply("lt", number, length)
        zero = cell.graph.number(output, 0.0)
        output = cell.graph.apply("select", is_inside, output, zero)
        results = [
            cell.graph.apply("select", is_inside, new, old) for new, old in zip(results, cell.states, strict=True)
        ]
    is_backwards = is_reverse and not is_turned
    operation = ops.Scan(
        cell.graph.graph([*results, output]), layer.time, len(results), (is_backwards, False), (is_backwards,)
    )
    initial = [layer.initial(5 + number, direction) for number in range(len(results))]
    numbers = n.graph.constant(np.arange(layer.time))
    *states, stacked = n.graph.add_many(operation, *initial, entries, numbers, *captured)
    return reversed_starts(n, stacked, n[4], time=0, batch=1) if is_turned else stacked, states
