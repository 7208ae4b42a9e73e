"""Tests of `fleetctl` where the controller's packages are not installed."""

import subprocess
import sys

BLOCKED = """
import sys
sys.modules[{name!r}] = None
from controller.entry import main
main()
"""


def start_without(name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED.format(name=name)], capture_output=True, text=True, timeout=60, check=False
    )


def test_without_the_extra_it_says_what_to_install() -> None:
    """A device's installation has no typer: no traceback, but the command that helps."""
    done = start_without("typer")
    assert (1, "") == (done.returncode, done.stdout)
    assert (
        "error: fleetctl needs the package 'typer', which a device does without\n"
        "hint: pip install 'wasmfleet[controller]'\n"
    ) == done.stderr


def test_a_missing_module_of_our_own_is_not_hidden() -> None:
    """A damaged installation is a bug to see, not something that an extra would mend."""
    done = start_without("controller.cli.app")
    assert "Traceback" in done.stderr
    assert "wasmfleet[controller]" not in done.stderr


def test_the_installed_command_starts() -> None:
    """The console script leads to the command line."""
    done = subprocess.run(
        [sys.executable, "-c", "from controller.entry import main; main()", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
