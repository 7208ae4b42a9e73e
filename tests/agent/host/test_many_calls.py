"""The host under many calls and any order of orders: no call is lost or mixed up."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host import ModelHost, NoPreviousReleaseError, UnknownModelError
from agent.runtime.errors import (
    TrapError,
)
from agent.usage import UsageMeter
from tests.agent.host.conftest import SCALE, TRAP, Faults, ask, release


def test_running_call_ends_on_the_release_it_began_on(host: ModelHost) -> None:
    """A swap waits for no call, and no call is cut off by swaps, however many."""
    slow = """(local $i i32)
      (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 20000000))))"""
    host.activate(*release("1.0.0", slow + SCALE.format(1)), is_committed=True)
    ask(host)
    answers = []
    started = threading.Event()

    def call() -> None:
        started.set()
        answers.append(ask(host, 5))

    thread = threading.Thread(target=call)
    thread.start()
    started.wait()
    for n in range(1, 4):
        host.activate(*release(f"1.{n}.0", SCALE.format(n)), is_committed=True)
    thread.join()
    assert answers[0] in {("1.0.0", 5), ("1.1.0", 5), ("1.2.0", 10), ("1.3.0", 15)}
    assert ("1.3.0", 3) == ask(host)


class Callers:
    """Threads that ask all the time and note every answer that cannot be right."""

    def __init__(self, host: ModelHost, threads: int) -> None:
        self.wrong: list[object] = []
        self.answers = 0
        self._host = host
        self._stop = threading.Event()
        self._count = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(n + 1,)) for n in range(threads)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, value: int) -> None:
        answers = 0
        while not self._stop.is_set():
            try:
                version, got = ask(self._host, value)
            except Exception as error:  # noqa: BLE001 - whatever was raised, the call was lost
                self.wrong.append(error)
                continue
            answers += 1
            if got != value * int(version.split(".")[1]):
                self.wrong.append((version, value, got))
        with self._count:
            self.answers += answers


def test_no_call_is_lost_or_mixed_up_in_many_swaps(host: ModelHost, meter: UsageMeter) -> None:
    """While releases come, fail, are committed and rolled back, every call gets the answer of one release."""
    host.activate(*release("1.1.0", SCALE.format(1)), is_committed=True)
    with Callers(host, 4) as callers:
        for n in range(2, 150):
            is_bad = n % 5 == 0
            host.activate(*release(f"1.{n}.0", TRAP if is_bad else SCALE.format(n)), is_committed=False)
            if is_bad or n % 7 == 0:
                host.rollback("digits")
            else:
                host.commit("digits", f"1.{n}.0")
    assert [] == callers.wrong
    reports = iter(meter.take, ())
    assert callers.answers == sum(usage.inferences for report in reports for usage in report)


@pytest.mark.property
@given(st.lists(st.sampled_from(["good", "bad", "slow to commit", "commit", "rollback", "remove", "ask"]), max_size=30))
def test_any_order_of_orders_keeps_the_host_sound(orders: list[str]) -> None:
    """Against a model of what should answer: whatever is ordered, calls get the newest sound release."""
    faults = Faults()
    host = ModelHost(UsageMeter(), faults)
    trusted: list[int] = []  # what may stand behind the active release, newest last
    active: tuple[int, bool, bool] | None = None  # number, is committed, is good
    for number_, order in enumerate(orders, start=1):
        if order in ("good", "bad", "slow to commit"):
            if active is not None and active[1]:
                trusted = [active[0]]
            is_good = order != "bad"
            host.activate(
                *release(f"1.{number_}.0", SCALE.format(number_) if is_good else TRAP),
                is_committed=order == "good",
            )
            active = (number_, order == "good", is_good)
        elif order == "remove":
            host.remove("digits")
            active, trusted = None, []
        elif order == "commit" and active is not None and active[2]:
            host.commit("digits", f"1.{active[0]}.0")
            active = (active[0], True, True)
        elif order == "rollback" and active is not None:
            if not trusted:
                with pytest.raises(NoPreviousReleaseError):
                    host.rollback("digits")
                continue
            host.rollback("digits")
            active, trusted = (trusted[0], True, True), [active[0]] if active[1] else []
        elif order == "ask":
            if active is None:
                with pytest.raises(UnknownModelError):
                    ask(host)
            elif active[2]:
                assert (f"1.{active[0]}.0", active[0]) == ask(host)
            elif trusted:
                assert (f"1.{trusted[0]}.0", trusted[0]) == ask(host)
            else:
                with pytest.raises(TrapError):
                    ask(host)
    host.close()
    assert {} == host.manifests()
