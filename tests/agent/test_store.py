"""The agent's memory: what belongs together is stored together, and nothing of it is lost or grows without end."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import store as store_module
from agent.engine import Deployment, Ended, Goal, Installed, Model, State
from agent.engine.actions import EmitReceipt
from agent.errors import StateError
from agent.store import Store
from protocol.assignment import AgentConfig
from protocol.lifecycle import DeploymentState
from protocol.manifest import FileRef
from protocol.messages import Ack, DeviceUsage, Progress, Reason, TelemetryRecord

FILE = FileRef.of(b"file")
INSTALLED = Installed(version="1.0.0", deployment_id="d1", manifest=FILE, module=FILE, vectors=FILE)
GOAL = Goal(deployment_id="d2", version="1.1.0", manifest=FILE)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty memory."""
    store = Store(tmp_path / "agent.db")
    yield store
    store.close()


def receipt(state: DeploymentState = "downloading", **fields: object) -> EmitReceipt:
    return EmitReceipt(model="m", deployment_id="d2", version="1.1.0", state=state, **fields)  # type: ignore[arg-type]


def record() -> TelemetryRecord:
    usage = DeviceUsage(cpu_permille=1, memory_used_bytes=2, memory_total_bytes=3, agent_memory_bytes=4, uptime_s=5)
    return TelemetryRecord(seq=1, session=1, from_ms=0, to_ms=1, device=usage)


names = st.sampled_from(["a", "b", "c"])
models = st.builds(
    Model,
    active=st.none() | st.just(INSTALLED),
    goal=st.none() | st.just(GOAL),
    current=st.none() | st.builds(
        Deployment,
        goal=st.just(GOAL),
        state=st.sampled_from(["downloading", "activated"]),
        since_ms=st.integers(0, 1 << 40),
        fault=st.none() | st.just(Reason.of("trap", "unreachable\ud7ff\0")),
    ),
)  # fmt: skip
states = st.builds(
    State,
    models=st.dictionaries(names, models),
    settled=st.lists(
        st.builds(Ended, st.text(max_size=5), st.sampled_from(["failed", "succeeded"]), st.just("code")), max_size=3
    ).map(tuple),
    config=st.builds(AgentConfig, soak_ms=st.integers(0, 1000)),
    director_version=st.integers(0, 1 << 50),
)


@pytest.mark.property
@given(st.lists(states, min_size=1, max_size=5))
def test_what_is_saved_is_what_is_loaded(history: list[State]) -> None:
    """Any sequence of states leaves exactly the last one."""
    store = Store(Path(":memory:"))
    old = store.load()
    for new in history:
        store.save(old, new, [], at_ms=0, session=1)
        old = new
        assert new == store.load()
    store.close()


def test_receipts_are_numbered_in_the_order_in_which_they_are_stored(store: Store) -> None:
    """Numbers rise by one and carry time and session."""
    stored = store.save(State(), State(), [receipt("retrieved"), receipt("downloading")], at_ms=7, session=3)
    assert [(1, "retrieved", 7, 3), (2, "downloading", 7, 3)] == [(r.seq, r.state, r.at_ms, r.session) for r in stored]
    assert stored == store.receipts(after=0, limit=10)
    assert stored[1:] == store.receipts(after=1, limit=10)


def test_numbers_go_on_after_a_restart_and_after_acks(tmp_path: Path) -> None:
    """A number is never used twice, also when everything before was acknowledged and deleted."""
    for expected in (1, 2, 3):
        store = Store(tmp_path / "agent.db")
        (stored,) = store.save(State(), State(), [receipt()], at_ms=0, session=1)
        assert expected == stored.seq
        assert store.acknowledge(Ack(device_id="d", stream=store.stream, receipts=stored.seq))
        assert () == store.receipts(after=0, limit=10)
        store.close()


