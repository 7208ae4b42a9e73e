"""Resizing: along each axis, every output is a weighted sum of a few inputs; which and how much is known beforehand."""

import math
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.importer.context import NodeContext
from compiler.importer.registry import operator
from compiler.ir.builder import check_foldable

Numbers = NDArray[np.float64]
Places = NDArray[np.int64]


_COORDINATES: Final = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)
"""How places in the result become places in the image."""


class _Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How an axis is resized."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    excludes_outside: bool
    antialias: bool
    extrapolation: float


class _Line(msgspec.Struct, frozen=True):
    """One axis: its lengths, how much larger it becomes, and the region that is resized."""

    length: int
    output: int
    scale: float
    region: tuple[float, float]


@operator("Resize", "Upsample")
def resize(n: NodeContext) -> None:
    """By nearest neighbours, linear or cubic interpolation."""
    lines, settings = _lines(n), _settings(n)
    if any(line.output < 1 for line in lines):
        raise n.refuse(f"its result would have the shape {[line.output for line in lines]}: nothing is left of a side")
    value = n[0]
    is_between = settings.mode != "nearest" and not n.dtype().is_float
    if is_between:
        value = n.graph.cast(DType.F32, value)
    outside: list[tuple[int, NDArray[np.bool_]]] = []
    for axis, line in enumerate(lines):
        if line.length == line.output and line.scale == 1 and settings.coordinates != "tf_crop_and_resize":
            continue
        positions = _positions(line, settings.coordinates).astype(np.float64)
        if settings.coordinates == "tf_crop_and_resize":
            outside.append((axis, (positions < 0) | (positions > line.length - 1)))
        places, weights = _taps(positions, line, settings)
        value = _resized(n, value, axis, places, weights)
    for axis, mask in outside:
        if mask.any():
            shape = [len(mask) if a == axis else 1 for a in range(len(lines))]
            number = n.graph.number(value, settings.extrapolation)
            value = n.graph.apply("select", n.graph.constant(mask.reshape(shape)), number, value)
    n.set(n.graph.cast(n.dtype(), value) if is_between else value)


def _settings(n: NodeContext) -> _Settings:
    is_old = n.node.op_type == "Upsample" or n.opset < 11
    return _Settings(
        mode=n.choice("mode", "nearest", "linear", "cubic"),
        coordinates="asymmetric" if is_old else n.choice("coordinate_transformation_mode", *_COORDINATES),
        nearest="outwards" if is_old else n.choice("nearest_mode", *_NEAREST),
        cubic=n.number("cubic_coeff_a", -0.75),
        excludes_outside=bool(n.integer("exclude_outside", 0)),
        antialias=bool(n.integer("antialias", 0)),
        extrapolation=n.number("extrapolation_value", 0.0),
    )


def _lines(n: NodeContext) -> list[_Line]:
    """Return what becomes of each axis."""
    shape = n.shape()
    if n.node.op_type == "Upsample" or n.opset < 11:
        scales = n.attribute("scales") if n.attribute("scales") is not None else n.constant(1).ravel()
        return [_Line(d, math.floor(d * s), float(s), (0, 1)) for d, s in zip(shape, scales, strict=True)]
    axes = [n.axis(a, len(shape)) for a in n.integers("axes", range(len(shape)))]
    regions = dict.fromkeys(range(len(shape)), (0.0, 1.0))
    if n.has(1) and n.constant(1).size:
        roi = n.constant(1).ravel()
        regions.update({a: (float(roi[p]), float(roi[p + len(axes)])) for p, a in enumerate(axes)})
    lines = [_Line(d, d, 1.0, regions[a]) for a, d in enumerate(shape)]
    if n.has(2) and n.constant(2).size:
        for axis, scale in zip(axes, n.constant(2).ravel(), strict=True):
            lines[axis] = _Line(shape[axis], math.floor(shape[axis] * scale), float(scale), regions[axis])
        return lines
    sizes = n.constant_integers(3)
    policy = n.choice("keep_aspect_ratio_policy", "stretch", "not_larger", "not_smaller")
    ratios = [size / shape[axis] for size, axis in zip(sizes, axes, strict=True)]
    for axis, size, ratio in zip(axes, sizes, ratios, strict=True):
        scale = ratio if policy == "stretch" else min(ratios) if policy == "not_larger" else max(ratios)
        output = size if policy == "stretch" else math.floor(scale * shape[axis] + 0.5)
        lines[axis] = _Line(shape[axis], output, scale, regions[axis])
    return lines


