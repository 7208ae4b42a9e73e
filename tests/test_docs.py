"""The documents are true: made parts are what the code says, links lead somewhere, commands run."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from agent.bindings import check_bindings
from agent.policy import Policy
from protocol.topics import Topics
from tests import docs_cli
from tests.docs_blocks import DOCUMENTS, HOUSE, rewrite

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_COMMAND = re.compile(r"^ *(?:\$ )?((?:fleetctl|fleet-agent)(?: .*)?)$", re.MULTILINE)
_SHELL = re.compile(r"^ *```(?:sh|console)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`((?:fleetctl|fleet-agent) [^`]+)`")
_FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)

document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(HOUSE).as_posix())


@document
def test_made_parts_are_what_the_code_says(path: Path) -> None:
    """Examples, tables and diagrams equal what the code makes; `python -m tests.docs_blocks` writes them."""
    text = path.read_text()
    assert rewrite(text) == text


@document
def test_links_lead_somewhere(path: Path) -> None:
    """Every link to a file of the project, and to a heading in it, exists."""
    for target in _LINK.findall(_FENCE.sub("", path.read_text())):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(file), f"{path.name} links to {target}, which has no such heading"


def anchors(file: Path) -> set[str]:
    """Return the anchors that headings of a document get."""
    headings = _HEADING.findall(_FENCE.sub("", file.read_text()))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@document
def test_commands_exist(path: Path) -> None:
    """Every command line of a document, in a block or in the text, parses: command, options and arguments."""
    text = path.read_text()
    lines = [line for block in _SHELL.findall(text) for line in _COMMAND.findall(block.replace("\\\n", " "))]
    assert {} == {line: wrong for line in lines if (wrong := docs_cli.problem(line))}
    inline = [line for line in _INLINE.findall(text) if "|" not in line and "…" not in line]
    assert {} == {line: wrong for line in inline if (wrong := docs_cli.problem(line)) and "Missing" not in wrong}


@document
def test_every_page_names_what_it_is(path: Path) -> None:
    """A document that is not empty begins with one heading of the first order, and has no other."""
    text = _FENCE.sub("", path.read_text())
    if text:
        assert text.startswith("# ")
        assert 1 == len(re.findall(r"^# ", text, re.MULTILINE))


def test_make_targets_exist() -> None:
    """Every `make` command of the documents and of CI is a target of the Makefile."""
    makefile = (HOUSE / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    texts = [path.read_text() for path in DOCUMENTS] + [(HOUSE / ".ci" / "run").read_text()]
    named = {name for text in texts for name in re.findall(r"(?:`|^|\" )make ([a-z-]+)(?=`|$| +#)", text, re.MULTILINE)}
    assert {"demo", "test", "test-all"} <= named
    assert set() == named - targets
    assert set() == set(re.findall(r"^#   make ([a-z-]+)", makefile, re.MULTILINE)) ^ targets


def test_the_policy_shown_is_the_default() -> None:
    """The `policy.toml` of the device's page has every setting, with its default."""
    block = re.search(r"```toml\n(.*?)```", (HOUSE / "docs" / "AGENT.md").read_text(), re.DOTALL)
    assert block
    shown = tomllib.loads(block[1])
    assert msgspec.to_builtins(Policy()) == {"bindings": (), **shown}


def test_the_bindings_shown_are_accepted() -> None:
    """docs/AGENT.md shows a binding that can be copied."""
    block = re.search(r"```toml\n(\[\[bindings\]\]\n.*?)```", (HOUSE / "docs" / "AGENT.md").read_text(), re.DOTALL)
    assert block
    policy = msgspec.convert(tomllib.loads(block[1]), Policy)
    check_bindings(policy.bindings, Topics())
    assert 1 == len(policy.bindings)


def test_every_reason_is_listed() -> None:
    """Each code that the agent gives as a reason, by its name alone or by an error's, is in the protocol's tables."""
    listed = set(re.findall(r"^\| `(\w+)` \|", (HOUSE / "docs" / "PROTOCOL.md").read_text(), re.MULTILINE))
    source = "\n".join(path.read_text() for path in sorted((HOUSE / "agent").rglob("*.py")))
    given = re.findall(r"(?:Reason\.of\(|_failed\(action, )\s*\"(\w+)\"", source)
    assert len(given) > 5
    assert set() == set(given) - listed


@document
def test_named_tests_exist(path: Path) -> None:
    """Each test that a document names as proof is there."""
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", path.read_text()):
        assert re.search(rf"^def {name}\(", (HOUSE / file).read_text(), re.MULTILINE), f"{file} has no {name}"


def test_every_decision_is_listed() -> None:
    """The index of decisions names every page of the folder."""
    folder = HOUSE / "docs" / "adr"
    pages = {path.name for path in folder.glob("0*.md")}
    assert pages == set(re.findall(r"\((0\d{3}[^)]+)\)", (folder / "README.md").read_text()))
