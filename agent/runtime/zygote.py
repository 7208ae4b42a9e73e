"""Processes for models, forked from a small one that was started for it.

The agent has threads and must not fork; the zygote has none. It is started again if it dies.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Final

from agent.runtime.errors import ProcessStartError
from agent.runtime.processors import all_inherited

PATIENCE_S: Final = 20.0
"""How long a fork may take on a machine that has better things to do."""
_PROGRAM: Final = "agent.runtime.zygote_process"


class Zygote:
    """Forks processes. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> "Zygote":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the zygote now, so that the first model does not wait for it."""
        with self._lock:
            self._started()

    def fork(self, message: bytes, descriptors: Sequence[int]) -> int:
        """Fork a process that is given `message` and `descriptors`; return its pidfd.

        Raises ProcessStartError when the zygote died: the next call starts another one. Whether it forked before nobody
        knows, so the same channel and memory must not be used again.
        """
        with self._lock:
            try:
                return self._fork(message, descriptors)
            except OSError as error:
                self._stop()
                raise ProcessStartError(f"cannot start a process for the model: {error}") from error

    def close(self) -> None:
        """End the zygote and every process that it forked. Closing twice does nothing."""
        with self._lock:
            self._stop()

    def _fork(self, message: bytes, descriptors: Sequence[int]) -> int:
        control = self._started()
        socket.send_fds(control, [message], list(descriptors))
        _, handles, _, _ = socket.recv_fds(control, 1, 1)
        if not handles:
            raise ConnectionResetError("the zygote ended")
        return handles[0]

    def _started(self) -> socket.socket:
        if self._control is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.settimeout(PATIENCE_S)
            try:
                self._process = _start(theirs)
            except OSError:
                ours.close()
                raise
            finally:
                theirs.close()
            self._control = ours
        return self._control

    def _stop(self) -> None:
        if self._control is not None and self._process is not None:
            self._control.close()  # the sign for it to end
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE_S)
            self._process.kill()
            self._process.wait()
        self._control = self._process = None


def _start(control: socket.socket) -> "subprocess.Popen[bytes]":
    with all_inherited():
        return subprocess.Popen(  # noqa: S603 - our own module, with a number of our own
            (sys.executable, "-P", "-m", _PROGRAM, str(control.fileno())),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(control.fileno(),),
            start_new_session=True,
            env={**os.environ, "RUST_BACKTRACE": "0"},
        )
