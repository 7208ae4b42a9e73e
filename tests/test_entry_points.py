"""Tests of both commands as they are installed: Ctrl-C at any moment and a reader that goes away are no tracebacks."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.controller.cli.fleets import ENVIRONMENT

COMMANDS = {"fleetctl": "controller.entry", "fleet-agent": "agent.entry"}
_SLOW_IMPORT = """
import builtins, sys, time
real = builtins.__import__
def slow(name, *args, **kwargs):
    if name.endswith({last!r}):
        sys.stdout.write("importing\\n")
        sys.stdout.flush()
        time.sleep(60)
    return real(name, *args, **kwargs)
builtins.__import__ = slow
from {module} import main
main()
"""


def start(
    name: str, *args: str, code: str = "from {module} import main; main()", **options: object
) -> subprocess.Popen[str]:
    """Start a command as its console script does."""
    source = code.replace("{module}", COMMANDS[name])
    command = [sys.executable, "-c", source, *args]
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return] # the options are the caller's
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, **options
    )


@pytest.mark.parametrize(
    ("name", "last"), [("fleetctl", "controller.cli.groups"), ("fleetctl", "httpx"), ("fleet-agent", "agent.client")]
)
def test_ctrl_c_while_it_loads_is_quiet(name: str, last: str) -> None:
    """The packages take a moment to load: Ctrl-C then ends the command with 130 and without a word."""
    code = _SLOW_IMPORT.replace("{last!r}", repr(last))
    with start(name, "--help", code=code) as process:
        assert process.stdout
        assert "importing\n" == process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (130, "", "") == (process.returncode, out, err)


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_that_is_ignored_stays_ignored(name: str) -> None:
    """In the background of a script SIGINT is ignored, and a command leaves it so."""
    code = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom {COMMANDS[name]} import main\n" + (
        "try:\n    main()\nfinally:\n    print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    )
    with start(name, "--help", code=code) as process:
        out, err = process.communicate(timeout=30)
    assert (0, "") == (process.returncode, err)
    assert out.endswith("True\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_goes_away_is_no_error(name: str, tmp_path: Path) -> None:
    """`| head -1`: no message, and the exit code that shells know for it."""
    reader, writer = os.pipe()
    os.close(reader)
    args = ["inspect", str(Path(__file__).parents[1] / "examples/linear_regression/model.wat")]
    if name == "fleet-agent":
        (tmp_path / "agent.log").write_text(json.dumps(dict.fromkeys(("at", "level", "part", "message"), "x")) + "\n")
        args = ["logs", "--state", str(tmp_path)]
    with os.fdopen(writer, "w") as output:
        done = subprocess.run(
            [sys.executable, "-c", f"from {COMMANDS[name]} import main; main()", *args],
            stdout=output, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=ENVIRONMENT,
        )  # fmt: skip
    assert (141, "") == (done.returncode, done.stderr)
