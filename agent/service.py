"""The local API on a Unix socket: HTTP/1.1 with kept connections, a thread for each, bounded in number and size.

The socket is open to its owner alone (mode 0600). It appears whole or not at all, in place of one that a dead
process left behind.
"""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from agent.connection import BUSY, serve_connection
from agent.errors import AgentError
from agent.host import ModelHost
from agent.routes import Routes

MAX_CONNECTIONS: Final = 64
GRACE_S: Final = 5.0
"""How long running requests may take to end when the service closes."""
SHORTAGE_PAUSE_S: Final = 0.2
"""How long to wait for file descriptors or threads to become free again."""
MAX_SOCKET_PATH_BYTES: Final = 107
"""The length of `sun_path` on Linux without its closing zero: unix(7)."""

_log = logging.getLogger(__name__)


class SocketPathError(AgentError):
    """The socket cannot be made at that path."""

    code = "bad_socket_path"


class LocalService:
    """Serves the resident models and the daemon's status on a Unix socket, from `start` to `close`."""

    def __init__(
        self,
        path: Path,
        host: ModelHost,
        status: Callable[[], msgspec.Struct],
        *,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._path = path
        self._max_connections = max_connections
        self._routes = Routes(host, status, version("wasmfleet"))
        self._listener: socket.socket | None = None
        self._acceptor = threading.Thread(target=self._accept, name="local-service", daemon=True)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}

    def start(self) -> None:
        """Begin to serve; raises SocketPathError or OSError when the socket cannot be made."""
        self._listener = _listen(self._path)
        self._acceptor.start()

    def close(self) -> None:
        """Refuse new requests, let running ones end, remove the socket. Closing twice does nothing."""
        if self._listener is None:
            return
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._acceptor.join()
        self._listener.close()
        self._listener = None
        with self._lock:
            connections = dict(self._connections)
        for how, patience_s in ((socket.SHUT_RD, GRACE_S), (socket.SHUT_RDWR, GRACE_S)):
            for connection, thread in connections.items():
                if thread.is_alive():
                    with contextlib.suppress(OSError):  # it ended by itself
                        connection.shutdown(how)
            for thread in connections.values():
                thread.join(patience_s)

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if not self._closing.is_set():  # too few file descriptors, perhaps: that passes
                    _log.warning("cannot accept a local connection: %s; trying on", error)
                    self._closing.wait(SHORTAGE_PAUSE_S)
                continue
            if not self._begin(connection):
                with connection, contextlib.suppress(OSError):
                    connection.sendall(BUSY)

    def _begin(self, connection: socket.socket) -> bool:
        """Give `connection` a thread of its own; False when there is none to have."""
        thread = threading.Thread(target=self._serve, args=(connection,), name="local-request", daemon=True)
        with self._lock:
            if len(self._connections) >= self._max_connections:
                return False
            self._connections[connection] = thread
        try:
            thread.start()
        except RuntimeError as error:
            _log.warning("cannot serve a local connection: %s; trying on", error)
            with self._lock:
                del self._connections[connection]
            return False
        return True

    def _serve(self, connection: socket.socket) -> None:
        try:
            serve_connection(connection, self._routes)
        finally:
            with self._lock:
                del self._connections[connection]
            connection.close()


def _listen(path: Path) -> socket.socket:
    """Return a listening socket at `path`, in place of whatever socket was there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    if len(os.fsencode(draft)) > MAX_SOCKET_PATH_BYTES:
        raise SocketPathError(
            f"expected a shorter path for the socket: {draft} has {len(os.fsencode(draft))} bytes, "
            f"the system allows {MAX_SOCKET_PATH_BYTES}; choose another state folder"
        )
    if path.exists() and not path.is_socket():
        raise SocketPathError(f"expected a socket or nothing at {path}, found another kind of file: move it away")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The mode of the file comes from the socket: it is never open to others, not even for a moment.
        os.fchmod(listener.fileno(), 0o600)
        draft.unlink(missing_ok=True)
        listener.bind(os.fspath(draft))
        listener.listen(MAX_CONNECTIONS)
        draft.rename(path)
    except BaseException:
        listener.close()
        raise
    return listener
