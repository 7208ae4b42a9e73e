"""A real service on a real socket."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.client import LocalClient
from agent.host import ModelHost
from agent.serving.listeners import UnixListener
from agent.serving.service import LocalService
from agent.usage import UsageMeter
from tests.agent.serving.callers import Raw, Status


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for sockets, wherever the tests run."""
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        yield Path(name)


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "agent.sock"


@pytest.fixture
def host() -> Iterator[ModelHost]:
    host = ModelHost(UsageMeter(), lambda *_: None)
    yield host
    host.close()


@pytest.fixture
def service(path: Path, host: ModelHost) -> Iterator[LocalService]:
    service = LocalService([UnixListener(path)], host, Status)
    service.start()
    yield service
    service.close()


@pytest.fixture
def client(service: LocalService, path: Path) -> Iterator[LocalClient]:
    with LocalClient(path) as client:
        yield client


@pytest.fixture
def raw(service: LocalService, path: Path) -> Iterator[Raw]:
    with Raw(path) as raw:
        yield raw
