"""Options that several commands share, each with one meaning everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import UnknownIdentifierError
from protocol.identifiers import Version as ReleaseVersion
from protocol.identifiers import parse_device_id, parse_group_name, parse_model_name

ModelFile = Annotated[Path, typer.Argument(metavar="FILE", help="A .wasm or .wat file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON document for each change, a line each.")]
To = Annotated[
    list[str] | None,
    typer.Option("--to", metavar="all|GROUP|DEVICE", help="Who; may be given several times. [default: all]"),
]
Wait = Annotated[
    bool | None,
    typer.Option(
        "--wait/--no-wait",
        help="Follow the rollout until every device ended. [default: --wait on a terminal, else --no-wait]",
        show_default=False,
    ),
]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0, help="Follow for at most so long.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen; change nothing.")]
SoakMs = Annotated[
    int | None,
    typer.Option("--soak-ms", metavar="MS", min=0, help="Let a release serve so long before it is committed."),
]
MemoryMib = Annotated[
    int, typer.Option("--memory-mib", metavar="MIB", min=1, max=4096, help="The most memory the module may take here.")
]
InputFile = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="FILE|-",
        help='JSON {"NAME": [numbers]} or a list for the only input; raw bytes in a .bin file; - reads JSON from '
        "stdin. [default: seeded random numbers]",
    ),
]


def _understood(parse: Callable[[str], object]) -> Callable[[str | None], str | None]:
    """Return what refuses a misspelt identifier as usage, before anything else is done."""

    def check(given: str | None) -> str | None:
        try:
            return None if given is None else str(parse(given))
        except UnknownIdentifierError as error:
            raise typer.BadParameter(str(error)) from error

    return check


def _each_understood(parse: Callable[[str], object]) -> Callable[[list[str] | None], list[str] | None]:
    """Return the same for an option that may be given several times."""
    check = _understood(parse)

    def check_all(given: list[str] | None) -> list[str] | None:
        for text in given or ():
            check(text)
        return given

    return check_all


Model = Annotated[
    str, typer.Argument(metavar="MODEL", callback=_understood(parse_model_name), help="The name of a model.")
]
Version = Annotated[
    str, typer.Argument(metavar="VERSION", callback=_understood(ReleaseVersion.parse), help="A version of it.")
]
NewestVersion = Annotated[
    str | None,
    typer.Argument(
        metavar="VERSION",
        callback=_understood(ReleaseVersion.parse),
        help="One of its releases. [default: the newest that may]",
    ),
]
NewDevice = Annotated[
    str | None,
    typer.Argument(
        metavar="DEVICE",
        callback=_understood(parse_device_id),
        help="Its id; the service makes one up when left out.",
    ),
]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        metavar="GROUP",
        callback=_each_understood(parse_group_name),
        help="Put it into this group; may be repeated.",
    ),
]
AddedGroups = Annotated[
    list[str] | None,
    typer.Option("--add", metavar="GROUP", callback=_each_understood(parse_group_name), help="Put it into this group."),
]
PushedModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        callback=_understood(parse_model_name),
        help="[default: from fleet.model, else the file name]",
    ),
]
PushedVersion = Annotated[
    str | None,
    typer.Option(
        "--version",
        metavar="X.Y.Z",
        callback=_understood(ReleaseVersion.parse),
        help="[default: from fleet.model or the file name, else the next]",
    ),
]
BuiltName = Annotated[
    str | None,
    typer.Option(
        "--name", metavar="NAME", callback=_understood(parse_model_name), help="[default: from the file name]"
    ),
]
BuiltVersion = Annotated[
    str | None,
    typer.Option("--version", metavar="X.Y.Z", callback=_understood(ReleaseVersion.parse), help="[default: none]"),
]
TestData = Annotated[
    Path | None,
    typer.Option(
        "--test-data",
        metavar="FILE",
        help='Self-test vectors as JSON: {"inputs": [{"NAME": [numbers]}], "outputs": [...]}; without "outputs" '
        "the module's own are recorded. [default: recorded for seeded random inputs]",
    ),
]
SkipPreflight = Annotated[
    bool,
    typer.Option(
        "--skip-preflight",
        help="Do not run the model here: a device will be the first. Needs the outputs of --test-data.",
    ),
]

EVERYBODY = ("all",)
