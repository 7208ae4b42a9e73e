"""A disk without room, for real: what is installed is served, the reason is told, and room alone mends it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli import EXIT_FAILED
from agent.engine import State
from agent.engine.actions import EmitReceipt
from agent.errors import StateError
from agent.store import Store
from controller.broker import BrokerProcess
from protocol.chunks import cut
from tests.agent.conftest import new_agent
from tests.agent.disk import Disk, mounted
from tests.agent.rig import CHUNK_BYTES, Agent, Backend, wait_for
from tests.agent.signing import Bundle, bundle

pytestmark = pytest.mark.needs("mosquitto", "tmpfs")

DISK_BYTES = 24 << 20
MEMORY_FILES = ("agent.db", "agent.db-wal")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of a device's own."""
    with mounted(tmp_path / "state", DISK_BYTES) as disk:
        yield disk


@pytest.fixture
def agent(broker: BrokerProcess, backend: Backend, disk: Disk) -> Iterator[Agent]:
    """An enrolled device on that disk. Its standard error goes elsewhere: the disk will be full."""
    process = new_agent(broker, backend, disk.folder, log_dir=disk.folder.parent)
    yield process
    process.stop()


@pytest.fixture
def first(agent: Agent, backend: Backend) -> Bundle:
    """The committed release of the device, which is stopped."""
    release = bundle()
    backend.release(release)
    backend.assign(release)
    agent.start()
    backend.wait_end(release)
    assert 0 == agent.stop()
    return release


def problem(agent: Agent) -> dict[str, str] | None:
    """Return what the status says of the memory."""
    found: dict[str, str] | None = agent.status()["problems"].get("memory")
    return found


def assert_serves_and_complains(agent: Agent) -> None:
    agent.wait_serving()
    assert ("1.0.0", 2.0) == agent.infer()
    wait_for("the problem", lambda: problem(agent), agent.log)
    found = problem(agent)
    assert found is not None
    assert ("disk_full", True) == (found["code"], "free some space" in found["message"])
    assert "nothing can be stored" in agent.log()


def test_agent_started_on_a_full_disk_serves_and_goes_on_by_itself(
    agent: Agent, backend: Backend, disk: Disk, first: Bundle
) -> None:
    """What is installed answers, the status and the log say why nothing new comes; with room, the update is taken."""
    second = bundle("1.1.0", 2, factor=3.0)
    backend.release(second)
    disk.fill()
    agent.start()
    assert_serves_and_complains(agent)
    backend.assign(second)
    wait_for("the document is seen", lambda: "director" in agent.status()["problems"], agent.log)
    assert [] == backend.states("deploy-scale-1.1.0")
    disk.free()
    backend.wait_end(second)
    assert ("1.1.0", 3.0) == agent.infer()
    wait_for("no problem", lambda: agent.status()["problems"] == {}, agent.log)
    assert "can be stored again" in agent.log()


@pytest.mark.parametrize("point", ["fetch.chunk_written:2", "install.tested", "activate.after_swap", "commit.after"])
def test_agent_that_died_mid_install_serves_on_a_full_disk_and_finishes_later(
    agent: Agent, backend: Backend, disk: Disk, first: Bundle, point: str
) -> None:
    """A power cut and a full disk at once: one of the two releases answers, and the installation ends with room."""
    second = bundle("1.1.0", 2, factor=3.0, padding_bytes=20_000)
    backend.release(second)
    backend.assign(second)
    agent.start(fault=point)
    agent.wait_killed()
    disk.fill()
    agent.start()
    agent.wait_serving()
    assert agent.infer() in [("1.0.0", 2.0), ("1.1.0", 3.0)]
    wait_for("the problem", lambda: problem(agent), agent.log)
    disk.free()
    backend.wait_end(second)
    assert ("1.1.0", 3.0) == agent.infer()


