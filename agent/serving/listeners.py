"""Where callers come in: a Unix socket in the state folder, and, where the device's owner wants it, a loopback port.

The socket is open to its owner alone (mode 0600). It appears whole or not at all, in place of one that a dead
process left behind. A port is open to every program on the device, and never to the network.
"""

import contextlib
import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import Final, Protocol

from agent.errors import AgentError

BACKLOG: Final = 1024
"""How many callers may wait to be accepted: the kernel refuses the others, without a word of why."""
MAX_SOCKET_PATH_BYTES: Final = 107
"""The length of `sun_path` on Linux without its closing zero: unix(7)."""
_ADDRESS: Final = re.compile(r"(?P<host>localhost|[0-9.]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")


class ListenerError(AgentError):
    """The local API cannot be offered at an address that the policy names."""

    code = "bad_listener"


class Listener(Protocol):
    """A place to come in."""

    address: str
    """How it is called in messages and the status; final after `open`."""

    def open(self) -> socket.socket:
        """Return a socket that accepts; raises ListenerError or OSError."""

    def removed(self) -> None:
        """Take away what would mislead callers, before the socket is closed."""


class UnixListener:
    """A socket in the file system."""

    def __init__(self, path: Path) -> None:
        self.address = str(path.absolute())
        self._path = path

    def open(self) -> socket.socket:
        """Return a listening socket at the path, in place of whatever socket was there."""
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        if len(os.fsencode(draft)) > MAX_SOCKET_PATH_BYTES:
            raise ListenerError(
                f"expected a shorter path for the socket: {draft} has {len(os.fsencode(draft))} bytes, "
                f"the system allows {MAX_SOCKET_PATH_BYTES}; choose another state folder"
            )
        if self._path.exists() and not self._path.is_socket():
            raise ListenerError(
                f"expected a socket or nothing at {self._path}, found another kind of file: move it away"
            )
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The mode of the file comes from the socket: it is never open to others, not even for a moment.
            os.fchmod(listener.fileno(), 0o600)
            draft.unlink(missing_ok=True)
            listener.bind(os.fspath(draft))
            listener.listen(BACKLOG)
            draft.rename(self._path)
        except BaseException:
            listener.close()
            raise
        return listener

    def removed(self) -> None:
        """Remove the file."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


class TcpListener:
    """A port on a loopback address, as in `127.0.0.1:8000`; port 0 lets the system choose."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._ip, self._port = parse_address(address)

    def open(self) -> socket.socket:
        """Return a listening socket."""
        family = socket.AF_INET6 if self._ip.version == 6 else socket.AF_INET
        try:
            listener = socket.create_server((str(self._ip), self._port), family=family, backlog=BACKLOG)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise ListenerError(
                f"cannot listen on {self.address}: {reason}; choose another address in policy.toml"
            ) from error
        host = f"[{self._ip}]" if self._ip.version == 6 else str(self._ip)
        self.address = f"{host}:{listener.getsockname()[1]}"
        return listener

    def removed(self) -> None:
        """Do nothing: a closed port refuses by itself."""


def parse_address(address: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Return a loopback address and a port; raises ListenerError for any other."""
    match = _ADDRESS.fullmatch(address)
    host = "127.0.0.1" if match and match["host"] == "localhost" else match and match["host"].strip("[]")
    try:
        ip = ipaddress.ip_address(host or "")
    except ValueError:
        ip = None
    if match is None or ip is None or not ip.is_loopback or int(match["port"]) > 65_535:
        raise ListenerError(
            f"expected a loopback address and a port, as in 127.0.0.1:8000, got {address[:80]!r}: "
            "who calls is not asked for a password, so that no other machine may"
        )
    return ip, int(match["port"])


def listeners(socket_path: Path, http_address: str) -> list[Listener]:
    """Return the places of one agent: a socket, and a port unless `http_address` is empty."""
    ports = [TcpListener(http_address)] if http_address else []
    return [UnixListener(socket_path), *ports]
