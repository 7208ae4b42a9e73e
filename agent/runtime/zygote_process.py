"""The process that forks one process for each model: `python -m agent.runtime.zygote_process SOCKET`.

It has one thread, so that forking is safe, and has imported everything, so that a fork is ready in milliseconds. Each
datagram on its socket carries the terms of a model and three descriptors: a socket to the agent, memory shared with
it, and the authenticated machine code. The answer is a pidfd of the new process. It ends, with all its children, when
the agent does.
"""

import contextlib
import gc
import os
import signal
import socket
import sys
from types import FrameType
from typing import Final, NoReturn

from agent.runtime.model_process import run
from agent.runtime.wire import MAX_MESSAGE_BYTES

_DESCRIPTORS: Final = 3
_children: Final[set[int]] = set()


def main(control: socket.socket) -> None:
    """Fork on demand until the agent closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the agent, which ends us
    signal.signal(signal.SIGCHLD, _reap)
    gc.freeze()
    # The agent may die between a message and the answer to it.
    with contextlib.suppress(ConnectionError):
        _fork_on_demand(control)
    for pid in list(_children):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _fork_on_demand(control: socket.socket) -> None:
    while True:
        raw, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, _DESCRIPTORS)
        if not raw:
            return
        # No child may be reaped before it is known.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
        pid = os.fork()
        if pid == 0:
            _become_model(raw, descriptors)
        _children.add(pid)
        handle = os.pidfd_open(pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD,))
        socket.send_fds(control, [b"\0"], [handle])
        for descriptor in (*descriptors, handle):
            os.close(descriptor)


def _become_model(raw: bytes, descriptors: list[int]) -> NoReturn:
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD,))
        kept = sorted((0, 1, 2, *descriptors))
        for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        run(raw, *descriptors)
        status = 0
    finally:
        os._exit(status)


def _reap(_signal: int, _frame: FrameType | None) -> None:
    with contextlib.suppress(ChildProcessError):
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            _children.discard(pid)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
