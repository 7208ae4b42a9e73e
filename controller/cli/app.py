"""The `fleetctl` command line: its global options and the list of its commands."""

import io
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from controller.cli import (
    backup,
    bench,
    building,
    devices,
    inspection,
    models,
    push,
    query,
    releases,
    rollouts,
    running,
    server,
    workspace,
)
from controller.cli.groups import DEFAULT_HOME, EXIT_ERROR, EXIT_UNREAD, FleetGroup, calling_words, example
from controller.cli.screen import call_fleetctl_as, report_error
from controller.cli.session import Session
from controller.demo.command import demo

app = typer.Typer(
    name="fleetctl",
    cls=FleetGroup,
    help="Deploy machine-learning models, as signed WebAssembly, to a fleet of devices.",
    epilog=example("fleetctl init", "fleetctl up", "fleetctl devices invite", "fleetctl push model.wasm"),
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(version("wasmfleet"))
        raise typer.Exit


@app.callback()
def choose_fleet(
    ctx: typer.Context,
    home: Annotated[
        Path, typer.Option("--home", envvar="FLEET_HOME", metavar="DIR", help="The folder that `fleetctl init` made.")
    ] = DEFAULT_HOME,
    api_url: Annotated[
        str | None, typer.Option("--api-url", envvar="FLEET_API_URL", metavar="URL", help="The address of the service.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", envvar="FLEET_TOKEN_FILE", metavar="FILE", help="The operator's token."),
    ] = None,
    _is_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Say which fleet the command is for; see `fleetctl COMMAND --help`."""
    ctx.call_on_close(call_fleetctl_as(calling_words(ctx)))
    ctx.obj = Session(home=home, api_url=api_url, token_file=token_file)


app.command("init", epilog=example("fleetctl init", "fleetctl init site-b --api-port 9470"))(workspace.init)
app.command("up", epilog=example("fleetctl up"))(server.up)
app.command("serve", epilog=example("fleetctl serve --mqtt-url mqtt://127.0.0.1:1883"))(server.serve)
app.command("push", epilog=example("fleetctl push model.wasm", "fleetctl push model.onnx --to site-a --dry-run"))(
    push.push
)
app.command(
    "build",
    epilog=example(
        "fleetctl build model.onnx",
        "fleetctl build model.onnx --input-shape image=1x3x224x224 --uint8-input image --normalize 127.5,127.5",
    ),
)(building.build)
app.command("bench", epilog=example("fleetctl bench model.onnx --layers --peers", "fleetctl bench model.wasm"))(
    bench.bench
)
app.command("run", epilog=example("fleetctl run model.wasm --input sample.json"))(running.run_model)
app.command("inspect", epilog=example("fleetctl inspect model.wasm"))(inspection.inspect_file)
app.add_typer(devices.app, name="devices")
app.add_typer(models.app, name="models")
app.add_typer(releases.app, name="releases")
app.add_typer(rollouts.app, name="rollouts")
app.command("query", epilog=example("fleetctl query latency", "fleetctl query --list"))(query.query)
app.command("backup", epilog=example("fleetctl backup fleet.backup"))(backup.backup)
app.command("restore", epilog=example("fleetctl restore fleet.backup"))(backup.restore)
app.command(
    "demo",
    short_help="Show the whole main job on this machine.",
    epilog=example("fleetctl demo", "fleetctl demo --keep demo-fleet"),
)(demo)


def run() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without a sign for ✓ shows another one
    try:
        app()
    except SystemExit as ended:
        sys.exit(_flushed(ended.code))


def _flushed(code: str | int | None) -> str | int | None:
    """Return the exit code once everything was written; what is not wanted any more is dropped."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try again, and complain
        if isinstance(error, BrokenPipeError):
            return code or EXIT_UNREAD
        report_error(f"cannot write the output: {error.strerror}")
        return code or EXIT_ERROR
    return code
