"""Options that several commands share, each with one meaning everywhere."""

from pathlib import Path
from typing import Annotated

import typer

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

EVERYBODY = ("all",)
