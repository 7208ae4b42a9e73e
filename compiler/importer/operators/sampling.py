"""Samples of an image at places that are computed: each is a weighted sum of the few elements around its place."""

from collections.abc import Callable
from functools import reduce
from itertools import product
from typing import Final

import msgspec

from compiler.dtypes import DType
from compiler.formula import Term
from compiler.importer.context import NodeContext
from compiler.importer.registry import operator
from compiler.ir import operations as ops

_CUBIC: Final = -0.75
"""The coefficient of cubic convolution (Keys, 1981) that ONNX fixes here."""


class _Tap(msgspec.Struct, frozen=True):
    """One element along an axis, for each sample: its index, and how much of it counts; None for all of it."""

    index: str
    weight: str | None


@operator("GridSample")
def grid_sample(n: NodeContext) -> None:
    """By nearest neighbours, linear or cubic interpolation, in any number of dimensions."""
    n.require_float(0, 1)
    (batch, channels, *lengths), (_, *wanted, _) = n.shape(), n.shape(1)
    taps = [_taps(n, _coordinate(n, axis), length) for axis, length in enumerate(lengths)]
    data = n.graph.reshape(n[0], (batch, channels, *[1] * len(wanted), *lengths))
    terms = []
    for chosen in product(*taps):
        term = n.graph.add(ops.Lookup(), data, *(tap.index for tap in chosen))
        for tap in chosen:
            term = term if tap.weight is None else n.graph.apply("mul", term, tap.weight)
        terms.append(term)
    n.set(reduce(lambda a, b: n.graph.apply("add", a, b), terms))


def _coordinate(n: NodeContext, axis: int) -> str:
    """Return where the samples lie along an axis, (batch, 1, samples …); the grid has the last axis first."""
    length, shape = n.shape()[2 + axis], n.shape(1)
    part = shape[-1] - 1 - axis
    cut = n.graph.slice(n[1], [*[0] * (len(shape) - 1), part], [*shape[:-1], 1])
    places = n.graph.reshape(cut, (shape[0], 1, *shape[1:-1]))
    if n.integer("align_corners", 0):
        return n.map(lambda x: (x + 1) * ((length - 1) / 2), places)
    return n.map(lambda x: ((x + 1) * length - 1) * 0.5, places)


def _taps(n: NodeContext, places: str, length: int) -> list[_Tap]:
    """Return the elements along an axis that samples are made of."""
    mode = n.choice("mode", "linear", "bilinear", "nearest", "cubic", "bicubic").removeprefix("bi")
    if mode == "nearest":
        return [_tap(n, n.graph.apply("round", places), None, length)]
    first = n.graph.apply("floor", places)
    rest = n.graph.apply("sub", places, first)
    weights: list[Callable[[Term], Term]]
    if mode == "linear":
        weights, start = [lambda r: 1 - r, lambda r: r], 0
    else:
        weights, start = [lambda r: _far(1 + r), _near, lambda r: _near(1 - r), lambda r: _far(2 - r)], -1
    return [
        _tap(n, n.map(lambda f, by=start + number: f + by, first), n.map(weight, rest), length)
        for number, weight in enumerate(weights)
    ]


def _near(d: Term) -> Term:
    return (d * (_CUBIC + 2) - (_CUBIC + 3)) * d * d + 1


def _far(d: Term) -> Term:
    return ((d - 5) * d + 8) * d * _CUBIC - 4 * _CUBIC


def _tap(n: NodeContext, place: str, weight: str | None, length: int) -> _Tap:
    """Return a tap whose index lies inside: beyond the image is nothing, its border, or its reflection."""
    mode, last = n.choice("padding_mode", "zeros", "border", "reflection"), length - 1
    if mode == "reflection":
        period = 2 * last if n.integer("align_corners", 0) else 2 * length
        place = n.map(lambda i: _reflected(i, period, length), place)
    elif mode == "zeros":
        inside = n.map(lambda i: (i >= 0).apply("and", i <= last).cast(DType.F32), place)
        weight = inside if weight is None else n.graph.apply("mul", weight, inside)
    index = n.map(lambda i: i.apply("at_least", 0).apply("at_most", last).cast(DType.I32), place)
    return _Tap(index, weight)


def _reflected(place: Term, period: int, length: int) -> Term:
    """Return a place that goes there and back in each period; where that is twice the length, ends come twice."""
    if not period:
        return place * 0
    rest = place - (place / period).apply("floor") * period
    return (rest < length).choose(rest, (period - (period == 2 * length)) - rest)
