"""Whether a line of a document is a command that exists, and the reference of `fleet-agent`, read from its parser."""

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterable
from typing import Any

import typer.main

from agent import cli as agent_cli
from controller.cli.app import app

_QUOTED = re.compile(r"`((?:fleetctl|fleet-agent) [^`|]+)")
_BARE = re.compile(r"^ *(?:next: )?((?:fleetctl|fleet-agent) (?=[a-z-])[^`\n]*?)(?:  +.*)?$", re.MULTILINE)


def problem(line: str) -> str | None:
    """Return what is wrong with a command line of a document, or None."""
    program, *words = shlex.split(line, comments=True)
    return _fleetctl_problem(words) if program == "fleetctl" else _fleet_agent_problem(words)


def commands_in(text: str) -> list[str]:
    """Return the commands that a message names: in backquotes, after `next: `, or alone on a line."""
    return [found.strip() for pattern in (_QUOTED, _BARE) for found in pattern.findall(text)]


def problems(lines: Iterable[str]) -> dict[str, str]:
    """Return what is wrong with each command; one that is only named may lack its arguments."""
    found = {line: said for line in lines if (said := problem(line))}
    return {line: said for line, said in found.items() if "Missing" not in said}


def _fleetctl_problem(words: list[str]) -> str | None:
    command: Any = typer.main.get_command(app)
    try:
        context = command.make_context("fleetctl", list(words), resilient_parsing=True)
        _, rest = _split(command, words)
        while hasattr(command, "commands"):
            if not rest or rest[0].startswith("-"):
                return None  # a bare group lists, and options go to that
            name, *rest = rest
            if name not in command.commands:
                return f"there is no command {name!r}"
            command = command.commands[name]
        context.resilient_parsing = False
        command.make_parser(context).parse_args(args=rest)
    except Exception as error:  # noqa: BLE001 - whatever the parser says is the answer
        return str(error)
    return None


def _split(root: Any, words: list[str]) -> tuple[list[str], list[str]]:
    """Part the global options from the command."""
    with_value = {name for p in root.params if not p.is_flag for name in p.opts}
    position = 0
    while position < len(words) and words[position].startswith("-"):
        position += 2 if words[position] in with_value else 1
    return words[:position], words[position:]


def _agent_parser() -> argparse.ArgumentParser:
    return agent_cli._parser()


def agent_commands() -> str:
    """Return the reference of `fleet-agent` as Markdown."""
    (commands,) = [a for a in _agent_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    sections = []
    for name, sub in commands.choices.items():
        actions = [a for a in sub._actions if "--help" not in a.option_strings]
        usage = " ".join(["fleet-agent", name, *(str(a.metavar) for a in actions if not a.option_strings)])
        table = "\n".join(["| option | |", "|---|---|", *map(_agent_row, actions), "\n"]) if actions else ""
        example = (sub.epilog or "").removeprefix("Example: ")
        sections.append(f"### {usage}\n\n{sub.description}\n\n{table}```sh\n{example}\n```")
    return "\n\n".join(sections)


def _agent_row(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar}`"
    if action.option_strings and action.metavar:
        names += f" `{action.metavar}`"
    # The default folder depends on who asks.
    default = "" if "--state" in action.option_strings else f" (default: {action.default})"
    return f"| {names} | {(action.help or '').replace(' (default: %(default)s)', default)} |"


def _fleet_agent_problem(words: list[str]) -> str | None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            _agent_parser().parse_args(words)
    except SystemExit:
        last = said.getvalue().strip().splitlines()[-1]
        return last.replace("the following arguments are required", "Missing arguments")
    return None
