"""What the tests of the service share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controller.service.fleet import FleetCore, open_core
from tests.controller.service.restorable import Restorable


@pytest.fixture(scope="session")
def new_fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet that was started once, to copy: making the keys and tables takes longer than most tests."""
    folder = tmp_path_factory.mktemp("new-fleet")
    with open_core(folder):
        pass
    return folder


@pytest.fixture
def fleet(new_fleet: Path, tmp_path: Path) -> Iterator[FleetCore]:
    """A new fleet of one's own: database, files and keys."""
    shutil.copytree(new_fleet, tmp_path, dirs_exist_ok=True)
    with open_core(tmp_path) as opened:
        yield opened


@pytest.fixture
def restorable(new_fleet: Path, tmp_path: Path) -> Restorable:
    """A fleet with nothing in it."""
    shutil.copytree(new_fleet, tmp_path, dirs_exist_ok=True)
    return Restorable(tmp_path)
