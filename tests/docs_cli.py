"""The reference of both command lines, read from the commands themselves, and whether a line of a document is one."""

import argparse
import shlex
from collections.abc import Iterator
from typing import Any

import typer.main

from agent import cli as agent_cli
from controller.cli.app import app


def reference(program: str) -> str:
    """Return the reference of `fleetctl` or `fleet-agent` as Markdown."""
    return _fleetctl() if program == "fleetctl" else _fleet_agent()


def problem(line: str) -> str | None:
    """Return what is wrong with a command line of a document, or None."""
    program, *words = shlex.split(line, comments=True)
    return _fleetctl_problem(words) if program == "fleetctl" else _fleet_agent_problem(words)


def _fleetctl() -> str:
    root = typer.main.get_command(app)
    sections = [_section("fleetctl", root.help or "", root.params, "")]
    for name, command in _walk(root, "fleetctl"):
        sections.append(_section(name, command.help or "", command.params, command.epilog or ""))
    return "\n\n".join(sections)


def _walk(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if hasattr(command, "commands"):
            yield from _walk(command, f"{path} {name}")


def _section(name: str, text: str, params: list[Any], epilog: str) -> str:
    arguments = [p for p in params if p.param_type_name == "argument"]
    usage = " ".join([name, *(p.metavar or p.name.upper() for p in arguments)])
    rows = [_row(p) for p in params if not p.hidden and p.name != "help"]
    parts = [f"### {name}", text.strip(), f"    {usage}"]
    if rows:
        parts.append("\n".join(["| option | |", "|---|---|", *rows]))
    lines = [line.strip() for line in epilog.replace("\b", "").splitlines() if line.strip() not in ("", "Example:")]
    if lines:
        parts.append("\n".join(["```sh", *lines, "```"]))
    return "\n\n".join(part for part in parts if part)


def _row(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
    if param.param_type_name == "argument":
        names = f"`{param.metavar or param.name.upper()}`"
    elif param.metavar:
        names += f" `{param.metavar}`"
    text = (param.help or "").replace("|", "\\|")
    default = param.default
    if default not in (None, False, "") and not callable(default) and "[default" not in text:
        text += f" [default: {getattr(default, 'value', default)}]"
    return f"| {names.replace('|', chr(92) + '|')} | {text} |"


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


def _fleet_agent() -> str:
    parser = _agent_parser()
    sections = [f"### fleet-agent\n\n{parser.description}"]
    (commands,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for name, sub in commands.choices.items():
        actions = [a for a in sub._actions if "--help" not in a.option_strings]
        usage = " ".join(["fleet-agent", name, *(str(a.metavar) for a in actions if not a.option_strings)])
        rows = [_agent_row(a) for a in actions]
        example = (sub.epilog or "").removeprefix("Example: ")
        table = "\n".join(["| option | |", "|---|---|", *rows])
        sections.append(
            f"### fleet-agent {name}\n\n{sub.description}\n\n    {usage}\n\n{table}\n\n```sh\n{example}\n```"
        )
    return "\n\n".join(sections)


def _agent_row(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar}`"
    if action.option_strings and action.metavar:
        names += f" `{action.metavar}`"
    # The default folder depends on who asks.
    default = "" if "--state" in action.option_strings else f" (default: {action.default})"
    return f"| {names} | {(action.help or '').replace(' (default: %(default)s)', default)} |"


def _fleet_agent_problem(words: list[str]) -> str | None:
    try:
        _agent_parser().parse_args(words)
    except (argparse.ArgumentError, SystemExit) as error:
        return str(error)
    return None
