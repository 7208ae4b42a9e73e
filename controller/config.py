"""What a person sets on a fleet: `config.toml` of the operator and of the server, written once with its comments.

It is read strictly: an unknown name, a wrong type or a port out of range is an error that names the place.
"""

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from controller import reading
from controller.errors import WorkspaceError
from protocol.errors import LimitExceededError, UnknownIdentifierError
from protocol.topics import DEFAULT_PREFIX, Topics

T = TypeVar("T")
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
"""0 stands for any free port."""

_MAX_FILE_BYTES = 16 << 20
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?:\.(?!-)[A-Za-z0-9-]{1,63})*")


class OperatorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`operator/config.toml`."""

    api_url: str


class ApiConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the operator API listens."""

    host: str = "127.0.0.1"
    port: Port = 8470


class DevicesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the device-facing HTTPS listener listens, and under which name devices find it."""

    host: str = "127.0.0.1"
    port: Port = 8471
    public_host: str = "127.0.0.1"


class MqttConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The broker as the service reaches it, and as devices do."""

    url: str = "mqtt://127.0.0.1:1883"
    device_url: str = ""
    """Empty: the same as `url`."""
    version: Literal["3.1.1", "5"] = "5"


class DatabaseConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the service keeps what it knows; empty: fleet.db in the server's folder."""

    url: str = ""


Span = Annotated[int, msgspec.Meta(ge=1, le=36_500)]


class RetentionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the service keeps what grows with time."""

    telemetry_hours: Span = 24
    hourly_days: Span = 7
    daily_days: Span = 400
    receipt_days: Span = 30
    unused_file_hours: Span = 24

    def __post_init__(self) -> None:
        if not self.telemetry_hours <= self.hourly_days * 24 <= self.daily_days * 24:
            raise ValueError("retention: expected telemetry_hours within hourly_days, and those within daily_days")


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`server/config.toml`."""

    prefix: str = DEFAULT_PREFIX
    api: ApiConfig = ApiConfig()
    devices: DevicesConfig = DevicesConfig()
    mqtt: MqttConfig = MqttConfig()
    database: DatabaseConfig = DatabaseConfig()
    retention: RetentionConfig = RetentionConfig()

    def __post_init__(self) -> None:
        try:
            Topics(self.prefix)
        except UnknownIdentifierError as error:
            raise ValueError(f"prefix: {error}") from error


class InitialSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What `fleetctl init` asks for; raises WorkspaceError."""

    host: str
    """The name or address under which devices find the fleet."""
    api_port: int
    enroll_port: int
    mqtt_port: int
    prefix: str

    def __post_init__(self) -> None:
        if len(self.host) > 253 or not (_is_address(self.host) or _HOST.fullmatch(self.host)):
            raise WorkspaceError(f"expected a host name or an IP address, got {self.host[:80]!r}")
        for port in (self.api_port, self.enroll_port, self.mqtt_port):
            if not 0 <= port <= 65_535:
                raise WorkspaceError(f"expected a port from 0 (any free one) to 65535, got {port}")
        try:
            Topics(self.prefix)
        except UnknownIdentifierError as error:
            raise WorkspaceError(str(error)) from error

    def operator_toml(self) -> str:
        """Return the operator's config.toml."""
        return _OPERATOR_TOML.format(api_port=self.api_port)

    def server_toml(self) -> str:
        """Return the server's config.toml."""
        is_local = self.host == "localhost" or (_is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)
        literal = f"[{self.host}]" if ":" in self.host else self.host
        return _SERVER_TOML.format(
            prefix=msgspec.json.encode(self.prefix).decode(),
            api_port=self.api_port,
            bind="127.0.0.1" if is_local else "0.0.0.0",  # noqa: S104 - devices are elsewhere; this listener is made for them
            enroll_port=self.enroll_port,
            public_host=self.host,
            mqtt_port=self.mqtt_port,
            device_url="" if is_local else f"mqtt://{literal}:{self.mqtt_port}",
        )


def read_file(path: Path) -> bytes:
    """Return a file of the fleet; raises WorkspaceError."""
    try:
        return reading.read_file(path, _MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise WorkspaceError(
            f"{path} is missing", hint="run `fleetctl init` to make a fleet, or name the folder of an existing one"
        ) from error
    except (OSError, LimitExceededError) as error:
        is_foreign = isinstance(error, OSError)
        hint = "run as the user who made the fleet" if is_foreign else "copy it back from a backup"
        raise WorkspaceError(reading.why_unread(str(path), error), hint=hint) from error


def read_config(path: Path, kind: type[T]) -> T:
    """Return the settings at `path`; raises WorkspaceError."""
    try:
        return msgspec.convert(tomllib.loads(read_file(path).decode()), kind)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise WorkspaceError(f"{path}: {error}", hint="correct that line") from error


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


_OPERATOR_TOML = """\
# What fleetctl needs to reach the service. The token is beside, in api.token.
api_url = "http://127.0.0.1:{api_port}"
"""

_SERVER_TOML = """\
# The first part of every MQTT topic; several fleets may share a broker under different ones.
# Devices learn it when they enrol: do not change it afterwards.
prefix = {prefix}

# The operator API, which fleetctl uses. It speaks plain HTTP: keep it on this machine.
[api]
host = "127.0.0.1"
port = {api_port}

# The HTTPS listener on which devices enrol. `host` is the address it listens on (0.0.0.0: every interface),
# `public_host` the name or address under which devices find it.
[devices]
host = "{bind}"
port = {enroll_port}
public_host = "{public_host}"

# The broker: mqtt://, mqtts://, ws:// or wss://. `device_url` is what devices are told; empty: the same.
# `version` is "5", or "3.1.1" for a broker that speaks nothing newer.
[mqtt]
url = "mqtt://127.0.0.1:{mqtt_port}"
device_url = "{device_url}"
version = "5"

# Empty: SQLite, in fleet.db beside this file.
[database]
url = ""

# How long is kept what grows with time. Telemetry is kept in single intervals, then summed up by hours, then by days.
# Receipts of deployments that ended are dropped, their outcome stays. Uploaded files that no release names are dropped.
[retention]
telemetry_hours = 24
hourly_days = 7
daily_days = 400
receipt_days = 30
unused_file_hours = 24
"""
