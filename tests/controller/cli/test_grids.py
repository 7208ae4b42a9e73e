"""Tests of how rows of any query are laid out."""

import io
from datetime import UTC, datetime

from rich.console import Console

from controller.cli.grids import Value, result_grid
from controller.cli.screen import table

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def lines(columns: list[str], rows: list[list[Value]], width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(result_grid(columns, rows, width=width, now=NOW))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_numbers_stand_to_the_right_and_nothing_is_a_dash() -> None:
    """A column with numbers is aligned for reading them; NULL is shown."""
    expected = ["model   devices", "digits       12", "other         -"]
    assert expected == lines(["model", "devices"], [["digits", 12], ["other", None]])


def test_times_are_ages_and_digests_are_cut() -> None:
    """What people cannot read is made readable; programs take JSON."""
    shown = lines(["at", "digest"], [["2026-03-01T11:58:00Z", "0123456789abcdef" * 4]])
    assert "2 min ago  0123456789ab…" == shown[1]


def test_long_names_of_columns_take_several_lines() -> None:
    """A name that is longer than its cells is broken at its words."""
    assert ["memory", "  peak", " bytes", " 65536"] == lines(["memory_peak_bytes"], [[65536]])


def test_long_texts_are_wrapped() -> None:
    """A table stays a table when only its texts are too long."""
    shown = lines(["id", "why"], [["a-1", "word " * 30]])
    assert all(len(line) <= 80 for line in shown)
    assert "id   why" == shown[0]


def test_what_is_too_wide_becomes_blocks() -> None:
    """When the columns do not fit side by side, each row is a block, and nothing is cut."""
    columns = [f"column_{n}" for n in range(12)]
    shown = lines(columns, [[f"value-{n}" for n in range(12)]], width=60)
    assert ["column 0 value-0", "column 1   value-1"] == shown[:2]
    assert all(f"value-{n}" in "\n".join(shown) for n in range(12))


def test_markup_in_data_is_text() -> None:
    """A device or model cannot paint on the operator's terminal."""
    assert "[red]x[/red]" == lines(["name"], [["[red]x[/red]"]])[1]


def test_escape_sequences_in_data_are_shown_as_marks() -> None:
    """Neither can it do so with the terminal's own codes."""
    assert "\N{REPLACEMENT CHARACTER}[31mred" == lines(["reason"], [["\x1b[31mred"]])[1]


def test_a_table_of_long_names_fits() -> None:
    """When everything is long, names are wrapped too, and nothing is cut off."""
    console = Console(file=io.StringIO(), width=40)
    console.print(table(("device", "groups"), [("a-very-long-name-of-a-camera", "north, " * 9)], width=40))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 40
    assert "a-very-long-name-of-a-camera" == "".join(line.split("  ")[0] for line in shown.splitlines()[1:])
