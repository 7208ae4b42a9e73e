"""Callers who are turned away, until they have heard it.

A caller may be in the middle of its request by then. If its connection were closed at once, what it still sends would
reset it, and it could neither send the rest nor read why. So what comes is thrown away until the caller hangs up: by
the thread that accepts, which waits for nobody, and within bounds of number, bytes and time.
Source: RFC 9112 (HTTP/1.1), section 9.6, tear-down.
"""

import contextlib
import select
import socket
import time
from typing import Final

LINGER_S: Final = 5.0
MAX_BYTES: Final = 16 * 1024 * 1024
MAX_CALLERS: Final = 128
"""When there are more, the one that came first is hung up on."""
_PIECE_BYTES: Final = 64 * 1024


class _Caller:
    """One who was told to go."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.until_s = time.monotonic() + LINGER_S
        self.left_bytes = MAX_BYTES


class Lingering:
    """Those who were turned away at one place where callers come in. For one thread."""

    def __init__(self) -> None:
        self._callers: dict[int, _Caller] = {}
        """By file descriptor, in the order in which they came."""
        self._piece = bytearray(_PIECE_BYTES)

    def turn_away(self, connection: socket.socket, answer: bytes) -> None:
        """Say `answer`, which is short, and hang up when the caller does. It is ours from here on."""
        if len(self._callers) >= MAX_CALLERS:
            self._hang_up(next(iter(self._callers.values())))
        caller = _Caller(connection)
        self._callers[connection.fileno()] = caller
        connection.setblocking(False)
        try:
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # it went away by itself
            self._hang_up(caller)

    def wait_for(self, accepting: socket.socket) -> None:
        """Return when somebody is at `accepting`, or at once when nobody lingers."""
        while self._callers:
            poll = select.poll()
            for number in (accepting.fileno(), *self._callers):
                poll.register(number, select.POLLIN)
            patience_s = next(iter(self._callers.values())).until_s - time.monotonic()
            ready = {number for number, _ in poll.poll(max(patience_s, 0) * 1000)}
            for number, caller in list(self._callers.items()):
                is_over = number in ready and self._throw_away(caller)
                if is_over or time.monotonic() >= caller.until_s:
                    self._hang_up(caller)
            if accepting.fileno() in ready:
                return

    def close(self) -> None:
        """Hang up on everybody."""
        for caller in list(self._callers.values()):
            self._hang_up(caller)

    def _throw_away(self, caller: _Caller) -> bool:
        """Read some of what came; return whether that was the end of it."""
        try:
            count = caller.connection.recv_into(self._piece)
        except BlockingIOError:
            return False
        except OSError:
            return True
        caller.left_bytes -= count
        return count == 0 or caller.left_bytes <= 0

    def _hang_up(self, caller: _Caller) -> None:
        del self._callers[caller.connection.fileno()]
        with contextlib.suppress(OSError):
            caller.connection.close()
