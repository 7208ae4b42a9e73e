"""Tests of what every command has: help with an example, `--json`, and a page of its own in the documentation."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from controller.cli.app import app
from controller.cli.reference import commands, help_of, reference
from tests.controller.cli.fleets import ENVIRONMENT

DOCUMENT = Path(__file__).parents[3] / "docs" / "CLI.md"
ALL = list(commands())
NAMES = [" ".join(("fleetctl", *words)) for words in ALL]


def command(words: tuple[str, ...]) -> Any:
    found: Any = typer.main.get_command(app)
    for word in words:
        found = found.commands[word]
    return found


@pytest.mark.parametrize("words", ALL, ids=NAMES)
def test_every_help_ends_with_an_example(words: tuple[str, ...]) -> None:
    """The example is a line to type, of this very command."""
    text = help_of(words)
    assert "Example:" in text
    example = text.partition("Example:")[2].strip().splitlines()
    assert all(line.strip().startswith(" ".join(("fleetctl", *words))) for line in example)


@pytest.mark.parametrize("words", ALL, ids=NAMES)
def test_every_command_has_json(words: tuple[str, ...]) -> None:
    """Whatever prints something prints it as JSON too; groups print nothing themselves."""
    found = command(words)
    options = [option for parameter in found.params for option in parameter.opts]
    assert ("--json" in options) == (not hasattr(found, "commands"))


@pytest.mark.parametrize("words", ALL, ids=NAMES)
def test_every_option_says_what_it_is_for(words: tuple[str, ...]) -> None:
    """No option and no argument is left without words."""
    assert [] == [p.name for p in command(words).params if not getattr(p, "help", None)]


@pytest.mark.parametrize("words", ALL, ids=NAMES)
def test_the_list_of_commands_is_not_cut(words: tuple[str, ...]) -> None:
    """The first sentence of each help is short enough for the list that names it."""
    assert "..." not in help_of(words).partition("Commands:")[2].partition("Example:")[0]


def test_the_page_is_current() -> None:
    """docs/CLI.md is what `python -m controller.cli.reference` makes."""
    assert reference() == DOCUMENT.read_text()


@pytest.mark.parametrize(("line", "expected"), [("fleetctl dev", "devices"), ("fleetctl push --dr", "--dry-run")])
def test_shells_complete_commands_and_options(line: str, expected: str) -> None:
    """What `--install-completion` sets up asks the command itself, which answers in a process of its own."""
    words = line.split()
    asked = {"_FLEETCTL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    code = "import sys; sys.argv[0] = 'fleetctl'; from controller.entry import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT | asked,
    )  # fmt: skip
    assert ([expected], "") == (done.stdout.split(), done.stderr)
