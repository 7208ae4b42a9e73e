"""A box of indices and how operands lie over it.

Each operand has one stride for each dimension of the box, in elements: 0 where it is broadcast, negative where it is
read backwards, and the same for two dimensions where windows overlap.
"""

from collections.abc import Sequence

import msgspec

from compiler.dtypes import DType


class Operand(msgspec.Struct, frozen=True):
    """One array under a box."""

    dtype: DType
    strides: tuple[int, ...]

    @property
    def byte_strides(self) -> tuple[int, ...]:
        """The strides in bytes."""
        return tuple(stride * self.dtype.item_bytes for stride in self.strides)


def simplify(extents: Sequence[int], operands: Sequence[Operand]) -> tuple[tuple[int, ...], tuple[Operand, ...]]:
    """Return the same box with as few dimensions as possible.

    Dimensions of one index are dropped; neighbours that every operand walks through in one go are joined.
    """
    kept: list[tuple[int, tuple[int, ...]]] = []
    for dimension, extent in enumerate(extents):
        if extent == 1:
            continue
        strides = tuple(operand.strides[dimension] for operand in operands)
        if kept and all(outer == inner * extent for outer, inner in zip(kept[-1][1], strides, strict=True)):
            kept[-1] = kept[-1][0] * extent, strides
        else:
            kept.append((extent, strides))
    return (
        tuple(extent for extent, _ in kept),
        tuple(Operand(operand.dtype, tuple(strides[n] for _, strides in kept)) for n, operand in enumerate(operands)),
    )


def ordered(
    extents: Sequence[int], operands: Sequence[Operand], order: Sequence[int]
) -> tuple[tuple[int, ...], tuple[Operand, ...]]:
    """Return the box with its dimensions in another order, the outermost first."""
    return (
        tuple(extents[n] for n in order),
        tuple(Operand(operand.dtype, tuple(operand.strides[n] for n in order)) for operand in operands),
    )
