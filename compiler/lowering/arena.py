"""The arena: one address for each buffer, so that buffers which are needed at the same time do not overlap.

Buffers are placed by size, the largest first, each at the lowest place that is free while it lives (greedy by size,
after Pisarchyk and Lee, 2020). A step that may overwrite what it reads takes over its buffer, if nobody needs it later.
What a loop reads from outside lives until its end.
"""

from collections.abc import Iterable, Sequence

import msgspec

from compiler.lowering.step import Buffer, Step

ALIGNMENT_BYTES = 64


class ArenaPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Where each buffer lies, from the start of the arena."""

    offsets: dict[int, int]
    size_bytes: int
    bound_bytes: int
    """The least that any plan could do with: what lives at the same time, at its greatest."""


class _Life(msgspec.Struct):
    size_bytes: int
    first: int
    last: int


def plan_arena(
    buffers: Iterable[Buffer], steps: Sequence[Step], inputs: Iterable[int], outputs: Iterable[int]
) -> ArenaPlan:
    """Return the plan for the buffers that are no constants; inputs live from the start, outputs to the end."""
    timeline, loops = _timeline(steps)
    sizes = {b.number: aligned(b.size_bytes) for b in buffers if b.constant is None}
    lives = _lives(sizes, timeline, inputs, outputs)
    for first, last in loops:
        for life in lives.values():
            if life.first < first <= life.last < last:
                life.last = last
    owners = _merge_overwritten(lives, timeline, set(outputs))
    placed: list[tuple[int, _Life]] = []
    offsets: dict[int, int] = {}
    for number, life in sorted(lives.items(), key=lambda item: (-item[1].size_bytes, item[1].first, item[0])):
        offsets[number] = _lowest(life, placed)
        placed.append((offsets[number], life))
    for number, owner in owners.items():
        offsets[number] = offsets[owner]
    size = max((offset + life.size_bytes for offset, life in placed), default=0)
    return ArenaPlan(offsets=offsets, size_bytes=size, bound_bytes=_bound(lives.values(), len(timeline)))


def aligned(size_bytes: int) -> int:
    """Return a size rounded up to the alignment of buffers."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _timeline(steps: Sequence[Step]) -> tuple[list[Step], list[tuple[int, int]]]:
    """Return all steps in one row, and from where to where each loop goes, inner ones first.

    A step with others inside is there twice, before and behind them: what it reads and writes lives all the while.
    """
    row: list[Step] = []
    loops: list[tuple[int, int]] = []

    def add(step: Step) -> None:
        first = len(row)
        row.append(step)
        for block in step.blocks:
            for inner in block:
                add(inner)
        if step.blocks:
            row.append(step)
            if step.is_loop:
                loops.append((first, len(row) - 1))

    for step in steps:
        add(step)
    return row, loops


def _lives(
    sizes: dict[int, int], steps: Sequence[Step], inputs: Iterable[int], outputs: Iterable[int]
) -> dict[int, _Life]:
    lives: dict[int, _Life] = {number: _Life(sizes[number], 0, 0) for number in inputs}
    for position, step in enumerate(steps):
        for number in (*step.writes, *step.reads):
            if number in sizes:
                lives.setdefault(number, _Life(sizes[number], position, position)).last = position
    for number in outputs:
        if number in sizes:
            lives.setdefault(number, _Life(sizes[number], 0, 0)).last = len(steps)
    return lives


def _merge_overwritten(lives: dict[int, _Life], steps: Sequence[Step], outputs: set[int]) -> dict[int, int]:
    """Let results take over the buffers that they may overwrite; return the owner of each that vanishes."""
    owners: dict[int, int] = {}
    for position, step in enumerate(steps):
        if not (step.may_overwrite and step.reads and step.writes):
            continue
        old, new = owners.get(step.reads[0], step.reads[0]), step.writes[0]
        if old in lives and new in lives and new not in outputs and old not in outputs:
            before, after = lives[old], lives[new]
            if before.last == after.first == position and before.size_bytes == after.size_bytes:
                before.last = after.last
                del lives[new]
                owners[new] = old
    return owners


def _lowest(life: _Life, placed: Sequence[tuple[int, _Life]]) -> int:
    """Return the lowest place that is free during a life."""
    offset = 0
    taken = sorted((start, other.size_bytes) for start, other in placed if _overlap(life, other))
    for start, size_bytes in taken:
        if start >= offset + life.size_bytes:
            break
        offset = max(offset, start + size_bytes)
    return offset


def _overlap(a: _Life, b: _Life) -> bool:
    return a.first <= b.last and b.first <= a.last


def _bound(lives: Iterable[_Life], steps: int) -> int:
    changes = [0] * (steps + 2)
    for life in lives:
        changes[life.first] += life.size_bytes
        changes[life.last + 1] -= life.size_bytes
    level = most = 0
    for change in changes:
        level += change
        most = max(most, level)
    return most
