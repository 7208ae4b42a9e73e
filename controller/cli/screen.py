"""Where output goes: words and tables for people, or documents for programs, to stdout; errors to stderr.

With `--json` stdout carries one JSON document (JSON lines for commands that watch) and nothing else.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import TextIO

import msgspec
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

_UNTRIMMED_COLUMNS = 500
"""The width of output that goes to a file or pipe: nothing is cut off there."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

GAP = 2
PROSE_CHARS = 12
"""A column with longer texts may be wrapped; all others are kept whole."""

Cell = str | Text

_ADVISED = re.compile(r"(?P<before>`|next: |^ *)fleetctl (?=[a-z])", re.MULTILINE)
_calling_words: ContextVar[str] = ContextVar("calling_words", default="fleetctl")


def call_fleetctl_as(words: str) -> Callable[[], None]:
    """Have every advised command begin with these words, so that it is for the same fleet; return what ends that."""
    token = _calling_words.set(words)
    return lambda: _calling_words.reset(token)


def advised(text: str) -> str:
    """Return the text with its commands as they are to be typed here."""
    return _ADVISED.sub(lambda match: f"{match['before']}{_calling_words.get()} ", text)


class Screen:
    """The terminal of one command."""

    def __init__(self, *, is_json: bool) -> None:
        self.is_json = is_json
        self.out = _console(sys.stdout)

    @property
    def is_live(self) -> bool:
        """Whether a person watches: a table may redraw itself."""
        return self.out.is_terminal and not self.is_json

    def say(self, text: RenderableType = "") -> None:
        """Show words or a table to people; silent with `--json`."""
        if self.is_json:
            return
        _print(self.out, plain(advised(text)) if isinstance(text, str) else text)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, right: Sequence[str] = ()) -> None:
        """Show a table to people; silent with `--json`."""
        self.say(table(columns, rows, right=right, width=self.out.width))

    def verbatim(self, text: str) -> None:
        """Write text as it is, for people to copy; silent with `--json`."""
        if not self.is_json:
            sys.stdout.write(text.rstrip("\n") + "\n")
            sys.stdout.flush()

    def step(self, name: str, outcome: str) -> None:
        """Say that one step of several is done."""
        self.say(Text.assemble(("✓ ", "green"), (f"{name:<10} ", "bold"), plain(outcome)))

    def document(self, value: object) -> None:
        """Write the command's one document; silent without `--json`."""
        if self.is_json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")

    def line(self, value: object) -> None:
        """Write one document of many on a line of its own, at once; silent without `--json`."""
        if self.is_json:
            sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
            sys.stdout.flush()


def plain(text: str, style: str = "") -> Text:
    """Return text from anywhere as text: a device that fails cannot paint on the operator's terminal."""
    return Text(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text), style=style)


def report_error(message: str, hint: str = "") -> None:
    """Write an error, and what to do about it, to stderr."""
    console = _console(sys.stderr)
    _print(console, Text.assemble(("error: ", "bold red"), plain(advised(message))))
    if hint:
        _print(console, Text.assemble(("hint: ", "bold"), plain(advised(hint))))


def warn(message: str) -> None:
    """Write a warning to stderr."""
    _print(_console(sys.stderr), Text.assemble(("warning: ", "bold yellow"), plain(advised(message))))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, right: Sequence[str] = (), width: int | None = None
) -> Table:
    """Return a plain table; `right` names the columns of numbers.

    Long texts are wrapped and short ones kept whole. So is the first column, which is what a person copies, unless
    the table would then be wider than `width`.
    """
    cells = [[_safe(cell) for cell in row] for row in rows]
    widest = [max(longest_line(name), *(longest_line(row[n]) for row in cells), 0) for n, name in enumerate(columns)]
    others = sum(min(chars, PROSE_CHARS) + GAP for chars in widest[1:])
    grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for position, name in enumerate(columns):
        is_first = position == 0 and (width is None or widest[0] + others <= width)
        is_whole = is_first or widest[position] <= PROSE_CHARS
        grid.add_column(name, justify="right" if name in right else "left", no_wrap=is_whole, overflow="fold")
    for row in cells:
        grid.add_row(*row)
    return grid


def longest_line(text: Cell) -> int:
    """Return how many columns of a terminal the text needs when it is not wrapped."""
    return max((cell_len(line) for line in str(text).splitlines()), default=0)


def facts(title: str, rows: Iterable[tuple[str, Cell]]) -> RenderableType:
    """Return what is known of one thing: its title, if any, then a name and a value on each line."""
    grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(plain(name), _safe(value))
    return Group(plain(title, "bold"), grid) if title else grid


def _safe(shown: Cell) -> Text:
    return plain(shown) if isinstance(shown, str) else shown


def _print(console: Console, shown: RenderableType) -> None:
    """Print to a terminal; what goes to a file or pipe has no blanks at the ends of its lines."""
    if console.is_terminal:
        console.print(shown, highlight=False)
        return
    with console.capture() as captured:
        console.print(shown, highlight=False)
    console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines() or [""]))
    console.file.flush()


def _console(stream: TextIO) -> Console:
    console = Console(file=stream, emoji=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNTRIMMED_COLUMNS
    return console
