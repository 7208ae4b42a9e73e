"""How signals end the demo: no process is left because it had only just started when the signal came."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.demo import processes
from controller.demo.ending import ended_in_order, undisturbed
from controller.demo.fleet import DemoDevice
from controller.demo.processes import DemoError, run

_SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def interrupted_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list["subprocess.Popen[Any]"]]:
    """Have Ctrl-C come as soon as a process has started; the processes, which are ended after the test."""
    started: list[subprocess.Popen[Any]] = []

    class Interrupted(subprocess.Popen[Any]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(processes.subprocess, "Popen", Interrupted)
    yield started
    for child in started:
        child.kill()
        child.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signal_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    """It is not lost, and the handlers are the ones of before."""
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    done = []

    def block() -> None:
        signal.raise_signal(number)
        signal.raise_signal(number)
        done.append("the whole block")

    with ended_in_order():
        with pytest.raises(KeyboardInterrupt), undisturbed():
            block()
        signal.raise_signal(number)  # a second one changes nothing
    assert ["the whole block"] == done
    assert before == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_block_that_fails_gives_its_error_and_the_handlers_back() -> None:
    """Nothing came: nothing is raised but the error."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(DemoError, match="nothing to start"), undisturbed():
        raise DemoError("nothing to start")
    assert before == signal.getsignal(signal.SIGINT)


def test_command_interrupted_at_its_start_is_not_left(interrupted_starts: "list[subprocess.Popen[Any]]") -> None:
    """The demo's own commands: they are killed."""
    with ended_in_order(), pytest.raises(KeyboardInterrupt):
        run(_SLEEPER, timeout_s=60)
    (child,) = interrupted_starts
    assert -signal.SIGKILL == child.returncode


def test_device_interrupted_at_its_start_is_known(
    tmp_path: Path, interrupted_starts: "list[subprocess.Popen[Any]]"
) -> None:
    """Stopping it ends the agent that had only just started."""
    device = DemoDevice("edge-1", tmp_path)
    with ended_in_order(), pytest.raises(KeyboardInterrupt):
        device.start()
    (child,) = interrupted_starts
    device.stop()
    assert child.returncode is not None


def test_command_that_takes_too_long_is_killed_and_named() -> None:
    """With the time that it had."""
    with pytest.raises(DemoError, match="did not end within 1 s"):
        run(_SLEEPER, timeout_s=1)
