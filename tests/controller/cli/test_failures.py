"""Tests of how commands fail: words on stderr, a document where one was asked for, and an exit code that says which."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from controller.cli import options
from controller.cli.app import app
from controller.cli.groups import FleetGroup
from controller.errors import ControllerError
from tests.controller.cli.fleets import ENVIRONMENT, Done, call

LINEAR = Path(__file__).parents[3] / "examples" / "linear_regression" / "model.wat"


def fleetctl_to(output: int, *args: str, **environment: str) -> Done:
    """Run `fleetctl ARGS` as a process that writes to `output`."""
    return subprocess.run(
        [sys.executable, "-c", "from controller.entry import main; main()", *args],
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        env=ENVIRONMENT | environment,
    )


@pytest.mark.parametrize(
    ("args", "said", "help_command"),
    [
        (["push"], "Missing argument 'FILE'.", "fleetctl push"),
        (["push", "x.wasm", "--timeout", "-1"], "should be greater than or equal to 0", "fleetctl push"),
        (["devices", "lst"], "No such command 'lst'. Did you mean 'list'?", "fleetctl devices"),
        (["devices", "show"], "Missing argument 'DEVICE'.", "fleetctl devices show"),
        (["nonsense"], "No such command 'nonsense'.", "fleetctl"),
        (["push", "x.wasm", "--version", "nonsense"], "expected a version like 1.2.0 or 2.0.0-rc.1", "fleetctl push"),
        (["push", "x.wasm", "--model", "Bad Name"], "expected a model name", "fleetctl push"),
        (["push", "x.wasm", "--skip-preflight"], "without the outputs that --test-data gives", "fleetctl push"),
        (["query", "x", "--sql", "SELECT 1"], "expected a NAME or --sql, got both", "fleetctl query"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_was_not_understood_is_a_document_too(args: list[str], said: str, help_command: str) -> None:
    """With --json a usage error is one document on stdout, the usage on stderr, and the exit code 2."""
    done = call(*args, "--json")
    error = json.loads(done.stdout)["error"]
    assert (2, "usage", f"see `{help_command} --help`") == (done.returncode, error["code"], error["hint"])
    assert said in error["message"]
    assert "Usage: " in done.stderr


def _app() -> typer.Typer:
    """Return a command line with one command, which ends as it is told to."""
    app = typer.Typer(cls=FleetGroup, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.callback()
    def root() -> None:
        """Nothing."""

    @app.command()
    def end(how: str, is_json: options.Json = False) -> None:
        endings: dict[str, type[BaseException]] = {"bug": KeyError, "ctrl-c": KeyboardInterrupt, "no": typer.Abort}
        raise endings[how]

    return app


@pytest.mark.parametrize(
    ("how", "exit_code", "code"), [("bug", 1, "internal"), ("ctrl-c", 130, "interrupted"), ("no", 1, "aborted")]
)
def test_whatever_ends_a_command_is_a_document(how: str, exit_code: int, code: str) -> None:
    """A program that asked for JSON always gets JSON: after Ctrl-C, a `no`, and a mistake of ours."""
    result = CliRunner().invoke(_app(), ["end", how, "--json"])
    assert (exit_code, code) == (result.exit_code, json.loads(result.stdout)["error"]["code"])


def test_a_mistake_of_ours_shows_its_traceback() -> None:
    """What we did not expect is not dressed up as the user's error: whoever reports it needs all of it."""
    result = CliRunner().invoke(_app(), ["end", "bug"])
    assert isinstance(result.exception, KeyError)


def test_a_mistake_of_the_service_shows_no_traceback_of_ours() -> None:
    """It has the same code, but the place to look is the log of the service."""
    app = _app()

    @app.command()
    def ask() -> None:
        error = ControllerError("the service failed at this request; its log says why", hint="try again")
        error.code = "internal"
        raise error

    result = CliRunner().invoke(app, ["ask"])
    assert 1 == result.exit_code
    assert "error: the service failed at this request; its log says why\nhint: try again\n" == result.stderr


@pytest.mark.parametrize("args", [["--help"], ["init", "a"], ["init", "b", "--json"]], ids=" ".join)
def test_output_that_cannot_be_written_is_an_error(args: list[str], tmp_path: Path) -> None:
    """A full disk under `> file` is said once, with exit code 1 and without a traceback."""
    with Path("/dev/full").open("w") as full:
        done = fleetctl_to(full.fileno(), *[str(tmp_path / arg) if len(arg) == 1 else arg for arg in args])
    assert (1, 1) == (done.returncode, done.stderr.count("No space left on device"))
    assert "Traceback" not in done.stderr


def test_a_terminal_that_lacks_a_sign_shows_another() -> None:
    """Where the output is ASCII, a ✓ is a question mark and no error."""
    done = fleetctl_to(subprocess.PIPE, "inspect", str(LINEAR), PYTHONIOENCODING="ascii")
    assert (0, "") == (done.returncode, done.stderr)
    assert "? a device can load it" in done.stdout


def test_advice_is_for_the_same_fleet(tmp_path: Path) -> None:
    """A command that is advised carries the options that chose the fleet on this line, and not the environment's."""
    home = tmp_path / "my fleet"
    assert f"hint: run `fleetctl --home '{home}' init '{home}'`" in call("--home", str(home), "models").stderr
    call("init", str(home), "--api-port=1")
    said = call("--home", str(home), "--api-url", "http://127.0.0.1:2", "models").stderr
    assert f"`fleetctl --home '{home}' --api-url http://127.0.0.1:2 up`" in said
    said = CliRunner().invoke(app, ["models"], env={"FLEET_HOME": str(home)}, prog_name="fleetctl").stderr
    assert "`fleetctl up`" in said