def test_old_progress_makes_way_for_new_progress(store: Store) -> None:
    """While nobody listens only the latest progress of a download is kept; transitions all are."""
    for number in range(5):
        progress = Progress(done_bytes=number, total_bytes=5)
        store.save(State(), State(), [receipt(progress=progress)], at_ms=0, session=1)
        store.save(State(), State(), [receipt("downloaded")], at_ms=0, session=1)
    kept = store.receipts(after=0, limit=100)
    assert ["downloaded"] * 4 + ["downloading", "downloaded"] == [r.state for r in kept]


def test_ack_of_another_memory_deletes_nothing(store: Store) -> None:
    """An ack for a stream that this device lost, or for numbers never given out, is not believed."""
    store.save(State(), State(), [receipt()], at_ms=0, session=1)
    assert not store.acknowledge(Ack(device_id="d", stream="another", receipts=1))
    assert not store.acknowledge(Ack(device_id="d", stream=store.stream, receipts=2))
    assert not store.acknowledge(Ack(device_id="d", stream=store.stream, telemetry=1))
    assert 1 == store.backlog().receipts


def test_telemetry_is_bounded_and_the_loss_is_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest records go first; receipts never do."""
    monkeypatch.setattr(store_module, "MAX_TELEMETRY_RECORDS", 3)
    store.save(State(), State(), [receipt()], at_ms=0, session=1)
    for _ in range(5):
        store.add_telemetry(record())
    assert [3, 4, 5] == [r.seq for r in store.telemetry(after=0, limit=10)]
    backlog = store.backlog()
    assert (1, 3, 2) == (backlog.receipts, backlog.telemetry, backlog.dropped_telemetry)


def test_floors_never_fall(store: Store) -> None:
    """Each role keeps its own highest version; the signed time is the last one."""
    store.raise_floors({"director": 5, "targets": 2}, signed_time_ms=1000)
    store.raise_floors({"director": 4, "targets": 3})
    assert ({"director": 5, "targets": 3}, 1000) == (store.floors(), store.signed_time_ms())
    store.raise_floors({"director": 6}, signed_time_ms=900)
    assert ({"director": 6, "targets": 3}, 900) == (store.floors(), store.signed_time_ms())


def test_sessions_count_the_starts(tmp_path: Path) -> None:
    """Every start has a number of its own."""
    found = []
    for _ in range(3):
        store = Store(tmp_path / "agent.db")
        found.append(store.next_session())
        store.close()
    assert [1, 2, 3] == found


def test_another_memory_has_another_stream(tmp_path: Path) -> None:
    """The controller can tell a device that lost its memory from one that repeats itself."""
    first, second = Store(tmp_path / "a.db"), Store(tmp_path / "b.db")
    assert first.stream != second.stream
    first.close()
    second.close()


def test_memory_of_a_newer_agent_is_refused(tmp_path: Path) -> None:
    """An old agent does not touch what it does not understand."""
    db = sqlite3.connect(tmp_path / "agent.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StateError, match="update fleet-agent"):
        Store(tmp_path / "agent.db")


def test_memory_of_an_older_agent_is_understood(tmp_path: Path) -> None:
    """It kept which deployments ended, not how."""
    db = sqlite3.connect(tmp_path / "agent.db")
    for statement in (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
        "CREATE TABLE models (name TEXT PRIMARY KEY, state TEXT NOT NULL) STRICT",
        "CREATE TABLE floors (role TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT",
        "CREATE TABLE receipts (seq INTEGER PRIMARY KEY, deployment_id TEXT NOT NULL, is_progress INTEGER NOT NULL, "
        "payload TEXT NOT NULL) STRICT",
        "CREATE TABLE telemetry (seq INTEGER PRIMARY KEY, payload TEXT NOT NULL) STRICT",
        'INSERT INTO meta VALUES (\'device\', \'{"settled":["d1","d2"],"director_version":7}\')',
        "INSERT INTO meta VALUES ('session', '3')",
        "PRAGMA user_version = 1",
    ):
        db.execute(statement)
    db.commit()
    db.close()
    store = Store(tmp_path / "agent.db")
    state = store.load()
    assert (["d1", "d2"], 7, 4) == (
        [ended.deployment_id for ended in state.settled],
        state.director_version,
        store.next_session(),
    )
    store.close()


def test_memory_that_is_no_database_is_moved_aside(tmp_path: Path) -> None:
    """A damaged file does not brick the device: it begins anew and keeps the file for whoever wants to see it."""
    path = tmp_path / "agent.db"
    path.write_bytes(b"not a database" * 1000)
    store = Store(path)
    assert State() == store.load()
    store.close()
    assert 1 == len(list(tmp_path.glob("agent.db.damaged-*")))


def test_memory_with_a_damaged_page_is_moved_aside(tmp_path: Path) -> None:
    """The header is whole, a page behind it is not: found at the start, not at the first use of each start."""
    path = tmp_path / "agent.db"
    store = Store(path)
    store.save(State(), State(director_version=7), [receipt("retrieved")] * 50, at_ms=0, session=1)
    store.close()
    raw = path.read_bytes()
    path.write_bytes(raw[:4096] + b"\xa5" * (len(raw) - 4096))
    store = Store(path)
    assert State() == store.load()
    assert 1 == store.next_session()
    store.close()
    assert [raw[:100]] == [found.read_bytes()[:100] for found in tmp_path.glob("agent.db.damaged-*")]


@pytest.mark.parametrize(
    "damage",
    [
        "INSERT INTO models VALUES ('m', '{')",
        "INSERT INTO models VALUES ('m', '{\"active\": 5}')",
        "INSERT OR REPLACE INTO meta VALUES ('device', '[]')",
        "INSERT OR REPLACE INTO meta VALUES ('session', 'x')",
        "INSERT INTO receipts VALUES (1, 'd', 0, '{}')",
        "INSERT INTO telemetry VALUES (1, 'x')",
        "DROP TABLE meta",
    ],
)
def test_memory_with_a_damaged_value_is_moved_aside(tmp_path: Path, damage: str) -> None:
    """Every page is whole, but what it holds was never written by an agent."""
    path = tmp_path / "agent.db"
    Store(path).close()
    db = sqlite3.connect(path)
    db.execute(damage)
    db.commit()
    db.close()
    store = Store(path)
    assert State() == store.load()
    assert 1 == store.next_session()
    store.close()
    assert 1 == len(list(tmp_path.glob("agent.db.damaged-*")))


def test_memory_that_is_damaged_while_it_is_open_is_an_error_of_the_state(store: Store) -> None:
    """What the main loop expects and outlives, from a read as from a write; later uses work again."""
    db = store._db  # nobody else can open it
    db.execute("INSERT INTO meta VALUES ('session', 'x')")
    db.execute("INSERT INTO receipts VALUES (1, 'd', 0, '{')")
    db.execute("DROP TABLE floors")
    with pytest.raises(StateError):
        store.floors()
    with pytest.raises(StateError):
        store.receipts(after=0, limit=1)
    with pytest.raises(StateError):
        store.next_session()
    db.execute("DELETE FROM meta WHERE key = 'session'")
    assert 1 == store.next_session()


_WRITER = """
import sys
from pathlib import Path
from agent.engine import State
from agent.engine.actions import EmitReceipt
from agent.store import Store
store = Store(Path(sys.argv[1]))
old = store.load()
while True:
    version = old.director_version + 1
    new = State(director_version=version)
    receipt = EmitReceipt(model="m", deployment_id=str(version), version="1.0.0", state="retrieved")
    store.save(old, new, [receipt], at_ms=0, session=1)
    old = new
    print(version, flush=True)
"""


def test_killed_writer_leaves_state_and_receipts_that_belong_together(tmp_path: Path) -> None:
    """A writer is killed at random moments: what it said is stored is stored, with exactly its receipts."""
    path = tmp_path / "agent.db"
    said = 0
    for round_number in range(5):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        for _ in range(20 + 7 * round_number):
            said = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        said = max([said, *(int(line) for line in writer.stdout.read().split())])
        writer.stdout.close()
        writer.wait()
        store = Store(path)
        version = store.load().director_version
        receipts = store.receipts(after=0, limit=10_000)
        assert version >= said
        assert [str(n) for n in range(1, version + 1)] == [r.deployment_id for r in receipts]
        store.close()
