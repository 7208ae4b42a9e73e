"""Which processors work runs on: an update leaves one to the callers' requests, where a device has several.

Schedulers put the thread that answers behind one that installs, although another processor is idle: the wait, up to
some milliseconds, is most of what callers notice of an update. Threads and processes inherit the choice.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Final

_ALL: Final = frozenset(os.sched_getaffinity(0))
"""What the owner of the device lets this process use."""


def leave_one() -> None:
    """Keep the calling thread, and what it starts from now on, off one processor; of one alone, nothing changes.

    It is the last one: the first often has more to do with devices, and on many boards is a slow one.
    """
    if len(_ALL) > 1:
        _use(_ALL - {max(_ALL)})


def use_all() -> None:
    """Let the calling thread, and what it starts from now on, use every processor again."""
    _use(_ALL)


@contextlib.contextmanager
def all_inherited() -> Iterator[None]:
    """Let what the calling thread starts meanwhile use every processor."""
    before = frozenset(os.sched_getaffinity(0))
    use_all()
    try:
        yield
    finally:
        _use(before)


def _use(processors: frozenset[int]) -> None:
    with contextlib.suppress(OSError):  # a service manager may forbid it, or the processors are gone
        os.sched_setaffinity(0, processors)
