"""Fleets of real processes."""

from collections.abc import Iterator

import pytest

from tests.system.rig import Rig


@pytest.fixture
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A running broker and service, on mosquitto and MQTT 5, with no device yet."""
    # A short folder: the path of a Unix socket may have 107 characters.
    made = Rig(tmp_path_factory.mktemp("rig"))
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def stopped_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A fleet whose broker and service the test starts itself."""
    made = Rig(tmp_path_factory.mktemp("rig"))
    try:
        yield made
    finally:
        made.close()