def test_disk_that_fills_up_during_a_download_delays_it(
    agent: Agent, backend: Backend, disk: Disk, first: Bundle
) -> None:
    """The download waits with what it has, the release before serves; with room, it ends well."""
    second = bundle("1.1.0", 2, factor=3.0, padding_bytes=100_000)
    backend.release(second)
    blob = cut(second.files[0], CHUNK_BYTES).blob
    last = len(cut(second.files[0], CHUNK_BYTES).index.chunks) - 1
    backend.is_answering = False
    backend.publish(backend.topics.chunk(blob, last), b"")
    agent.start()
    backend.assign(second)
    backend.wait("the wish for a chunk", lambda: any(last in want.chunks for want in backend.wants))
    disk.fill()
    backend.publish(backend.topics.chunk(blob, last), cut(second.files[0], CHUNK_BYTES).chunk(last))
    wait_for("the problem", lambda: problem(agent), agent.log)
    assert ("1.0.0", 2.0) == agent.infer()
    disk.free()
    backend.wait_end(second)
    assert ("1.1.0", 3.0) == agent.infer()


def test_download_leaves_room_for_the_memory(agent: Agent, backend: Backend, disk: Disk, first: Bundle) -> None:
    """A release that would fit to the last byte is refused, with the figures: the agent has to be able to write."""
    second = bundle("1.1.0", 2, padding_bytes=600_000)
    backend.release(second)
    disk.fill(free_bytes=3 << 20)
    agent.start()
    backend.assign(second)
    receipt = backend.wait_end(second, "failed")
    assert receipt.reason is not None
    assert ("disk_full", True) == (receipt.reason.code, "to stay free" in receipt.reason.message)
    assert ("1.0.0", 2.0) == agent.infer()
    assert problem(agent) is None


def test_first_start_on_a_full_disk_says_what_to_do(agent: Agent, backend: Backend, disk: Disk) -> None:
    """There is nothing to serve yet, and nothing to keep it in."""
    disk.fill()
    agent.start()
    assert EXIT_FAILED == agent.process.wait(30)
    assert "free some space" in agent.log()


def test_files_that_nothing_needs_make_room_at_the_start(
    agent: Agent, backend: Backend, disk: Disk, first: Bundle
) -> None:
    """What is left of work that was given up is deleted before a person is asked for room."""
    (disk.folder / "files" / ("ab" * 32)).write_bytes(bytes(1 << 20))
    disk.fill()
    agent.start()
    agent.wait_serving()
    wait_for("no problem", lambda: problem(agent) is None, agent.log)


def test_memory_on_a_disk_that_became_read_only_is_read(disk: Disk) -> None:
    """A file system that the kernel made read-only after an error: what was stored is there; later it is written."""
    path = disk.folder / "agent.db"
    receipt = EmitReceipt(model="m", deployment_id="d", version="1.0.0", state="retrieved")
    store = Store(path)
    store.save(State(), State(director_version=7), [receipt], at_ms=0, session=store.next_session())
    store.close()
    disk.remount("ro")
    store = Store(path)
    assert (7, 2) == (store.load().director_version, store.next_session())
    assert store.problem is not None
    with pytest.raises(StateError):
        store.raise_floors({"targets": 1})
    assert not store.retry()
    disk.remount("rw")
    assert store.retry()
    store.raise_floors({"targets": 1})
    store.close()
    store = Store(path)
    assert (None, {"targets": 1}, 3) == (store.problem, store.floors(), store.next_session())
    store.close()


def test_memory_that_was_not_closed_is_read_whole_on_a_full_disk(disk: Disk, tmp_path: Path) -> None:
    """What the write-ahead log holds counts, also where nothing can be written beside it."""
    store = Store(tmp_path / "agent.db")
    store.save(State(), State(director_version=7), [], at_ms=0, session=1)
    for name in MEMORY_FILES:
        shutil.copy(tmp_path / name, disk.folder / name)
    store.close()
    disk.fill()
    store = Store(disk.folder / "agent.db")
    assert (7, 1) == (store.load().director_version, store.next_session())
    assert store.problem is not None
    disk.free()
    assert store.retry()
    store.close()
