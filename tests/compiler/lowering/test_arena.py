"""The arena: what lives at the same time never overlaps, and little is wasted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.lowering.arena import ALIGNMENT_BYTES, aligned, plan_arena
from compiler.lowering.step import Buffer, Emitter, Step


def nothing(_: Emitter) -> None:
    """Write no code."""


def step(reads: tuple[int, ...], writes: tuple[int, ...], *, may_overwrite: bool = False) -> Step:
    """Return a step without code."""
    return Step("layer", reads, writes, nothing, 0, may_overwrite)


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Buffer], list[Step]]:
    """Return a chain of steps, each of which writes a buffer and reads earlier ones."""
    count = draw(st.integers(2, 12))
    buffers = [Buffer(n, draw(st.integers(1, 5000))) for n in range(count)]
    steps = [
        step(
            tuple(draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=3))), (n,), may_overwrite=draw(st.booleans())
        )
        for n in range(1, count)
    ]
    return buffers, steps


@pytest.mark.property
@given(programs())
def test_nothing_that_lives_overlaps(program: tuple[list[Buffer], list[Step]]) -> None:
    """No step writes over a buffer that is read later, but for the one that it may take over."""
    buffers, steps = program
    last = len(buffers) - 1
    plan = plan_arena(buffers, steps, [0], [last])
    content = dict.fromkeys(range(plan.size_bytes // ALIGNMENT_BYTES), -1)

    def cells(number: int) -> range:
        start = plan.offsets[number] // ALIGNMENT_BYTES
        return range(start, start + aligned(buffers[number].size_bytes) // ALIGNMENT_BYTES)

    content.update(dict.fromkeys(cells(0), 0))
    for one in steps:
        for number in one.reads:
            assert {number} == {content[cell] for cell in cells(number)}
        content.update(dict.fromkeys(cells(one.writes[0]), one.writes[0]))
    assert {last} == {content[cell] for cell in cells(last)}
    assert plan.bound_bytes <= plan.size_bytes <= sum(aligned(b.size_bytes) for b in buffers)


def test_memory_is_used_again() -> None:
    """A chain needs room for two neighbours, one when each takes over from the one before."""
    buffers = [Buffer(n, 1000) for n in range(6)]
    chain = [step((n,), (n + 1,)) for n in range(5)]
    assert 2 * aligned(1000) == plan_arena(buffers, chain, [0], [5]).size_bytes
    taking_over = [step((n,), (n + 1,), may_overwrite=True) for n in range(5)]
    assert 2 * aligned(1000) == plan_arena(buffers, taking_over, [0], [5]).size_bytes
    assert (
        plan_arena(buffers, taking_over, [0], [5]).offsets[0] == plan_arena(buffers, taking_over, [0], [5]).offsets[4]
    )


def test_constants_are_not_in_it() -> None:
    """They lie before the arena."""
    plan = plan_arena([Buffer(0, 64), Buffer(1, 4, b"1234"), Buffer(2, 64)], [step((0, 1), (2,))], [0], [2])
    assert {0, 2} == set(plan.offsets)
