"""`fleetctl backup` and `fleetctl restore`: the server's folder as one file, and back."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from controller.backup import make_backup, restore_backup
from controller.cli import options
from controller.cli.groups import command_line
from controller.cli.screen import Screen
from controller.cli.session import session_of
from controller.workspace import ServerHome


class MadeBackup(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `fleetctl backup --json`."""

    file: str
    size_bytes: int


def backup(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file; it holds the server's keys.")],
    *,
    is_json: options.Json = False,
) -> None:
    """Write all that the service needs into one file.

    Database, files, settings and keys; the service may run meanwhile. The operator's folder is not in it.
    """
    session = session_of(ctx)
    made = MadeBackup(file=str(file), size_bytes=make_backup(session.server, file, datetime.now(UTC)))
    screen = Screen(is_json=is_json)
    screen.document(made)
    screen.say(f"{made.file} has {made.size_bytes:,} bytes. It holds keys: keep it as safe as the server.")
    screen.say(f"to go back to it: {command_line(session.home)} restore {made.file}")


def restore(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `fleetctl backup` wrote.")],
    *,
    is_json: options.Json = False,
) -> None:
    """Put a backup in the place of the server's folder.

    The service must not run; what is there now is moved aside. What devices have seen since the backup is read back
    from the broker when the service starts: they obey what it signs then.
    """
    session = session_of(ctx)
    restored = restore_backup(file, ServerHome(session.home / "server"), datetime.now(UTC))
    screen = Screen(is_json=is_json)
    screen.document(restored)
    screen.say(f"{restored.server} is as it was at {restored.made_at}.")
    if restored.replaced:
        screen.say(f"what was there before lies in {restored.replaced}: delete it when all is well, it holds keys.")
    screen.say(f"next: {command_line(session.home)} up, or serve")
