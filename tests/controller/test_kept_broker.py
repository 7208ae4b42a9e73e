"""The broker that `fleetctl up` keeps alive: how often it is started again, and what is said when that is no help."""

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.broker import BrokerProcess, start_broker
from controller.errors import BrokerError
from controller.kept_broker import KeptBroker, Patience

TIMEOUT_S = 20


def test_pauses_grow_and_end() -> None:
    """Deaths in a row wait longer each time, and the last is final; a long life makes them forgotten."""
    patience = Patience((0.1, 1.0, 2.0), long_life_s=60)
    assert [0.1, 1.0, 2.0, None] == [patience.after(5) for _ in range(4)]
    patience = Patience((0.1, 1.0, 2.0), long_life_s=60)
    assert [0.1, 1.0, 0.1, 1.0] == [patience.after(lived_s) for lived_s in (5, 5, 61, 5)]


@given(st.lists(st.floats(0, 200)))
def test_no_series_of_early_deaths_goes_on_for_ever(lives_s: list[float]) -> None:
    """However long brokers live, at most as many starts follow on each other as there are pauses."""
    patience = Patience((0.1, 1.0), long_life_s=60)
    answers = [(lived_s < 60, patience.after(lived_s)) for lived_s in lives_s]
    for is_early, run in itertools.groupby(answers, key=lambda answer: answer[0]):
        if is_early:
            assert all(pause is None for _, pause in list(run)[2:])


class Watched:
    """A kept broker, the brokers that it had, and everything that it said."""

    def __init__(self, folder: Path, pauses_s: tuple[float, ...], fail: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._fail = fail
        self.said: list[str] = []
        self.gave_up = threading.Event()
        self.brokers = [start_broker("embedded", port=0, directory=folder)]
        self.kept = KeptBroker(
            self.brokers[0],
            self._start_again,
            say=self.said.append,
            give_up=self.gave_up.set,
            patience=Patience(pauses_s),
        )

    def _start_again(self) -> BrokerProcess:
        self._fail()
        broker = start_broker("embedded", port=self.brokers[0].port, directory=self._folder)
        self.brokers.append(broker)
        return broker

    def wait_for_start(self, number: int) -> None:
        """Wait until the broker of that number is up and said to be so."""
        deadline = time.monotonic() + TIMEOUT_S
        while sum("is back" in line for line in self.said) < number:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)


def test_a_dead_broker_is_started_again(tmp_path: Path) -> None:
    """At the same address, and people are told of both; the log of the dead one is kept."""
    watched = Watched(tmp_path, (0.0, 0.0))
    with watched.kept as kept:
        watched.brokers[0].kill()
        watched.wait_for_start(1)
        assert (True, kept.url) == (watched.brokers[1].is_alive(), watched.brokers[1].url)
    assert [
        "the embedded broker was killed by SIGKILL; starting it again",
        f"the embedded broker is back at {kept.url}",
    ] == watched.said
    assert not watched.brokers[1].is_alive()
    assert (tmp_path / "broker.log.1").exists()


def test_a_broker_that_dies_time_after_time_is_given_up(tmp_path: Path) -> None:
    """The block ends with the error, which says how often and why."""
    watched = Watched(tmp_path, (0.0, 0.0))
    watched.kept.__enter__()
    for number in (1, 2):
        watched.brokers[-1].kill()
        watched.wait_for_start(number)
    watched.brokers[-1].kill()
    assert watched.gave_up.wait(TIMEOUT_S)
    with pytest.raises(BrokerError, match=r"died 3 times in a row.*SIGKILL") as caught:
        watched.kept.__exit__(None, None, None)
    assert "`fleetctl serve`" in caught.value.hint


def test_a_start_that_fails_counts(tmp_path: Path) -> None:
    """Where the broker cannot come back, as when its port was taken, the reason of the last try is the message."""

    def fail() -> None:
        raise BrokerError("port 1883 is taken", hint="stop what uses it")

    watched = Watched(tmp_path, (0.0, 0.0), fail)
    watched.kept.__enter__()
    watched.brokers[0].kill()
    assert watched.gave_up.wait(TIMEOUT_S)
    with pytest.raises(BrokerError, match="port 1883 is taken") as caught:
        watched.kept.__exit__(None, None, None)
    assert "stop what uses it" == caught.value.hint


def test_ending_does_not_wait_out_a_pause(tmp_path: Path) -> None:
    """Ctrl-C between two starts is not kept waiting."""
    watched = Watched(tmp_path, (60.0,))
    started = time.monotonic()
    with watched.kept:
        watched.brokers[0].kill()
        while not watched.said:
            time.sleep(0.01)
    assert time.monotonic() - started < TIMEOUT_S
    assert ["the embedded broker was killed by SIGKILL; starting it again in 60 s"] == watched.said
