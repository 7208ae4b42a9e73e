"""The tour of the README, run from beginning to end."""

from pathlib import Path

import pytest

from tests.tour import README, Tour, blocks, normal


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_tour_of_the_readme(tmp_path: Path) -> None:
    """Every command of the tour prints what the README shows, but for times, ids and numbers."""
    shown = [pair for block in blocks(README.read_text()) for pair in block]
    assert len(shown) > 10
    with Tour(tmp_path) as tour:
        for command, output in shown:
            # Where a cell of a table breaks depends on how long ago something was: the words are compared.
            assert sorted(normal(output).split()) == sorted(normal(tour.run(command)).split()), f"$ {command}"
