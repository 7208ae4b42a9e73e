"""What the tests of the service share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controller.service.asking import publish
from tests.controller.service.fleet import FleetCore, Recorder, open_core
from tests.controller.service.restorable import Restorable
from tests.controller.service.serving import Served, serving


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


@pytest.fixture
def broker() -> Recorder:
    """A broker that a test looks into."""
    return Recorder()


@pytest.fixture
def served(fleet: FleetCore) -> Iterator[Served]:
    """The fleet, served."""
    with serving(fleet) as running:
        yield running


@pytest.fixture(scope="module")
def shared(new_fleet: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One fleet with one release, for all requests that change nothing."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(new_fleet, folder, dirs_exist_ok=True)
    with open_core(folder) as fleet, serving(fleet) as running:
        publish(running)
        yield running
