"""Transposed convolutions: each output pixel by the plain convolution that has its place between the input pixels.

Of a stride s, the outputs o = q s + r with the same rest r see the same taps of the filter. So one small convolution is
made for each rest along each axis, and their results are put between each other. Nothing is multiplied by zeros.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.formula import identity
from compiler.importer.context import NodeContext
from compiler.importer.operators.linear import AUTO_PADS, check_taps
from compiler.importer.registry import operator
from compiler.ir import operations as ops

Floats = NDArray[np.float32]


class _Axis(msgspec.Struct, frozen=True):
    """One spatial axis of a transposed convolution."""

    length: int
    output: int
    stride: int
    dilation: int
    front: int
    taps: int

    @property
    def count(self) -> int:
        """How many outputs there are of each rest, the last of which may be beyond the end."""
        return -(-self.output // self.stride)

    def phase(self, rest: int) -> "_Phase":
        """Return the plain convolution along this axis for the outputs with a rest."""
        pairs = [
            ((rest + self.front - tap * self.dilation) // self.stride, tap)
            for tap in range(self.taps)
            if (rest + self.front - tap * self.dilation) % self.stride == 0
        ]
        pairs.sort()
        if not pairs:
            return _Phase((), 1, 0, self.count - self.length)
        offsets = [offset for offset, _ in pairs]
        dilation = offsets[1] - offsets[0] if len(offsets) > 1 else 1
        before, after = -offsets[0], self.count - 1 + offsets[-1] - (self.length - 1)
        return _Phase(tuple(tap for _, tap in pairs), dilation, before, after)


class _Phase(msgspec.Struct, frozen=True):
    """A plain convolution along one axis; negative padding cuts."""

    taps: tuple[int, ...]
    dilation: int
    before: int
    after: int


@operator("ConvTranspose")
def conv_transpose(n: NodeContext) -> None:
    """In one or two dimensions, with constant weights."""
    n.require_finite()
    n.require_float()
    spatial = n.type().rank - 2
    if spatial not in {1, 2}:
        raise n.refuse(f"a transposed convolution in {spatial} dimensions is not implemented")
    weights = np.asarray(n.constant(1), np.float32)
    bias = np.asarray(n.constant(2), np.float32) if n.has(2) else None
    image, axes = n[0], _axes(n)
    if spatial == 1:
        shape = n.shape()
        image, weights = n.graph.reshape(image, (*shape[:2], 1, shape[2])), weights[:, :, None]
        axes = [_Axis(1, 1, 1, 1, 0, 1), *axes]
    result = _interleaved(n, image, axes, _filters(weights, n.integer("group", 1)), bias)
    if spatial == 1:
        shape = n.graph.shape(result)
        result = n.graph.reshape(result, (*shape[:2], shape[3]))
    n.set(result)


def _axes(n: NodeContext) -> list[_Axis]:
    lengths, taps = n.shape()[2:], n.shape(1)[2:]
    spatial = len(lengths)
    strides, dilations = n.sizes("strides", [1] * spatial), n.sizes("dilations", [1] * spatial)
    check_taps(n, n.shape(1))
    extra = n.sizes("output_padding", [0] * spatial, least=0)
    pads = n.sizes("pads", [0] * 2 * spatial, least=0)
    given = None if n.attribute("output_shape") is None else n.sizes("output_shape", lengths)
    mode = n.choice("auto_pad", *AUTO_PADS)
    axes = []
    for a in range(spatial):
        full = (lengths[a] - 1) * strides[a] + (taps[a] - 1) * dilations[a] + 1 + extra[a]
        front, output = pads[a], full - pads[a] - pads[spatial + a]
        if given is not None or mode.startswith("SAME"):
            output = given[a] if given is not None else lengths[a] * strides[a]
            total = max(full - output, 0)
            front = total // 2 if mode == "SAME_UPPER" else total - total // 2
        axes.append(_Axis(lengths[a], output, strides[a], dilations[a], front, taps[a]))
    return axes


def _filters(weights: Floats, groups: int) -> Floats:
    """Return filters as those of a plain convolution: outputs first."""
    channels, out, *taps = weights.shape
    grouped = weights.reshape(groups, channels // groups, out, *taps)
    return grouped.swapaxes(1, 2).reshape(groups * out, channels // groups, *taps)


def _interleaved(n: NodeContext, image: str, axes: list[_Axis], filters: Floats, bias: Floats | None) -> str:
    g = n.graph
    batch, out = g.shape(image)[0], len(filters)
    rows, columns = axes
    bias_name = g.constant(np.zeros(out, np.float32) if bias is None else bias)
    lines = []
    for r in range(rows.stride):
        parts = [
            g.reshape(
                _phase(n, image, filters, bias_name, (rows.phase(r), columns.phase(c))),
                (batch, out, rows.count, 1, columns.count, 1),
            )
            for c in range(columns.stride)
        ]
        lines.append(g.add(ops.Concat(5), *parts) if len(parts) > 1 else parts[0])
    whole = g.add(ops.Concat(3), *lines) if len(lines) > 1 else lines[0]
    joined = g.reshape(whole, (batch, out, rows.count * rows.stride, columns.count * columns.stride))
    return g.slice(joined, (0, 0, 0, 0), (batch, out, rows.output, columns.output))


def _phase(n: NodeContext, image: str, filters: Floats, bias: str, phases: tuple[_Phase, _Phase]) -> str:
    """Return the plain convolution for the outputs of one rest along each axis."""
    g = n.graph
    batch, channels, height, width = g.shape(image)
    rows, columns = phases
    cut_top, cut_left = max(-rows.before, 0), max(-columns.before, 0)
    kept = (height - cut_top - max(-rows.after, 0), width - cut_left - max(-columns.after, 0))
    part = g.slice(image, (0, 0, cut_top, cut_left), (batch, channels, *kept))
    taps = filters[:, :, rows.taps][:, :, :, columns.taps]
    if not rows.taps or not columns.taps:  # nothing reaches these outputs
        taps = np.zeros((*filters.shape[:2], max(len(rows.taps), 1), max(len(columns.taps), 1)), np.float32)
    operation = ops.Conv(
        strides=(1, 1),
        dilations=(rows.dilation, columns.dilation),
        pads=(max(rows.before, 0), max(columns.before, 0), max(rows.after, 0), max(columns.after, 0)),
        groups=n.integer("group", 1),
        epilogue=identity(DType.F32),
    )
    return g.add(operation, part, g.constant(np.ascontiguousarray(taps)), bias)