def _positions(line: _Line, coordinates: str) -> NDArray[np.floating]:
    """Return where each output lies among the inputs."""
    check_foldable(line.output)
    o = np.arange(line.output, dtype=np.float32)  # as engines count: what is on an edge falls to the same side
    match coordinates:
        case "asymmetric":
            return o / line.scale
        case "align_corners":
            width = line.scale * line.length  # which may be no whole number
            return o * (line.length - 1) / (width - 1) if line.output > 1 or width != 1 else np.zeros(1)
        case "tf_half_pixel_for_nn":
            return (o + 0.5) / line.scale
        case "pytorch_half_pixel":
            return (o + 0.5) / line.scale - 0.5 if line.output > 1 else np.zeros(1)
        case "half_pixel_symmetric":
            adjusted = line.output / (line.scale * line.length)
            return line.length / 2 * (1 - adjusted) + (o + 0.5) / line.scale - 0.5
        case "tf_crop_and_resize":
            start, end = line.region
            if line.output == 1:
                return np.full(1, 0.5 * (start + end) * (line.length - 1))
            return start * (line.length - 1) + o * (end - start) * (line.length - 1) / (line.output - 1)
    return (o + 0.5) / line.scale - 0.5


_NEAREST: Final[dict[str, Callable[[Numbers], Numbers]]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _taps(positions: Numbers, line: _Line, settings: _Settings) -> tuple[Places, Numbers]:
    """Return for each output the inputs that it is made of, and how much of each."""
    if settings.mode == "nearest":
        nearest = settings.nearest
        if nearest == "outwards":  # before there was an attribute
            nearest = "ceil" if line.scale < 1 else "floor"
        places = _NEAREST[nearest](positions).astype(np.int64)[:, None]
        return np.clip(places, 0, line.length - 1), np.ones_like(places, np.float64)
    narrow = min(line.scale, 1.0) if settings.antialias else 1.0
    reach = (1 if settings.mode == "linear" else 2) / narrow
    first = np.floor(positions - reach).astype(np.int64) + 1
    count = math.ceil(2 * reach) + (1 if narrow < 1 else 0)
    places = first[:, None] + np.arange(count)
    distances = np.abs(positions[:, None] - places) * narrow
    weights = _tent(distances) if settings.mode == "linear" else _cubic(distances, settings.cubic)
    if settings.excludes_outside:
        weights = np.where((places >= 0) & (places < line.length), weights, 0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return np.clip(places, 0, line.length - 1), weights


def _tent(distance: Numbers) -> Numbers:
    return np.maximum(1 - distance, 0)


def _cubic(distance: Numbers, a: float) -> Numbers:
    """Return the weights of cubic convolution (Keys, 1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def _resized(n: NodeContext, value: str, axis: int, places: Places, weights: Numbers) -> str:
    """Return a value with one axis resized."""
    used = [tap for tap in range(places.shape[1]) if weights[:, tap].any()]
    shape = n.graph.shape(value)
    if len(used) == 1 and (weights[:, used[0]] == 1).all():
        return _picked(n, value, axis, places[:, used[0]])
    spread = [len(places) if a == axis else 1 for a in range(len(shape))]
    parts = []
    for tap in used:
        factor = n.graph.constant(weights[:, tap].astype(np.float32).reshape(spread))
        parts.append(n.graph.apply("mul", _picked(n, value, axis, places[:, tap]), factor))
    total = parts[0]
    for part in parts[1:]:
        total = n.graph.apply("add", total, part)
    return total


def _picked(n: NodeContext, value: str, axis: int, places: Sequence[int] | Places) -> str:
    """Return some entries along an axis: a repetition or a cut where that is all it is."""
    shape = n.graph.shape(value)
    picked = np.asarray(places)
    repeats, rest = divmod(len(picked), shape[axis])
    if rest == 0 and (picked == np.arange(len(picked)) // max(repeats, 1)).all():
        split = n.graph.reshape(value, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
        spread = n.graph.broadcast(split, (*shape[: axis + 1], repeats, *shape[axis + 1 :]))
        return n.graph.reshape(spread, (*shape[:axis], len(picked), *shape[axis + 1 :]))
    steps = np.diff(picked)
    if len(picked) > 1 and (steps == steps[0]).all() and steps[0] > 0:
        starts = [int(picked[0]) if a == axis else 0 for a in range(len(shape))]
        counts = [len(picked) if a == axis else d for a, d in enumerate(shape)]
        return n.graph.slice(value, starts, counts, [int(steps[0]) if a == axis else 1 for a in range(len(shape))])
    return n.graph.take(value, n.graph.constant(picked), axis)
