"""Where a broker is, as a URL says it: mqtt://, mqtts://, ws:// or wss://, with a user where it asks for one."""

from typing import Literal, Self
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from controller.errors import BrokerError

_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_EXPECTED = "expected a broker URL like mqtt://host:1883, mqtts://host:8883 or wss://host/mqtt"


class BrokerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a broker is, and how to speak to it. As text it names no user and no password."""

    scheme: Literal["mqtt", "mqtts", "ws", "wss"]
    host: str
    port: int
    path: str = "/"
    username: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Return the address that a URL spells; raises BrokerError, which does not repeat the password."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise BrokerError(f"{_EXPECTED}: the port or the address is malformed") from error
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or port == 0:
            raise BrokerError(f"{_EXPECTED}, got {_without_user(parts)!r}")
        return msgspec.convert(
            {
                "scheme": parts.scheme,
                "host": parts.hostname,
                "port": port or _DEFAULT_PORTS[parts.scheme],
                "path": parts.path or "/",
                "username": unquote(parts.username) if parts.username else None,
                "password": unquote(parts.password) if parts.password else None,
            },
            cls,
        )

    @property
    def is_websocket(self) -> bool:
        """Whether MQTT is spoken inside a WebSocket."""
        return self.scheme in ("ws", "wss")

    @property
    def is_encrypted(self) -> bool:
        """Whether MQTT is spoken inside TLS."""
        return self.scheme in ("mqtts", "wss")

    def __str__(self) -> str:
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"BrokerAddress({self})"


def _without_user(parts: SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()[:200]
