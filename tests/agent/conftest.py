"""What forks models, and a broker, for the whole session of a worker; for each test a device of its own.

Each device has a topic prefix of its own too.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.runtime import Zygote
from controller.broker import BrokerProcess, start_broker
from protocol.identifiers import parse_device_id
from tests.agent.rig import Agent, Backend
from tests.agent.signing import Signing

_numbers = itertools.count()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A mosquitto of this worker's own."""
    with start_broker("mosquitto", port=0, directory=tmp_path_factory.mktemp("broker")) as process:
        yield process


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """What forks the processes of models; one for all tests of a worker."""
    with Zygote() as zygote:
        yield zygote


@pytest.fixture(params=["thread", "process"])
def isolation(request: pytest.FixtureRequest) -> Zygote | None:
    """Both isolation levels, as `load_model` is told of them."""
    if request.param == "thread":
        return None
    found: Zygote = request.getfixturevalue("zygote")
    return found


class Sync(NamedTuple):
    """What one `fsync` of this process made durable, and what lay beside it then; `data` of a folder is empty."""

    path: Path
    data: bytes
    beside: dict[str, bytes]


Syncs = list[Sync]


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    """Every `fsync` that this process does, in order."""
    seen: Syncs = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        folder = path if path.is_dir() else path.parent
        data = b"" if path.is_dir() else path.read_bytes()
        seen.append(Sync(path, data, {each.name: each.read_bytes() for each in folder.iterdir() if each != path}))

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


@pytest.fixture
def backend(broker: BrokerProcess) -> Iterator[Backend]:
    """What stands in the controller's place, for a fleet of its own."""
    link = new_backend(broker)
    yield link
    link.close()


@pytest.fixture
def agent(broker: BrokerProcess, backend: Backend, tmp_path: Path) -> Iterator[Agent]:
    """An enrolled device that does not run yet."""
    process = new_agent(broker, backend, tmp_path / "state")
    yield process
    process.stop()


def new_backend(broker: BrokerProcess) -> Backend:
    """Return a fleet with a topic prefix and a device id that no other test uses."""
    name = f"{os.getpid()}-{next(_numbers)}"
    return Backend(broker.url, Signing(device=parse_device_id(f"device-{name}")), prefix=f"test-{name}")


def new_agent(broker: BrokerProcess, backend: Backend, state_dir: Path, log_dir: Path | None = None) -> Agent:
    """Return an enrolled device of that fleet."""
    backend.signing.enroll(state_dir, broker.url, prefix=backend.topics.prefix)
    return Agent(state_dir, log_dir)
