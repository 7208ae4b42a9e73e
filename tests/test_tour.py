"""The tours of the documents, each run from beginning to end."""

from pathlib import Path

import pytest

from tests.tour import EXAMPLES, HOUSE, README, Tour, blocks, normal

DOCUMENTS = [
    pytest.param(
        path,
        id="README" if path == README else path.parent.name,
        marks=[pytest.mark.needs("node")] if "$ node" in path.read_text() else [],
    )
    for path in (README, *EXAMPLES)
]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_prints_what_is_shown(document: Path, tmp_path: Path) -> None:
    """But for times, ids and numbers, and for where the cells of a table break, which hangs on the times."""
    shown = [pair for block in blocks(document.read_text()) for pair in block]
    assert len(shown) >= 3
    with Tour(tmp_path, document) as tour:
        for command, output in shown:
            assert sorted(normal(output).split()) == sorted(normal(tour.run(command)).split()), f"$ {command}"


def test_every_command_of_an_example_belongs_to_a_tour() -> None:
    """No page of the examples has a command that is not run here."""
    for path in (HOUSE / "examples").glob("*/README.md"):
        text = path.read_text()
        assert path in EXAMPLES
        assert text.count("```console") == text.count("<!-- tour -->\n```console")
