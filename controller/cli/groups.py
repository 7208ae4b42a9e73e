"""How commands are put together: errors become words and exit codes, a bare group lists, every help has an example."""

import shlex
from pathlib import Path
from typing import Any

import msgspec
import typer
from typer.core import TyperGroup

from agent.runtime.errors import ModelError
from controller.cli.screen import Screen, report_error
from controller.errors import ControllerError
from protocol.errors import ProtocolError

DEFAULT_HOME = Path("fleet")
EXIT_ERROR = 1
EXIT_NOT_ALL_WELL = 3
"""A rollout was followed, and not every device ended well."""


_IS_JSON = "controller.cli.is_json"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a command failed; `code` is stable."""

    code: str
    message: str
    hint: str = ""


class FleetGroup(TyperGroup):
    """The root: an expected error is shown as `error: …` with a hint, never as a traceback.

    With `--json` the error is also the one document on stdout: `{"error": {"code", "message", "hint"}}`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember whether the command, whichever it is, was asked for a document."""
        ctx.meta[_IS_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; its errors end it with exit code 1."""
        try:
            return super().invoke(ctx)
        except ControllerError as error:
            failure = Failure(code=error.code, message=str(error), hint=error.hint)
        except (ProtocolError, ModelError) as error:
            failure = Failure(code=error.code, message=str(error))
        except BrokenPipeError:
            raise  # whoever read our output has seen enough
        except OSError as error:
            at = f"{error.filename}: " if error.filename else ""
            failure = Failure(code="os", message=f"{at}{error.strerror or error}")
        report_error(failure.message, failure.hint)
        Screen(is_json=ctx.meta[_IS_JSON]).document({"error": failure})
        raise typer.Exit(EXIT_ERROR)


class ListingGroup(TyperGroup):
    """A group of commands that means `list` when no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` before options that no command precedes."""
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def listing_group(about: str, noun: str) -> typer.Typer:
    """Return a group of commands about `noun` (the plural), which lists by default."""
    return typer.Typer(
        cls=ListingGroup,
        help=f"{about} Without a command: list them.",
        epilog=example(f"fleetctl {noun}"),
        no_args_is_help=False,
        rich_markup_mode=None,
    )


def command_line(home: Path) -> str:
    """Return how to call `fleetctl` for the fleet at `home`."""
    return "fleetctl" if home == DEFAULT_HOME else f"fleetctl --home {shlex.quote(str(home))}"


def example(*lines: str) -> str:
    """Return the example that ends a command's help, one line for each command."""
    # A paragraph that starts with this mark keeps its lines.
    return "\n".join(("\b", "Example:", *(f"  {line}" for line in lines)))
