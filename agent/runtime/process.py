"""The isolation level `process`: an instance of a module in a process of its own.

What the engine cannot interrupt or bound, the kernel does: the process is killed when it does not answer in time, it
has resource limits, and if it brings the engine down, it brings down itself alone.
"""

import contextlib
import mmap
import os
import signal
import socket
from collections.abc import Sequence
from typing import Final

from agent.runtime.errors import DeadlineError, ProcessDiedError, ProcessGoneError, ProcessStartError
from agent.runtime.sandbox import Terms, misfit
from agent.runtime.wire import (
    CHECK,
    INFER,
    MAX_MESSAGE_BYTES,
    RESET,
    Done,
    Failed,
    Ready,
    decode_reply,
    encode,
    layout,
    restore,
)
from agent.runtime.zygote import Zygote

GRACE_S: Final = 1.0
"""How much longer than its deadline a model's process has to say that it was stopped, before it is killed."""
START_GRACE_S: Final = 20.0


class ProcessSandbox:
    """A sound instance, elsewhere. Not safe to use from two threads at once."""

    def __init__(self, zygote: Zygote, code_fd: int, terms: Terms) -> None:
        self._terms = terms
        self.memory_bytes = 0
        self._inputs: list[memoryview] = []
        self._outputs: list[memoryview] = []
        self._channel: socket.socket | None = None
        self._pidfd: int | None = None
        try:
            self._start(zygote, code_fd)
            ready = self._receive(START_GRACE_S + 3 * terms.caps.deadline_ms / 1000)
            if not isinstance(ready, Ready):
                raise ProcessDiedError("the model's process spoke nonsense: expected that it is ready")
        except OSError as error:
            self.close()
            raise ProcessStartError(f"cannot start a process for the model: {error}") from error
        except BaseException:
            self.close()
            raise
        self.can_reset = ready.can_reset

    def infer(self, inputs: Sequence[bytes]) -> list[bytes]:
        """Run the model on one raw tensor for each input; raises ModelError."""
        if len(inputs) != len(self._inputs):
            raise misfit(self._terms.inputs, inputs)
        try:
            for view, data in zip(self._inputs, inputs, strict=True):
                view[:] = data
        except ValueError:
            raise misfit(self._terms.inputs, inputs) from None
        self._command(INFER)
        return [view.tobytes() for view in self._outputs]

    def reset(self) -> None:
        """Let the model forget all state; raises ModelError."""
        self._command(RESET)

    def check_addresses(self) -> None:
        """Raise AbiError if the module no longer names the addresses that it named first."""
        self._command(CHECK)

    def close(self) -> None:
        """Kill the process and give everything back. Closing twice does nothing."""
        if self._channel is not None:
            self._channel.close()
        self._inputs, self._outputs = [], []
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
            self._pidfd = None

    def _start(self, zygote: Zygote, code_fd: int) -> None:
        try:
            self._fork(zygote, code_fd)
        except ProcessStartError:
            # The zygote died, and there is another one now. What it may have forked before must not hear us.
            self.close()
            self._fork(zygote, code_fd)

    def _fork(self, zygote: Zygote, code_fd: int) -> None:
        inputs, outputs = layout(self._terms)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, os.fdopen(os.memfd_create("tensors"), "r+b", buffering=0) as shared:
            shared.truncate(outputs[-1].stop)
            memory = memoryview(mmap.mmap(shared.fileno(), 0))
            self._inputs, self._outputs = [memory[part] for part in inputs], [memory[part] for part in outputs]
            self._pidfd = zygote.fork(encode(self._terms), (theirs.fileno(), shared.fileno(), code_fd))

    def _command(self, command: bytes) -> None:
        assert self._channel is not None
        try:
            self._channel.send(command)
        except OSError:
            raise ProcessGoneError(
                "the model's process ended while it had nothing to do: memory may be short"
            ) from None
        if not isinstance(self._receive(GRACE_S + self._terms.caps.deadline_ms / 1000), Done):
            raise ProcessDiedError("the model's process spoke nonsense: expected that it is done")

    def _receive(self, patience_s: float) -> Done | Ready:
        assert self._channel is not None
        self._channel.settimeout(patience_s)
        try:
            raw = self._channel.recv(MAX_MESSAGE_BYTES)
        except TimeoutError:
            deadline_ms = self._terms.caps.deadline_ms
            raise DeadlineError(
                f"killed: expected an answer within {deadline_ms:,} ms, and the model could not be interrupted"
            ) from None
        except OSError:
            raise _died() from None
        if not raw:
            raise _died()
        reply = decode_reply(raw)
        self.memory_bytes = reply.memory_bytes
        if isinstance(reply, Failed):
            raise restore(reply)
        return reply


def _died() -> ProcessDiedError:
    return ProcessDiedError(
        "the model's process ended without an answer: it broke the engine or a limit, or the machine is out of memory"
    )
