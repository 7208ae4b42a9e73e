"""`fleetctl init`: makes the folder of a new fleet, with its keys."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from controller.cli import options
from controller.cli.groups import command_line
from controller.cli.screen import Screen, facts
from controller.cli.session import session_of
from controller.workspace import create_workspace
from protocol.topics import DEFAULT_PREFIX


class NewFleet(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `fleetctl init --json`."""

    path: str
    operator: str
    server: str
    advice: tuple[str, ...]


def init(  # noqa: PLR0913 - typer reads options from the signature
    ctx: typer.Context,
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="A new folder. [default: that of --home, ./fleet]")
    ] = None,
    *,
    host: Annotated[
        str, typer.Option("--host", metavar="NAME", help="The name or address under which devices find this machine.")
    ] = "127.0.0.1",
    api_port: Annotated[
        int, typer.Option("--api-port", metavar="PORT", help="Of the operator API; 0 is any free one.")
    ] = 8470,
    enroll_port: Annotated[
        int, typer.Option("--enroll-port", metavar="PORT", help="Of the HTTPS listener on which devices enrol.")
    ] = 8471,
    mqtt_port: Annotated[int, typer.Option("--mqtt-port", metavar="PORT", help="Of the broker.")] = 1883,
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="TEXT", help="The first part of every MQTT topic.")
    ] = DEFAULT_PREFIX,
    is_json: options.Json = False,
) -> None:
    """Make a new fleet: a folder with a key for each role.

    An existing fleet is never overwritten.
    """
    screen = Screen(is_json=is_json)
    path = directory or session_of(ctx).home
    workspace = create_workspace(
        path,
        now=datetime.now(UTC),
        host=host,
        api_port=api_port,
        enroll_port=enroll_port,
        mqtt_port=mqtt_port,
        prefix=prefix,
    )
    fleet = NewFleet(
        path=str(workspace.path),
        operator=str(workspace.operator.path),
        server=str(workspace.server.path),
        advice=workspace.advice,
    )
    screen.document(fleet)
    rows = (
        ("operator/", "the keys that release models, the root keys, the API token"),
        ("server/", "settings, the service's own keys, its database"),
    )
    screen.say(facts(f"a new fleet is in {_short(path)}", rows))
    for advice in workspace.advice:
        screen.say(f"\n{advice}")
    screen.say(f"\nnext: {command_line(path)} up")


def _short(path: Path) -> str:
    """Return a path as it was given; `./` says that it is below here."""
    return str(path) if path.is_absolute() or path.parts[:1] == ("..",) else f"./{path}"
