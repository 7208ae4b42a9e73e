"""An update leaves a processor to the callers' requests."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from agent.runtime import processors

PROGRAM = "import os; print(sorted(os.sched_getaffinity(0)))"


def in_thread(job: Callable[[], object]) -> object:
    """Return what `job` returns in a thread that ends with it, as its choice does."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(job()))
    thread.start()
    thread.join()
    return found[0]


def started() -> str:
    """Return the processors that a program sees which this thread starts."""
    return subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def everything() -> frozenset[int]:
    """All processors that the tests may use."""
    return frozenset(os.sched_getaffinity(0))


def test_update_and_what_it_starts_keep_off_the_last_processor(everything: frozenset[int]) -> None:
    """Where there are several; the thread of a request may use all of them again."""
    fewer = everything - {max(everything)} if len(everything) > 1 else everything

    def job() -> tuple[set[int], str, set[int]]:
        processors.leave_one()
        before, child = os.sched_getaffinity(0), started()
        processors.use_all()
        return before, child, os.sched_getaffinity(0)

    assert (fewer, str(sorted(fewer)), everything) == in_thread(job)


def test_models_process_inherits_all(everything: frozenset[int]) -> None:
    """What answers requests in a process of its own is started by the thread that installs."""

    def job() -> tuple[str, bool]:
        processors.leave_one()
        before = os.sched_getaffinity(0)
        with processors.all_inherited():
            child = started()
        return child, before == os.sched_getaffinity(0)

    assert (str(sorted(everything)), True) == in_thread(job)


def test_single_processor_is_used_for_everything(monkeypatch: pytest.MonkeyPatch, everything: frozenset[int]) -> None:
    """There is nothing to leave."""
    monkeypatch.setattr(processors, "_ALL", frozenset({min(everything)}))

    def job() -> set[int]:
        processors.leave_one()
        return os.sched_getaffinity(0)

    assert everything == in_thread(job)


def test_what_the_system_refuses_changes_nothing(monkeypatch: pytest.MonkeyPatch, everything: frozenset[int]) -> None:
    """A service manager may forbid the choice; the agent runs all the same."""

    def refuse(_: int, __: object) -> None:
        raise PermissionError

    def job() -> set[int]:
        monkeypatch.setattr(os, "sched_setaffinity", refuse)
        processors.leave_one()
        return os.sched_getaffinity(0)

    assert everything == in_thread(job)
