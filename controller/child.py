"""A child process that ends with the one that started it, whatever ended that.

Owns the few instructions between the fork and the program: this module runs as the child, ties it, and becomes the
program. Linux ends the child when the *thread* that started it ends: start it from one that lives as long.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tied(argv: Sequence[str]) -> list[str]:
    """Return the command that runs `argv`, and asks it by SIGTERM to end when this process does."""
    return [sys.executable, "-P", "-m", "controller.child", str(os.getpid()), *argv]


def end_with(parent: int) -> None:
    """Have Linux end this process when `parent` does; it stays so across execve. Source: prctl(2)."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone")


def main(arguments: Sequence[str]) -> None:
    """Become a program that is tied to its parent: `PARENT PROGRAM ARGUMENTS…`."""
    parent, *argv = arguments
    end_with(int(parent))
    os.execv(argv[0], argv)  # noqa: S606 - its own process started this one with a command of its own


if __name__ == "__main__":
    main(sys.argv[1:])
