"""Callers who are turned away: they hear why, whatever they are about to send, and hold nothing for long."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.client import AgentBusyError, LocalClient
from agent.host import ModelHost
from agent.serving import lingering
from agent.serving.listeners import TcpListener, UnixListener
from agent.serving.service import LocalService
from tests.agent.rig import wait_for
from tests.agent.serving.callers import Raw, Status

BODY = bytes(8 << 20)
HEAD = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY)
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def port(path: Path, host: ModelHost) -> Iterator[int]:
    """A service on a socket and a port, each with a single place that is taken."""
    service = LocalService([UnixListener(path), TcpListener("127.0.0.1:0")], host, Status, max_connections=1)
    service.start()
    number = int(service.addresses[1].rpartition(":")[2])
    with Raw(path) as first, Raw(None, number) as second:
        for raw in (first, second):
            raw.send(LIVE)
            assert 200 == raw.reply()[0]
        yield number
    service.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine of the tests is, nobody is hung up on because of the time."""
    monkeypatch.setattr(lingering, "LINGER_S", 60.0)


def caller(path: Path, port: int, kind: str) -> Raw:
    return Raw(path) if kind == "socket" else Raw(None, port)


@pytest.mark.parametrize("kind", ["socket", "port"])
def test_caller_who_sends_a_large_body_hears_why_it_is_turned_away(
    path: Path, port: int, patient: None, kind: str
) -> None:
    """All of the body can be sent, and then the answer is read and the connection ends without a reset."""
    with caller(path, port, kind) as raw:
        raw.send(HEAD + BODY)
        status, headers, reply = raw.reply()
        assert (503, "overloaded") == (status, reply["code"])
        assert ("close", "1") == (headers["connection"], headers["retry-after"])
        assert raw.is_closed()


@pytest.mark.parametrize("kind", ["socket", "port"])
def test_python_client_tells_that_the_agent_is_busy(path: Path, port: int, patient: None, kind: str) -> None:
    """Not that it does not run, although it had no place for the request."""
    where = path if kind == "socket" else f"127.0.0.1:{port}"
    with LocalClient(where) as client, pytest.raises(AgentBusyError, match="too many connections"):
        client._send("POST", "/v2/models/digits/infer", BODY, {})


@pytest.mark.parametrize("bound", ["LINGER_S", "MAX_BYTES"])
def test_caller_who_goes_on_for_ever_is_hung_up_on(
    path: Path, port: int, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """Either bound ends it: the time, or the bytes."""
    monkeypatch.setattr(lingering, "LINGER_S", 60.0)
    monkeypatch.setattr(lingering, bound, 0.1 if bound == "LINGER_S" else 1_000_000)
    with Raw(path) as raw:
        while can_send(raw, BODY):
            pass


def test_silent_caller_is_hung_up_on(path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told to go and does nothing keeps nothing open."""
    monkeypatch.setattr(lingering, "LINGER_S", 0.1)
    with Raw(path) as raw:
        assert 503 == raw.reply()[0]
        assert raw.is_closed()  # our side says nothing more
        wait_for("the other side takes nothing more", lambda: not can_send(raw))


def test_too_many_of_them_make_room(path: Path, port: int, patient: None) -> None:
    """The one that has lingered for longest goes."""
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Raw(path)) for _ in range(lingering.MAX_CALLERS + 1)]
        for raw in callers:
            assert 503 == raw.reply()[0]
        wait_for("the first goes", lambda: not can_send(callers[0]))
        assert all(can_send(raw) for raw in callers[1:])


def test_nobody_waits_for_those_who_linger(path: Path, host: ModelHost, patient: None) -> None:
    """A place that becomes free is given to the next caller, while another is still told to go."""
    service = LocalService([UnixListener(path)], host, Status, max_connections=1)
    service.start()
    with Raw(path) as first, Raw(path) as lingerer:
        first.send(LIVE)
        assert (200, 503) == (first.reply()[0], lingerer.reply()[0])
        first.socket.close()
        wait_for("the next is served", lambda: is_served(path))
        assert can_send(lingerer)
        service.close()
        assert not can_send(lingerer)


def can_send(raw: Raw, data: bytes = b" ") -> bool:
    """Return whether the service has not hung up yet."""
    try:
        raw.send(data)
    except OSError:
        return False
    return True


def is_served(path: Path) -> bool:
    with Raw(path) as raw:
        raw.send(LIVE)
        return raw.reply()[0] == 200
