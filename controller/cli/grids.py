"""Rows of any query for people: a table where it fits the terminal, else one block for each row.

Times become ages and digests are cut short: CSV and JSON have them whole.
"""

import re
import textwrap
from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table

from controller.cli import wording
from controller.cli.screen import facts, plain

Value = str | int | float | bool | None

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_PROSE_CHARS = 12
"""A column with longer texts may be wrapped down to this width; all others are kept whole."""
_GAP = 2


def result_grid(
    columns: Sequence[str], rows: Sequence[Sequence[Value]], *, width: int, now: datetime
) -> RenderableType:
    """Return the rows for a terminal of `width` columns."""
    cells = [[_cell(value, now) for value in row] for row in rows]
    widths = [max(len(row[position]) for row in cells) for position in range(len(columns))]
    heads = [_head(name, cell_width) for name, cell_width in zip(columns, widths, strict=True)]
    least = sum(
        max(min(cell_width, _PROSE_CHARS), *map(len, head.splitlines())) + _GAP
        for head, cell_width in zip(heads, widths, strict=True)
    )
    if least - _GAP > width:
        return Group(*(_block(columns, row) for row in cells))
    grid = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for position, head in enumerate(heads):
        is_number = any(isinstance(row[position], int | float) for row in rows)
        is_prose = widths[position] > _PROSE_CHARS
        grid.add_column(head, justify="right" if is_number else "left", no_wrap=not is_prose, overflow="fold")
    for row in cells:
        grid.add_row(*map(plain, row))
    return grid


def _block(columns: Sequence[str], row: Sequence[str]) -> RenderableType:
    names = [name.replace("_", " ") for name in columns]
    return Group(facts(f"{names[0]} {row[0]}", zip(names[1:], row[1:], strict=True)), "")


def _head(name: str, cell_width: int) -> str:
    """Return a column's name, in lines no wider than its cells where words allow it."""
    words = name.replace("_", " ")
    return textwrap.fill(words, max(cell_width, 1), break_long_words=False) if words.strip() else words


def _cell(value: Value, now: datetime) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return f"{value[:12]}…"
    if isinstance(value, str) and _TIME.fullmatch(value):
        return wording.ago(value, now)
    return str(value)
