"""The stacks on which models run: as large as the largest stack class needs, whatever limit the agent was started with.

A thread with a smaller stack than its model may use would bring the whole process down instead of a StackOverflowError.
"""

import contextlib
import resource
import threading
from typing import Final

from protocol.limits import STACK_CLASSES_KIB

STACK_BYTES: Final = 2 * max(STACK_CLASSES_KIB) * 1024
"""Twice the largest class: what called the model, and the host's own frames, lie on the same stack."""


def provide_stacks() -> None:
    """Let this thread, threads that start from now on, and child processes have stacks large enough for any model."""
    threading.stack_size(STACK_BYTES)
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != resource.RLIM_INFINITY and soft < STACK_BYTES:
        with contextlib.suppress(ValueError, OSError):  # the hard limit is lower: threads have theirs all the same
            resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, hard))
