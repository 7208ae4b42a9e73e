"""Every command that the code advises exists: in an error, a hint, a `next:` line, a log."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import docs_cli
from tests.docs_blocks import HOUSE

ROOMS = ("protocol", "compiler", "agent", "controller")
FILES = [path for room in ROOMS for path in sorted((HOUSE / room).rglob("*.py"))]

_PROSE = ("fleetctl needs the package", "fleet-agent stops")
"""Texts that begin with the name of a command and are none."""


def texts(source: str) -> Iterator[str]:
    """Yield every text of a module that is no docstring; what is filled in at run time is an X."""
    tree = ast.parse(source)
    inner: set[int] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant()):
                inner.add(id(node.value))
            case ast.JoinedStr(values=values):
                inner.update(map(id, values))
                parts = [v.value if isinstance(v, ast.Constant) else "X" for v in values]
                yield "".join(map(str, parts))
            case ast.Constant(value=str(text)) if id(node) not in inner:
                yield text


def advice(source: str) -> list[str]:
    """Return the commands that the texts of a module name."""
    return [command for text in texts(source) if not text.startswith(_PROSE) for command in docs_cli.commands_in(text)]


def test_advice_is_found() -> None:
    """The test sees quoted commands, bare ones and what is filled in; docstrings are not advice."""
    source = '''
"""Docstring of `fleetctl nonsense`."""
a = f"see `fleetctl devices show {device}` or `fleetctl push FILE`"
b = "next: fleetctl up"
c = "fleetctl devices explain " + x
d = "  fleetctl push model.wasm     a release"
'''
    expected = {"fleetctl devices show X", "fleetctl push FILE", "fleetctl up", "fleetctl devices explain"}
    assert {*expected, "fleetctl push model.wasm"} == set(advice(source))
    assert len([a for path in FILES for a in advice(path.read_text())]) > 40


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(HOUSE).as_posix())
def test_what_is_advised_exists(path: Path) -> None:
    """The command and its options parse; a command that is only named may lack its arguments."""
    assert {} == docs_cli.problems(advice(path.read_text()))
