"""Which fleet a command speaks to: its folder, the address of its service, the token.

The address is, in this order: `--api-url` or FLEET_API_URL; what the running service wrote into
`server/endpoints.json`; what `operator/config.toml` says. The token is that of `--token-file` or FLEET_TOKEN_FILE,
else the operator folder's.
"""

from functools import cached_property
from pathlib import Path

import msgspec
import typer

from controller.client import FleetClient
from controller.workspace import OperatorHome, ServerHome, open_workspace, read_token


class Endpoints(msgspec.Struct, frozen=True, kw_only=True):
    """What the running service writes about itself into `server/endpoints.json`."""

    api_url: str


class Session:
    """One command's view of its fleet; nothing is read before it is needed."""

    def __init__(self, *, home: Path, api_url: str | None, token_file: Path | None) -> None:
        self.home = home
        self._api_url = api_url
        self._token_file = token_file

    @cached_property
    def operator(self) -> OperatorHome:
        """The operator's folder; raises WorkspaceError."""
        return open_workspace(self.home).operator

    @cached_property
    def server(self) -> ServerHome:
        """The server's folder; raises WorkspaceError."""
        return open_workspace(self.home).server

    def client(self) -> FleetClient:
        """Return a connection to the service; raises WorkspaceError when nothing says where it is."""
        return FleetClient(self._find_api_url(), self._find_token())

    def _find_api_url(self) -> str:
        if self._api_url:
            return self._api_url
        return self._running_api_url() or self.operator.config.api_url

    def _running_api_url(self) -> str | None:
        try:
            raw = (self.home / "server" / "endpoints.json").read_bytes()
            return msgspec.json.decode(raw, type=Endpoints).api_url
        except (OSError, msgspec.DecodeError):
            return None  # the service does not run here, or its folder is another user's

    def _find_token(self) -> str:
        if self._token_file is not None:
            return read_token(self._token_file)
        return self.operator.api_token


def session_of(ctx: typer.Context) -> Session:
    """Return the session that the global options describe."""
    session = ctx.find_object(Session)
    assert session is not None, "the root callback makes it"
    return session
