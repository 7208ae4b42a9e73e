"""How commands are put together: errors become words and exit codes, a bare group lists, every help has an example."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from agent.runtime.errors import ModelError
from controller.cli.screen import Screen, report_error
from controller.errors import ControllerError
from protocol.errors import ProtocolError

DEFAULT_HOME = Path("fleet")
EXIT_ERROR = 1
EXIT_NOT_ALL_WELL = 3
"""A rollout was followed, and not every device ended well."""
EXIT_INTERRUPTED = 130
"""Ctrl-C: 128 and the number of SIGINT, as shells count."""
EXIT_UNREAD = 141
"""Whoever read the output had seen enough, as in `fleetctl devices | head -1`: 128 and the number of SIGPIPE."""

_EXPECTED = (ControllerError, ProtocolError, ModelError, OSError)
_IS_JSON = "controller.cli.is_json"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a command failed; `code` is stable."""

    code: str
    message: str
    hint: str = ""


class FleetGroup(TyperGroup):
    """The root: an expected error is shown as `error: …` with a hint, never as a traceback.

    With `--json` whatever ended the command is also the one document on stdout: `{"error": {"code", "message",
    "hint"}}`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember whether the command, whichever it is, was asked for a document."""
        ctx.meta[_IS_JSON] = "--json" in args
        with _as_document(is_json=ctx.meta[_IS_JSON]):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; its errors end it with exit code 1."""
        with _as_document(is_json=ctx.meta[_IS_JSON]):
            return super().invoke(ctx)


@contextmanager
def _as_document(*, is_json: bool) -> Iterator[None]:
    """Turn what ends a command into words and an exit code, and into a document where one was asked for."""
    screen = Screen(is_json=is_json)
    try:
        yield
    except typer.Exit:
        raise  # the command chose its exit code
    except BrokenPipeError:
        raise typer.Exit(EXIT_UNREAD) from None
    except TyperException as error:  # the command was not understood: typer says so, with the usage
        asked = getattr(getattr(error, "ctx", None), "command_path", "fleetctl")
        hint = f"see `{asked} --help`"
        screen.document({"error": Failure(code="usage", message=error.format_message(), hint=hint)})
        raise
    except typer.Abort:
        screen.document({"error": Failure(code="aborted", message="not confirmed: nothing was changed")})
        raise
    except KeyboardInterrupt:
        screen.document({"error": Failure(code="interrupted", message="stopped by Ctrl-C")})
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except Exception as error:
        failure = _failure(error)
        is_expected = isinstance(error, _EXPECTED)
        if is_expected:
            report_error(failure.message, failure.hint)
        with suppress(OSError):  # the output may be what failed
            screen.document({"error": failure})
        if not is_expected:
            raise  # a mistake of ours: its report needs the traceback
        raise typer.Exit(EXIT_ERROR) from error


def _failure(error: Exception) -> Failure:
    if isinstance(error, ControllerError):
        return Failure(code=error.code, message=str(error), hint=error.hint)
    if isinstance(error, ProtocolError | ModelError):
        return Failure(code=error.code, message=str(error))
    if isinstance(error, OSError):
        at = f"{error.filename}: " if error.filename else ""
        return Failure(code="os", message=f"{at}{error.strerror or error}")
    return Failure(code="internal", message=f"{type(error).__name__}: {error}")


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


def calling_words(ctx: typer.Context) -> str:
    """Return how `fleetctl` was called: its name with the options that the line itself gave, not the environment."""
    words = ["fleetctl"]
    for option in ctx.command.params:
        source = ctx.get_parameter_source(option.name or "")
        if source is not None and source.name == "COMMANDLINE":
            words += [option.opts[0], str(ctx.params[option.name or ""])]
    return shlex.join(words)


def example(*lines: str) -> str:
    """Return the example that ends a command's help, one line for each command."""
    # A paragraph that starts with this mark keeps its lines.
    return "\n".join(("\b", "Example:", *(f"  {line}" for line in lines)))
