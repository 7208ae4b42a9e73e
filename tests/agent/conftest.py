"""What forks models, and a broker, for the whole session of a worker; for each test a device of its own.

Each device has a topic prefix of its own too.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

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
