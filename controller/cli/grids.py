"""Rows of any query for people: a table where it fits the terminal, else one block for each row.

Times become ages and digests are cut short: CSV and JSON have them whole.
"""

import re
import textwrap
from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType

from controller.cli import wording
from controller.cli.screen import GAP, PROSE_CHARS, facts, longest_line, table

Value = str | int | float | bool | None

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")


def result_grid(
    columns: Sequence[str], rows: Sequence[Sequence[Value]], *, width: int, now: datetime
) -> RenderableType:
    """Return the rows for a terminal of `width` columns."""
    cells = [[_cell(value, now) for value in row] for row in rows]
    widths = [max(longest_line(row[position]) for row in cells) for position in range(len(columns))]
    heads = [_head(name, chars) for name, chars in zip(columns, widths, strict=True)]
    least = sum(
        max(min(chars, PROSE_CHARS), longest_line(head)) + GAP for head, chars in zip(heads, widths, strict=True)
    )
    if least - GAP > width:
        return Group(*(_block(columns, row) for row in cells))
    numbers = [head for n, head in enumerate(heads) if any(isinstance(row[n], int | float) for row in rows)]
    return table(heads, cells, right=numbers, width=width)


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
