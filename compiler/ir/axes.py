"""Which dimension of one value goes along with which of another: what views do, seen from their dimensions."""

from collections.abc import Sequence

from compiler.ir import operations as ops

Axes = tuple[int | None, ...]
"""For each dimension of a value that of another one which it is, or None."""


def inverse(axes: Axes, rank: int) -> Axes:
    """Return the same seen from the other value, which has `rank` dimensions."""
    places = {axis: n for n, axis in enumerate(axes) if axis is not None}
    return tuple(places.get(n) for n in range(rank))


def view_axes(view: ops.View, old: Sequence[int], new: Sequence[int]) -> Axes:
    """Return for each dimension of a view that of the value, with the shapes `new` and `old`, which goes along it."""
    match view:
        case ops.Transpose(order):
            return order
        case ops.Slice():
            return tuple(range(len(new)))
        case ops.Broadcast():
            missing = len(new) - len(old)
            return tuple(n - missing if n >= missing else None for n in range(len(new)))
        case ops.Unfold(axis):
            return tuple(n if n < axis else None if n <= axis + 1 else n - 1 for n in range(len(new)))
    return reshape_axes(old, new)


def reshape_axes(old: Sequence[int], new: Sequence[int]) -> Axes:
    """Return for each new dimension the old one that it is, if it stays as it is; those of length 1 come and go."""
    result: list[int | None] = [None] * len(new)
    source = [n for n in range(len(old)) if old[n] != 1]
    target = [n for n in range(len(new)) if new[n] != 1]
    before = after = 1  # as many elements lie outside of both dimensions
    while source and target:
        if before == after and old[source[0]] == new[target[0]]:
            result[target[0]] = source[0]
        if before <= after:
            before *= old[source.pop(0)]
        else:
            after *= new[target.pop(0)]
    return tuple(result)
