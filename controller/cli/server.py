"""`fleetctl serve` and `fleetctl up`: the service in this process, alone or with a broker beside it."""

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import msgspec
import typer

from controller.broker import Kind, start_broker
from controller.cli import options
from controller.cli.logs import LogLevel, log_to_stderr
from controller.cli.screen import Screen, facts, warn
from controller.cli.session import session_of
from controller.errors import WorkspaceError
from controller.kept_broker import KeptBroker
from controller.store.lock import one_service
from controller.workspace import ServerHome

if TYPE_CHECKING:
    from controller.service import Endpoints

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class BrokerKind(StrEnum):
    """Which broker `fleetctl up` starts."""

    AUTO = "auto"
    MOSQUITTO = "mosquitto"
    EMBEDDED = "embedded"


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `up --json` and `serve --json`, written when everything answers."""

    api_url: str
    enroll_url: str
    mqtt_url: str
    broker: str | None
    """Which broker was started; null when none was."""


TelemetryInterval = Annotated[
    int,
    typer.Option("--telemetry-interval", metavar="SECONDS", min=1, max=86_400, help="How often devices report."),
]


def serve(
    ctx: typer.Context,
    *,
    mqtt_url: Annotated[
        str | None, typer.Option("--mqtt-url", metavar="URL", help="The broker. [default: that of server/config.toml]")
    ] = None,
    telemetry_interval_s: TelemetryInterval = 60,
    log_level: Annotated[LogLevel, typer.Option("--log-level", help="What goes to stderr.")] = LogLevel.INFO,
    is_json: options.Json = False,
) -> None:
    """Run the service until Ctrl-C or SIGTERM.

    It needs the server folder alone, and an MQTT broker of its own. While the broker is away it waits.
    """
    session = session_of(ctx)
    log_to_stderr(log_level)
    on_ready = _announcement(Screen(is_json=is_json), session.home, None)
    with _one_service(session.server):
        _serve(session.server, mqtt_url, telemetry_interval_s, on_ready)


def up(  # noqa: PLR0913 - typer reads options from the signature
    ctx: typer.Context,
    *,
    kind: Annotated[BrokerKind, typer.Option("--broker", help="auto is mosquitto where it is installed.")] = (
        BrokerKind.AUTO
    ),
    broker_host: Annotated[
        str,
        typer.Option("--broker-host", metavar="ADDRESS", help="Where the broker listens; it asks nobody who he is."),
    ] = "127.0.0.1",
    telemetry_interval_s: TelemetryInterval = 60,
    log_level: Annotated[LogLevel, typer.Option("--log-level", help="What goes to stderr.")] = LogLevel.WARNING,
    is_json: options.Json = False,
) -> None:
    """Run the service and a broker until Ctrl-C.

    The broker is for development: it lets everybody in. For a fleet in the field run one of your own, and `serve`.
    A broker that dies is started again, and gets what devices need; when it dies time after time, `up` ends with 1.
    """
    session = session_of(ctx)
    log_to_stderr(log_level)
    server = session.server
    port = _broker_port(server)
    if server.config.mqtt.device_url and broker_host in _LOOPBACK:
        warn(
            f"devices are told to find the broker at {server.config.mqtt.device_url}, but it listens on {broker_host} "
            "alone: give --broker-host, or run a broker of your own and `fleetctl serve`"
        )
    with (
        _one_service(server),  # before the broker starts: two would keep their memory in one file
        _keep_broker(kind.value, broker_host, port, server.path / "broker") as broker,
    ):
        on_ready = _announcement(Screen(is_json=is_json), session.home, broker.kind)
        _serve(server, broker.url, telemetry_interval_s, on_ready)


def _one_service(server: ServerHome) -> AbstractContextManager[None]:
    """Return what holds the lock of the folder; raises WorkspaceError when there is no such folder."""
    _ = server.config
    return one_service(server.path)


def _keep_broker(kind: Kind, host: str, port: int, directory: Path) -> KeptBroker:
    """Return a broker that is started again when it dies; when that does not help, the service is ended."""
    first = start_broker(kind, host=host, port=port, directory=directory)
    return KeptBroker(
        first,
        lambda: start_broker(first.kind, host=host, port=first.port, directory=directory),
        say=warn,
        give_up=lambda: os.kill(os.getpid(), signal.SIGINT),
    )


def _serve(
    server: ServerHome, mqtt_url: str | None, telemetry_interval_s: int, on_ready: Callable[["Endpoints"], None]
) -> None:
    from controller.service import serve as serve_until_stopped  # noqa: PLC0415 - slow to load; only needed here

    serve_until_stopped(
        server,
        now=lambda: datetime.now(UTC),
        mqtt_url=mqtt_url,
        telemetry_interval_s=telemetry_interval_s,
        on_ready=on_ready,
    )


def _broker_port(server: ServerHome) -> int:
    """Return the port on which the configuration expects a broker on this machine; 0 is any free one."""
    url = server.config.mqtt.url
    parts = urlsplit(url)
    if parts.scheme != "mqtt" or parts.hostname not in _LOOPBACK or parts.username:
        raise WorkspaceError(
            f"{server.path / 'config.toml'} names another broker than one that `up` could start: {parts.hostname}",
            hint="use `fleetctl serve`, which starts none",
        )
    return 1883 if parts.port is None else parts.port


def _announcement(screen: Screen, home: Path, broker: str | None) -> Callable[["Endpoints"], None]:
    """Return what says that the service is ready, where everything is, and what to do next."""

    def announce(endpoints: "Endpoints") -> None:
        screen.line(
            Running(
                api_url=endpoints.api_url,
                enroll_url=endpoints.enroll_url,
                mqtt_url=endpoints.mqtt_url,
                broker=broker,
            )
        )
        rows = (
            ("operator API", endpoints.api_url),
            ("enrolment", endpoints.enroll_url),
            ("broker", f"{endpoints.mqtt_url}" + (f" ({broker}, started here)" if broker else "")),
        )
        screen.say(facts(f"the fleet in {home} is up", rows))
        screen.say("\nnext, in another terminal:")
        screen.say("  fleetctl devices invite      a line to paste on a device")
        screen.say("  fleetctl push model.wasm     a release for all devices")
        screen.say("\nCtrl-C stops it.")

    return announce
