"""The engine with its memory, the queue of the main loop, and the documents that come and stay away."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core import Core
from agent.documents import FIRST_PATIENCE_MS, MAX_PATIENCE_MS, Documents
from agent.engine import Goal, State, actions
from agent.engine.actions import Action
from agent.engine.events import AssignmentAccepted
from agent.errors import StateError
from agent.inbox import Inbox
from agent.store import Store
from agent.trust import Document, Judgement
from protocol.messages import Reason, Receipt, Want


class FakeClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_ms = 0

    def wall_ms(self) -> int:
        return self.now_ms

    def monotonic_ms(self) -> int:
        return self.now_ms


class FullStore(Store):
    """A memory whose disk is full for a while."""

    is_full = False

    def save(self, old: State, new: State, receipts: object, *, at_ms: int, session: int) -> tuple[Receipt, ...]:
        if self.is_full:
            raise StateError("cannot write the agent's state: database or disk is full")
        return super().save(old, new, receipts, at_ms=at_ms, session=session)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FullStore]:
    """An empty memory."""
    store = FullStore(tmp_path / "agent.db")
    yield store
    store.close()


def removal(number: int) -> AssignmentAccepted:
    goal = Goal(deployment_id=f"d{number}", version="1.0.0", is_removal=True)
    return AssignmentAccepted(version=number, goals={"m": goal})


def test_step_that_cannot_be_stored_is_not_taken(store: FullStore) -> None:
    """Nothing is done that is not stored; when there is room again the step is taken, once."""
    done: list[Action] = []
    core = Core(store, FakeClock(), 1, done.append)
    core.drain()
    done.clear()
    store.is_full = True
    core.post(removal(1))
    core.drain()
    core.drain()
    assert (True, [], 0) == (core.is_stalled, done, core.state.director_version)
    store.is_full = False
    core.drain()
    assert (False, 1) == (core.is_stalled, core.state.director_version)
    assert ["retrieved", "removed"] == [a.state for a in done if isinstance(a, actions.EmitReceipt)]


def test_actions_may_post_events_and_see_the_state_that_they_belong_to(store: FullStore) -> None:
    """What an action leads to is taken after all other actions of its step."""
    seen: list[tuple[str, int]] = []

    def act(action: Action) -> None:
        if isinstance(action, actions.Unload):
            core.post(removal(2))
        seen.append((type(action).__name__, core.state.director_version))

    core = Core(store, FakeClock(), 1, act)
    core.drain()
    core.post(removal(1))
    core.drain()
    versions = [version for _, version in seen]
    assert sorted(versions) == versions
    assert 2 == core.state.director_version


def test_inbox_makes_those_wait_who_can(store: FullStore) -> None:
    """A full inbox holds up the network; a signal passes; closing lets everybody go."""
    inbox: Inbox[int] = Inbox(2)
    inbox.put(1)
    inbox.put(2)
    waiting = threading.Thread(target=inbox.put, args=(3,))
    waiting.start()
    inbox.put_now(0)
    assert waiting.is_alive()
    assert [1, 2] == [inbox.take(5), inbox.take(5)]
    waiting.join(5)
    assert [0, 3, None] == [inbox.take(5), inbox.take(5), inbox.take(0)]
    inbox.put(4)
    inbox.put(5)
    stuck = threading.Thread(target=inbox.put, args=(6,))
    stuck.start()
    inbox.close()
    stuck.join(5)
    assert not stuck.is_alive()


class Judge:
    """A trust that judges as a test says."""

    def __init__(self) -> None:
        self.judgement = Judgement()
        self.count = 0

    def judge(self, document: Document, raw: bytes, wall_ms: int) -> Judgement:
        return self.judge_again(wall_ms)

    def judge_again(self, wall_ms: int) -> Judgement:
        self.count += 1
        return self.judgement


class Desk:
    """The documents of a device, and what it asks for."""

    def __init__(self) -> None:
        self.judge = Judge()
        self.wants: list[str] = []
        self.accepted: list[AssignmentAccepted] = []
        self.documents = Documents(self.judge, self.accepted.append, self._want)  # type: ignore[arg-type] # the part that it uses

    def _want(self, want: Want) -> None:
        self.wants.append(want.kind)

    def receive(self, *documents: Document, now_ms: int = 0) -> None:
        for document in documents:
            self.documents.receive(document, b"raw", wall_ms=0, now_ms=now_ms)

    def tick(self, now_ms: int) -> None:
        self.documents.tick(wall_ms=0, now_ms=now_ms)


def test_broker_without_the_repository_is_noticed() -> None:
    """A broker that lost its memory: the device asks for the metadata, a little later, then ever more rarely."""
    desk = Desk()
    desk.documents.connected(0)
    desk.receive("director")
    asked = []
    for now_ms in range(0, 4 * MAX_PATIENCE_MS, 1_000):
        before = len(desk.wants)
        desk.tick(now_ms)
        asked += [now_ms] if len(desk.wants) > before else []
    assert FIRST_PATIENCE_MS == asked[0]
    assert {"metadata"} == set(desk.wants)
    assert MAX_PATIENCE_MS == asked[-1] - asked[-2]


def test_device_without_an_assignment_asks_for_one() -> None:
    """It cannot know whether there is none or whether the broker lost it."""
    desk = Desk()
    desk.documents.connected(0)
    desk.receive("timestamp", "metadata")
    desk.tick(FIRST_PATIENCE_MS)
    assert ["director"] == desk.wants


def test_complete_documents_are_not_asked_for() -> None:
    """When all is well the device is silent."""
    desk = Desk()
    desk.documents.connected(0)
    desk.receive("timestamp", "metadata", "director")
    desk.tick(10 * MAX_PATIENCE_MS)
    assert [] == desk.wants


def test_document_that_is_not_believed_is_asked_for_and_judged_again() -> None:
    """The controller may have a better one; and the clock may have been set."""
    desk = Desk()
    desk.judge.judgement = Judgement(problems={"director": Reason.of("expired", "it ended")})
    desk.receive("timestamp", "metadata", "director")
    count = desk.judge.count
    desk.tick(FIRST_PATIENCE_MS)
    assert ["director"] == desk.wants
    desk.judge.judgement = Judgement(assignment=removal(1))
    desk.tick(60_000)
    assert count + 1 == desk.judge.count
    assert [removal(1)] == desk.accepted
    assert {} == desk.documents.problems


def test_deleted_retained_message_says_nothing() -> None:
    """An empty payload is the broker's way to say that there is none."""
    desk = Desk()
    desk.documents.receive("director", b"", wall_ms=0, now_ms=0)
    assert 0 == desk.judge.count


def test_problem_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The same bad document with every reconnection fills no log."""
    desk = Desk()
    desk.judge.judgement = Judgement(problems={"director": Reason.of("bad_signature", "not signed")})
    for _ in range(5):
        desk.receive("director")
    assert 1 == len([record for record in caplog.records if "not signed" in record.message])
