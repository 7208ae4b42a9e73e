"""Turns at a model: in order, one at a time, never more waiting than there is room for, never longer than allowed."""

import contextlib
import threading
import time
from collections.abc import Callable

import pytest

from agent.serving.gate import Gate, OverloadedError, RequestTimeoutError
from tests.agent.rig import wait_for


def later(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


def waiting(gate: Gate, model: str = "m") -> int:
    lane = gate._lanes.get(model)
    return len(lane.waiting) if lane else 0


def queue_up(gate: Gate, count: int, done: Callable[[int], None]) -> list[threading.Thread]:
    """Let `count` callers wait, the first of them first."""

    def call(n: int) -> None:
        with gate.turn("m", later()):
            done(n)

    threads = []
    for n in range(count):
        thread = threading.Thread(target=call, args=(n,))
        thread.start()
        threads.append(thread)
        wait_for(f"caller {n} waits", lambda n=n: waiting(gate) == n + 1)  # type: ignore[misc]
    return threads


def test_turns_come_in_order_and_one_at_a_time() -> None:
    """Nobody overtakes: the longest wait is that of the queue before one."""
    gate = Gate(max_waiting=8)
    order: list[int] = []
    with gate.turn("m", later()):
        threads = queue_up(gate, 8, order.append)
        assert [] == order
    for thread in threads:
        thread.join()
    assert list(range(8)) == order
    assert {} == gate._lanes


def test_models_do_not_wait_for_each_other() -> None:
    """Each model has a queue of its own."""
    gate = Gate(max_waiting=0)
    with gate.turn("a", later()), gate.turn("b", later()):
        assert {"a", "b"} == set(gate._lanes)


def test_who_finds_the_queue_full_hears_it_at_once() -> None:
    """Refusing is quick, and costs those who wait nothing."""
    gate = Gate(max_waiting=2)
    order: list[int] = []
    with gate.turn("m", later()):
        threads = queue_up(gate, 2, order.append)
        begin = time.monotonic()
        with pytest.raises(OverloadedError, match="m: 2 callers wait"), gate.turn("m", later()):
            raise AssertionError("expected no turn")
        assert time.monotonic() - begin < 5
    for thread in threads:
        thread.join()
    assert [0, 1] == order


def test_who_waited_long_enough_leaves_and_the_rest_moves_up() -> None:
    """A turn that comes too late is not taken, and not lost either."""
    gate = Gate()
    order: list[int] = []
    with gate.turn("m", later()):
        with pytest.raises(RequestTimeoutError), gate.turn("m", later(0.05)):
            raise AssertionError("expected no turn")
        assert 0 == waiting(gate)
        threads = queue_up(gate, 1, order.append)
    for thread in threads:
        thread.join()
    assert [0] == order


def test_a_request_whose_time_is_over_does_not_begin_to_wait_for_long() -> None:
    """No time left is none."""
    gate = Gate()
    with gate.turn("m", later()), pytest.raises(RequestTimeoutError), gate.turn("m", later(-5)):
        raise AssertionError("expected no turn")


def test_a_call_that_fails_gives_its_turn_on() -> None:
    """Errors do not hold up those who wait."""
    gate = Gate()
    for _ in range(2):
        with contextlib.suppress(ValueError), gate.turn("m", later()):
            raise ValueError
    assert {} == gate._lanes


def test_room_is_bounded_but_one_large_request_always_fits() -> None:
    """The sum of all bodies is what counts; a request that is allowed is possible."""
    gate = Gate(max_bodies_bytes=100)
    with gate.room(500), pytest.raises(OverloadedError), gate.room(1):
        raise AssertionError("expected no room")
    with gate.room(60), gate.room(40), pytest.raises(OverloadedError), gate.room(1):
        raise AssertionError("expected no room")
    with gate.room(100):
        pass


def test_turns_under_load_are_never_shared_and_never_lost() -> None:
    """Threads that come, give up and come again leave an empty gate, and are never two at once."""
    gate = Gate(max_waiting=4)
    inside = threading.Lock()
    outcomes: list[str] = []

    def call(n: int) -> None:
        for i in range(200):
            try:
                with gate.turn("m", later((n + i) % 5 / 2000)):
                    assert inside.acquire(blocking=False)
                    time.sleep(0)
                    inside.release()
                    outcomes.append("done")
            except (OverloadedError, RequestTimeoutError) as error:
                outcomes.append(error.code)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1600 == len(outcomes)
    assert "done" in outcomes
    assert {} == gate._lanes
