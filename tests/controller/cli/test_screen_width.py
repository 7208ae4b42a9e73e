"""What fits a terminal of 80 columns: tables of long names, reasons, and messages on stderr."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.cli.screen import Screen, report_error, warn

WIDTH = 80
TABLES = [
    ("device", "liveness", "state", "models", "groups", "last seen"),
    ("device", "state", "details"),
    ("rollout", "release", "to", "state", "well", "bad", "open", "started"),
]
LONG = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
REASON = st.lists(LONG, min_size=1, max_size=8).map(" ".join)


@pytest.fixture(autouse=True)
def a_colourless_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have output look as on a terminal of 80 columns whose user wants no colours."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("columns", TABLES, ids=lambda columns: columns[0])
@given(data=st.data())
def test_long_names_and_reasons_are_folded_not_cut(columns: tuple[str, ...], data: st.DataObject) -> None:
    """No line is wider than the terminal, and every character of every cell is there, in its order."""
    cells = {"details": REASON, "well": st.just("10000"), "bad": st.just("10000"), "open": st.just("10000")}
    cells |= {"liveness": st.just("offline"), "started": st.just("59 min ago"), "last seen": st.just("59 min ago")}
    row = [data.draw(cells.get(name, LONG), label=name) for name in columns]
    with pytest.MonkeyPatch.context() as patch:
        out = _Terminal()
        patch.setattr("sys.stdout", out)
        Screen(is_json=False).table(columns, [row])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.text).splitlines()
    assert [] == [line for line in lines if len(line) > WIDTH]
    shown = sorted("".join(lines).replace(" ", ""))
    assert sorted("".join([*columns, *row]).replace(" ", "")) == shown


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR there is no colour, though words may be bold."""
    out = _Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", out)
    Screen(is_json=False).step("inspect", "fine")
    report_error("it broke", "mend it")
    warn("look out")
    assert [] == re.findall(r"\x1b\[(?:[0-9]*;)*[349][0-9]m", out.text)
    assert "error: " in re.sub(r"\x1b\[[0-9;]*m", "", out.text)


def test_wrapped_messages_have_no_blanks_at_the_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What goes to a file is as wide as COLUMNS says, and can be compared and pasted."""
    monkeypatch.delenv("FORCE_COLOR")
    report_error("word " * 40, "word " * 40)
    warn("word " * 40)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [line.rstrip() for line in lines]
    assert max(map(len, lines)) <= WIDTH


class _Terminal:
    """A file that calls itself a terminal, and keeps what is written to it."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass
