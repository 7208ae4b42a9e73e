"""One running fleet for all tests of the command line that do not break it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controller.cli.fleets import Fleet
from tests.controller.wat_models import DOUBLE, wasm


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet with its service and broker; tests use devices, groups and models of their own."""
    running = Fleet(tmp_path_factory.mktemp("cli"))
    yield running
    running.close()


@pytest.fixture
def doubler(tmp_path: Path) -> Path:
    """A model file that doubles two numbers, and that names neither itself nor a version."""
    path = tmp_path / "doubler.wasm"
    path.write_bytes(wasm(DOUBLE))
    return path
