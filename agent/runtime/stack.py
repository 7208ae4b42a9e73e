"""The stacks on which models run: as large as the largest stack class needs, whatever limit the program started with.

A thread with a smaller stack than its model may use would bring the whole process down instead of a StackOverflowError.
"""

import contextlib
import resource
import threading
from typing import Final

from agent.runtime.errors import StackLimitError
from protocol.limits import STACK_CLASSES_KIB

STACK_BYTES: Final = 2 * max(STACK_CLASSES_KIB) * 1024
"""Twice the largest class: what called the model, and the host's own frames, lie on the same stack."""
_HOST_BYTES: Final = 256 * 1024
"""What the host's frames may take of the main thread's stack, with the program's arguments and environment."""


def provide_stacks() -> None:
    """Let this thread, threads that start from now on, and child processes have stacks large enough for any model.

    The first engine of a process does so; a program that starts threads before that calls it earlier.
    """
    threading.stack_size(STACK_BYTES)
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != resource.RLIM_INFINITY and soft < STACK_BYTES:
        best = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
        with contextlib.suppress(ValueError, OSError):  # as in a sandbox that forbids it: see check_stack
            resource.setrlimit(resource.RLIMIT_STACK, (best, hard))


def check_stack(stack_kib: int) -> None:
    """Raise StackLimitError where the main thread, with the system's hard limit, has no room for a stack class."""
    limit, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if limit != resource.RLIM_INFINITY and limit < stack_kib * 1024 + _HOST_BYTES:
        raise StackLimitError(
            f"expected a stack limit of at least {stack_kib + _HOST_BYTES // 1024:,} KiB for a model that may use "
            f"{stack_kib:,} KiB of stack, the system allows {limit // 1024:,} KiB: raise it (ulimit -s)"
        )
