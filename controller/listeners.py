"""The two HTTP listeners in one event loop: the operator API, and the HTTPS one that devices reach."""

import asyncio
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import uvicorn
from litestar.types import ASGIApp

from controller.errors import ControllerError, WorkspaceError

GRACE_S = 5
"""How long a request may still take when the service stops."""
_BACKLOG = 256
_MAX_DEVICE_CONNECTIONS = 256


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to that address, so that a port in use is known at once; raises ControllerError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ControllerError(
            f"cannot listen on {host}: {error.strerror}", hint="correct the host in config.toml"
        ) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ControllerError(
            f"cannot listen on {host}, port {port}: {error.strerror}",
            hint="stop what uses the port, or set another one in the server's config.toml (0 takes any free one)",
        ) from error
    return bound


def url_of(scheme: str, host: str, bound: socket.socket) -> str:
    """Return the URL under which a listener is found."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nobody can connect to "any"
    return f"{scheme}://{f'[{shown}]' if ':' in shown else shown}:{bound.getsockname()[1]}"


class Listener(uvicorn.Server):
    """One server; the process's signals are not its business."""

    def __init__(
        self, app: ASGIApp, bound: socket.socket, *, certificate: Path | None = None, key: Path | None = None
    ) -> None:
        config = uvicorn.Config(
            cast("Any", app),  # Litestar and uvicorn write the same ASGI types differently
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            loop="asyncio",
            http="h11",
            ws="none",
            backlog=_BACKLOG,
            timeout_graceful_shutdown=GRACE_S,
            limit_concurrency=_MAX_DEVICE_CONNECTIONS if certificate else None,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise WorkspaceError(
                f"the certificate or key of the listener cannot be used: {error}", hint="copy them back from a backup"
            ) from error
        super().__init__(config)
        self.is_up = asyncio.Event()
        self._bound = bound

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the service."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.is_up.set()

    async def run_until(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then finish the requests at hand."""
        serving = asyncio.create_task(self.serve([self._bound]))
        await stop.wait()
        self.should_exit = True
        await serving


async def serve_all(listeners: Sequence[Listener], stop: asyncio.Event) -> None:
    """Serve on all of them until `stop` is set."""
    await asyncio.gather(*(listener.run_until(stop) for listener in listeners))
