"""Where a value lies in memory: in a buffer, at regular distances, maybe with a border of zeros around it.

Transposing, cutting, broadcasting and unfolding only change a placement. So does another shape, where the elements can
be reached at regular distances under it.
"""

from collections.abc import Sequence

import msgspec

from compiler.dtypes import DType
from compiler.errors import InternalError
from compiler.ir import operations as ops
from compiler.ir.axes import reshape_axes
from compiler.loops.box import Operand

Border = tuple[tuple[int, int], ...]
"""For each dimension, how many zeros lie before and behind its elements."""


class Placement(msgspec.Struct, frozen=True):
    """A value in a buffer; strides and offset count elements."""

    buffer: int
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    border: Border

    @property
    def operand(self) -> Operand:
        """The same for loop kernels, over the value's own dimensions."""
        return Operand(self.dtype, self.strides)

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        return all(
            n == 1 or have == want
            for n, have, want in zip(self.shape, self.strides, row_major(self.shape), strict=True)
        )

    @property
    def is_forward(self) -> bool:
        """Whether no dimension runs backwards: kernels reach neighbours by offsets, which are never negative."""
        return all(stride >= 0 for stride in self.strides)

    def byte_stride(self, axis: int) -> int:
        """Return the distance between neighbours along a dimension, in bytes."""
        return self.strides[axis] * self.dtype.item_bytes


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a dense array."""
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


def dense(buffer: int, dtype: DType, shape: tuple[int, ...]) -> Placement:
    """Return the placement of a value that fills its buffer in row-major order."""
    return Placement(buffer, dtype, shape, row_major(shape), 0, no_border(len(shape)))


def no_border(rank: int) -> Border:
    """Return the border of a value that has none."""
    return ((0, 0),) * rank


def view(operation: ops.View, placement: Placement) -> Placement | None:
    """Return where a view of a value lies, or None when it has to be copied first."""
    match operation:
        case ops.Reshape(shape):
            return reshaped(placement, shape)
        case ops.Transpose(order):
            return msgspec.structs.replace(
                placement,
                shape=tuple(placement.shape[n] for n in order),
                strides=tuple(placement.strides[n] for n in order),
                border=tuple(placement.border[n] for n in order),
            )
        case ops.Broadcast(shape):
            return broadcast(placement, shape)
        case ops.Slice(starts, steps, counts):
            return _cut(placement, starts, steps, counts)
        case ops.Unfold(axis, windows, step, size, dilation):
            stride, rank = placement.strides[axis], len(placement.shape)
            return msgspec.structs.replace(
                placement,
                shape=(*placement.shape[:axis], windows, size, *placement.shape[axis + 1 :]),
                strides=(*placement.strides[:axis], stride * step, stride * dilation, *placement.strides[axis + 1 :]),
                border=no_border(rank + 1),
            )
    raise InternalError(f"no placement for {type(operation).__name__}")


def broadcast(placement: Placement, shape: Sequence[int]) -> Placement:
    """Return a placement with dimensions added in front and dimensions of 1 repeated."""
    added = len(shape) - len(placement.shape)
    own = (1,) * added + placement.shape
    strides = (0,) * added + placement.strides
    return msgspec.structs.replace(
        placement,
        shape=tuple(shape),
        strides=tuple(s if have == want else 0 for s, have, want in zip(strides, own, shape, strict=True)),
        border=no_border(len(shape)),
    )


def _cut(placement: Placement, starts: Sequence[int], steps: Sequence[int], counts: Sequence[int]) -> Placement:
    offset = sum(start * stride for start, stride in zip(starts, placement.strides, strict=True))
    untouched = [
        (start, step, count) == (0, 1, length)
        for start, step, count, length in zip(starts, steps, counts, placement.shape, strict=True)
    ]
    return msgspec.structs.replace(
        placement,
        shape=tuple(counts),
        strides=tuple(stride * step for stride, step in zip(placement.strides, steps, strict=True)),
        offset=placement.offset + offset,
        border=tuple(b if same else (0, 0) for b, same in zip(placement.border, untouched, strict=True)),
    )


def reshaped(placement: Placement, shape: Sequence[int]) -> Placement | None:
    """Return a placement under another shape, or None when its elements are not at regular distances then."""
    strides = _reshaped_strides(placement, shape)
    if strides is None:
        return None
    axes = reshape_axes(placement.shape, shape)
    border = tuple((0, 0) if axis is None else placement.border[axis] for axis in axes)
    return msgspec.structs.replace(placement, shape=tuple(shape), strides=strides, border=border)


def _reshaped_strides(placement: Placement, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Match groups of old dimensions with groups of new ones that hold as many elements, as numpy does."""
    old = [(n, s) for n, s in zip(placement.shape, placement.strides, strict=True) if n != 1]
    result = [0] * len(shape)
    position = 0
    axis = 0
    new = [n for n in range(len(shape)) if shape[n] != 1]
    while axis < len(new) and position < len(old):
        have, want, last, last_axis = old[position][0], shape[new[axis]], position, axis
        while have != want:
            if have < want:
                last += 1
                have *= old[last][0]
            else:
                last_axis += 1
                want *= shape[new[last_axis]]
        for outer, inner in zip(old[position:last], old[position + 1 : last + 1], strict=True):
            if outer[1] != inner[1] * inner[0]:
                return None
        stride = old[last][1]
        for n in reversed(new[axis : last_axis + 1]):
            result[n] = stride
            stride *= shape[n]
        position, axis = last + 1, last_axis + 1
    return tuple(result)
