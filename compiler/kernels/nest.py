"""Loops inside loops that move pointers.

A pointer moves by a fixed number of bytes along each loop. What the inner loops have moved is taken into account when
the outer one moves on, so no pointer is ever computed from indices.
"""

from collections.abc import Callable, Sequence

import msgspec

from compiler.wasm import Function, I32Local, i32, select

Step = int | tuple[int, int]
"""Bytes to move for one round; as a pair, the second number is for the move into the last round."""


class Pointer(msgspec.Struct, frozen=True):
    """An address that moves: by `steps` along the loops, the outermost first, and by `moved` in their body."""

    local: I32Local
    steps: tuple[Step, ...]
    moved: int = 0


def nest(f: Function, times: Sequence[int], pointers: Sequence[Pointer], body: Callable[[], None]) -> list[int]:
    """Write `body` inside loops that run `times` times; return how far each pointer is from its start behind them.

    The body may leave each pointer where it was, or where `moved` says.
    """
    if not times:
        body()
        return [pointer.moved for pointer in pointers]
    if times[0] == 1:
        return nest(f, times[1:], [_inside(pointer) for pointer in pointers], body)
    counter = f.i32()
    with f.repeat(counter, times[0]):
        inner = nest(f, times[1:], [_inside(pointer) for pointer in pointers], body)
        for pointer, moved in zip(pointers, inner, strict=True):
            step, last = _pair(pointer.steps[0])
            if step == last:
                pointer.local.advance(step - moved)
            else:
                is_next_last = i32.eq(counter, i32.const(2))
                pointer.local.set(
                    pointer.local + select(is_next_last, i32.const(last - moved), i32.const(step - moved))
                )
    return [(times[0] - 1) * step + last for step, last in (_pair(pointer.steps[0]) for pointer in pointers)]


def _inside(pointer: Pointer) -> Pointer:
    return Pointer(pointer.local, pointer.steps[1:], pointer.moved)


def _pair(step: Step) -> tuple[int, int]:
    return (step, step) if isinstance(step, int) else step
