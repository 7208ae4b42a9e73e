"""The `fleetctl demo` command."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from controller.cli import options
from controller.cli.screen import Screen
from controller.demo.ending import ended_in_order
from controller.demo.processes import DemoError
from controller.demo.scenario import run_demo
from controller.demo.scratch import scratch_folder


def demo(
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="A new folder for the fleet and its logs, kept afterwards."),
    ] = None,
    is_json: options.Json = False,
) -> None:
    """Show everything on this machine: push, hot swap, a bad release, a killed agent; takes about a minute."""
    screen = Screen(is_json=is_json)
    with scratch_folder(Path(tempfile.gettempdir())) if keep is None else _kept_folder(keep) as folder:
        try:
            with ended_in_order():
                result = run_demo(folder, screen.verbatim)
        except DemoError as error:
            raise DemoError(str(error), hint=f"the logs are in {folder}") from error
        except KeyboardInterrupt:
            screen.say("\nstopped; nothing runs any more" + ("" if keep is None else f", and the logs are in {folder}"))
            raise
    screen.line(result)
    screen.verbatim("\n" + msgspec.json.encode(result).decode())
    if keep is not None:
        screen.say(f"the fleet is in {folder}: `fleetctl --home {folder / 'fleet'} up` starts it again")


@contextmanager
def _kept_folder(path: Path) -> Iterator[Path]:
    folder = path.absolute()
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise DemoError(f"cannot make {folder}: {error.strerror}", hint="name a folder that does not exist") from error
    yield folder
