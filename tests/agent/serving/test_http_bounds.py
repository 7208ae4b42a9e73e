"""Slow, endless and foreign callers: each is bounded in time and size, and harms nobody else."""

import collections
import contextlib
import gzip
import http.client
import io
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.client import AgentBusyError, LocalClient
from agent.host import ModelHost
from agent.serving import body, connection, lingering, service
from agent.serving.gate import Gate
from agent.serving.listeners import ListenerError, TcpListener, UnixListener
from agent.serving.service import LocalService
from tests.agent.serving.callers import Raw, Status, activate, request_body

INFER = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: agent\r\n"
CHUNKED = INFER + b"Transfer-Encoding: chunked\r\n\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_reply_ends_in_its_time_however_slowly_it_is_read() -> None:
    """A caller that takes a little now and then does not hold a thread for as long as it likes."""
    ours, theirs = socket.socketpair()
    is_over = threading.Event()

    def sip() -> None:
        while not is_over.wait(0.02):
            theirs.recv(8_192)

    caller = threading.Thread(target=sip)
    caller.start()
    source = body.PatientSocket(ours)
    source.allow_write(0.5)
    start_s = time.monotonic()
    reply = memoryview(bytes(1_000_000))
    try:
        with pytest.raises(TimeoutError):
            collections.deque(iter(lambda: source.write(reply), None), maxlen=0)  # without end
    finally:
        is_over.set()
        caller.join()
    assert 0.4 < time.monotonic() - start_s < 5
    with pytest.raises(TimeoutError):  # and nothing is sent behind half a reply
        source.write(memoryview(b"more"))
    ours.close()
    theirs.close()


def in_chunks(data: bytes, size: int, *, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    return chunks + b"0\r\n" + trailers + b"\r\n"


@pytest.fixture
def port(host: ModelHost) -> Iterator[int]:
    served = LocalService([TcpListener("127.0.0.1:0")], host, Status)
    served.start()
    yield int(served.addresses[0].rpartition(":")[2])
    served.close()


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_body_in_chunks_is_put_together(raw: Raw, host: ModelHost, size: int) -> None:
    """However it is cut, with extensions and trailers, and the connection stays."""
    activate(host)
    for _ in range(2):
        chunks = in_chunks(request_body(1, 2), size, extension=b";name=value", trailers=b"X-Checksum: 1\r\n")
        raw.send(CHUNKED + chunks)
        status, _, reply = raw.reply()
        assert (200, [2.0, 4.0]) == (status, reply["outputs"][0]["data"])


@pytest.mark.parametrize(
    "chunks",
    [
        b"x\r\n",
        b"-1\r\n",
        b"\r\n",
        b"3 \nabc",
        b"5\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n",
        b"fffffffff\r\n",
        b"1" * 2000,
        b"0\r\n" + b"A: b\r\n" * 100 + b"\r\n",
    ],
)
def test_chunks_that_are_none_end_the_connection(raw: Raw, host: ModelHost, chunks: bytes) -> None:
    """Where the body ends cannot be told, so that the next request cannot be found."""
    activate(host)
    raw.send(CHUNKED + chunks + b"\r\n" * 3)
    status, headers, reply = raw.reply()
    assert (400, "close", "bad_request") == (status, headers["connection"], reply["code"])


def test_chunks_without_end_are_cut_off(raw: Raw, host: ModelHost) -> None:
    """The limit holds for the sum of all chunks, and the caller reads why."""
    activate(host)
    raw.send(CHUNKED + in_chunks(b" " * 150_000, 50_000))
    status, _, reply = raw.reply()
    assert (413, "limit_exceeded") == (status, reply["code"])


def test_a_compressed_body_counts_as_what_it_holds(raw: Raw, host: ModelHost) -> None:
    """A small body cannot become a large one, and a damaged one is the caller's mistake."""
    activate(host)
    bomb = gzip.compress(b" " * 50_000_000)
    for coding, data, expected in (
        ("gzip", gzip.compress(request_body(1, 2)), 200),
        ("deflate", zlib.compress(request_body(1, 2)), 200),
        ("gzip", bomb, 413),
        ("gzip", gzip.compress(request_body(1, 2))[:-9], 400),
        ("gzip", request_body(1, 2), 400),
        ("gzip", gzip.compress(request_body(1, 2)) + b"more", 400),
    ):
        status, _, reply = raw.ask("POST", "/v2/models/digits/infer", data, f"Content-Encoding: {coding}")
        assert expected == status
        assert (status == 413) == ("got 98,305 or more" in reply.get("error", ""))
    assert len(bomb) < 98_000


class Pieces(io.BytesIO):
    """What a caller sends, and how much of it was taken at a time at most."""

    most_bytes = 0

    def read(self, size: int | None = -1) -> bytes:
        self.most_bytes = max(self.most_bytes, len(self.getvalue()) if size is None or size < 0 else size)
        return super().read(size)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_nobody_wants_is_never_held(is_chunked: bool) -> None:
    """It is thrown away as it comes: many such callers together would hold more than any bound."""
    size = 8_000_000
    sent = Pieces(in_chunks(bytes(size), size) if is_chunked else bytes(size))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert body.Body(body.PatientSocket(ours), sent, None if is_chunked else size).drain()
    assert b"" == sent.read(1)
    assert sent.most_bytes <= 65_536


def test_a_body_is_asked_for_when_it_is_wanted(raw: Raw, host: ModelHost) -> None:
    """`Expect: 100-continue` is answered at once, and not at all for what is refused anyway."""
    activate(host)
    asked = request_body(1, 2)
    head = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(asked)
    raw.send(INFER + head)
    assert b"HTTP/1.1 100 Continue\r\n\r\n" == raw.socket.recv(4096)
    raw.send(asked)
    assert 200 == raw.reply()[0]
    raw.send(INFER.replace(b"digits", b"other") + head)
    status, headers, _ = raw.reply()
    assert (404, "close") == (status, headers["connection"])


@pytest.mark.parametrize(
    "sent", [b"G", b"GET /v2 HTTP/1.1\r\n", INFER + b"Content-Length: 500\r\n\r\n{", CHUNKED + b"fff\r\n"]
)
def test_a_caller_who_dawdles_is_told_and_cut_off(
    raw: Raw, host: ModelHost, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """A byte now and then does not keep a thread: the time for a whole head or body is bounded."""
    activate(host)
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.3)
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.3)
    is_over = threading.Event()

    def drip() -> None:
        while not is_over.wait(0.05):
            try:
                raw.send(b" ")
            except OSError:
                return

    raw.send(sent)
    dripping = threading.Thread(target=drip)
    dripping.start()
    begin = time.monotonic()
    status, headers, _ = raw.reply()
    took_s = time.monotonic() - begin
    is_over.set()
    dripping.join()
    assert (408, "close") == (status, headers["connection"])
    assert took_s < 5


def test_an_idle_connection_ends(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks nothing for long is let go without a word."""
    monkeypatch.setattr(connection, "IDLE_TIMEOUT_S", 0.2)
    raw.send(LIVE)
    raw.reply()
    assert raw.is_closed()


def test_a_caller_who_does_not_read_is_let_go(
    path: Path, raw: Raw, host: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies that nobody takes do not hold a thread for ever."""
    monkeypatch.setattr(connection, "REPLY_TIMEOUT_S", 0.2)
    activate(host)
    with pytest.raises(OSError):  # noqa: PT011 - a broken pipe or a reset, as the kernel has it
        raw.send(LIVE * 100_000)
    with LocalClient(path) as client:
        assert {"device_id": "pump-1"} == client.status()


def test_a_resting_connection_makes_room_for_a_new_one(
    path: Path, host: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept connections that do nothing cannot lock others out."""
    monkeypatch.setattr(service, "MIN_IDLE_S", 0.05)
    served = LocalService([UnixListener(path)], host, Status, max_connections=2)
    served.start()
    with Raw(path) as first, Raw(path) as second:
        for raw in (first, second):
            raw.send(LIVE)
            assert 200 == raw.reply()[0]
        time.sleep(0.1)
        with LocalClient(path) as client:
            assert {"device_id": "pump-1"} == client.status()
            answered = 0
            for raw in (first, second):
                with contextlib.suppress(ConnectionError, http.client.HTTPException):
                    raw.send(LIVE)
                    answered += raw.reply()[0] == 200
            assert 1 == answered
    served.close()


@pytest.mark.parametrize("is_tcp", [False, True])
def test_hundreds_may_come_at_once(path: Path, is_tcp: bool) -> None:
    """Each gets as far as to hear that there is no place, none is refused by the kernel without a word."""
    listener = TcpListener("127.0.0.1:0") if is_tcp else UnixListener(path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener.open())
        port = int(listener.address.rpartition(":")[2]) if is_tcp else 0
        for _ in range(200):
            stack.enter_context(Raw(None if is_tcp else path, port))


def test_agent_with_too_many_callers_is_busy_and_not_away(path: Path) -> None:
    """Who cannot even wait is told to try again, and not to start an agent that runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.bind(str(path))
        agent.listen(0)
        with Raw(path), LocalClient(path) as client, pytest.raises(AgentBusyError, match="too many callers"):
            client.status()


@pytest.mark.parametrize("is_tcp", [False, True])
def test_who_is_turned_away_reads_why_however_late_it_sends(
    path: Path, host: ModelHost, monkeypatch: pytest.MonkeyPatch, is_tcp: bool
) -> None:
    """A caller that is told 503 before it has said all that it wanted is not reset."""
    monkeypatch.setattr(lingering, "LINGER_S", 20.0)
    served = LocalService(
        [TcpListener("127.0.0.1:0") if is_tcp else UnixListener(path)], host, Status, max_connections=1
    )
    served.start()
    port = int(served.addresses[0].rpartition(":")[2]) if is_tcp else 0
    with Raw(None if is_tcp else path, port) as first, Raw(None if is_tcp else path, port) as late:
        first.send(b"GET /v2 HT")
        assert late.socket.recv(1, socket.MSG_PEEK)
        for _ in range(3):
            late.send(LIVE)
        status, headers, reply = late.reply()
        assert (503, "close", "1", "overloaded") == (
            status,
            headers["connection"],
            headers["retry-after"],
            reply["code"],
        )
    served.close()


def test_a_port_answers_programs_on_this_device_alone(port: int, host: ModelHost) -> None:
    """A web page cannot make a browser run models: neither by its own name for this address, nor from its own site."""
    for headers, expected in (
        (b"Host: localhost:8000\r\n", 200),
        (b"Host: 127.0.0.1\r\n", 200),
        (b"Host: [::1]:8000\r\n", 200),
        (b"Host: evil.example:8000\r\n", 403),
        (b"Host: 127.0.0.1.evil.example\r\n", 403),
        (b"", 403),
        (b"Host: localhost\r\nOrigin: https://evil.example\r\n", 403),
    ):
        with Raw(None, port) as raw:
            raw.send(b"GET /v2 HTTP/1.1\r\n" + headers + b"\r\n")
            assert (expected, headers) == (raw.reply()[0], headers)


def test_the_host_in_a_target_counts_more_than_the_header(port: int) -> None:
    """RFC 9112, section 3.2.2: a target in absolute form is understood, and its host is the one that is meant."""
    for target, host, expected in (
        (b"http://localhost:8000/v2", b"evil.example", 200),
        (b"HTTP://127.0.0.1/v2?x=http://evil.example", b"localhost", 200),
        (b"http://evil.example/v2", b"localhost", 403),
        (b"http://localhost@evil.example/v2", b"localhost", 403),
        (b"http://localhost", b"localhost", 404),
        (b"ftp://localhost/v2", b"localhost", 404),
    ):
        with Raw(None, port) as raw:
            raw.send(b"GET %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, host))
            assert (expected, target) == (raw.reply()[0], target)


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:8000", "192.168.1.1:8000", "8000", ":8000", "127.0.0.1", "127.0.0.1:99999", "[::]:1", "a:1", ""],
)
def test_no_port_is_opened_to_the_network(address: str) -> None:
    """Nobody is asked for a password, so nobody else may come in."""
    with pytest.raises(ListenerError, match="expected a loopback address and a port"):
        TcpListener(address)


def test_a_port_that_is_taken_is_waited_for(path: Path, host: ModelHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any program may take a port: the Unix socket answers all the same, and the port does once it is free."""
    monkeypatch.setattr(service, "RETRY_S", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        served = LocalService([UnixListener(path), TcpListener(address)], host, Status)
        served.start()
        assert ((str(path),), [address]) == (served.addresses, list(served.problems))
        assert f"cannot listen on {address}: Address already in use; choose another" in served.problems[address]
        with LocalClient(path) as client:
            assert {"device_id": "pump-1"} == client.status()
    end = time.monotonic() + 20
    while served.problems and time.monotonic() < end:
        time.sleep(0.01)
    with LocalClient(address) as client:
        assert {"device_id": "pump-1"} == client.status()
    served.close()
    assert ((), {}) == (served.addresses, served.problems)


def test_service_that_waits_for_a_port_can_be_closed(path: Path, host: ModelHost) -> None:
    """Nothing is left behind, and nobody waits for the next attempt."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        served = LocalService([UnixListener(path), TcpListener(address)], host, Status)
        served.start()
        served.close()
    assert not path.exists()
    assert "local-service" not in [thread.name for thread in threading.enumerate()]


def test_six_is_as_good_as_four(host: ModelHost) -> None:
    """The loopback address of IPv6 works where the machine has it, and is refused with the reason elsewhere."""
    has_six = False
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        has_six = True
    served = LocalService([TcpListener("[::1]:0")], host, Status)
    if not has_six:
        with pytest.raises(ListenerError, match="cannot listen on"):
            served.start()
        return
    served.start()
    assert served.addresses[0].startswith("[::1]:")
    served.close()


def test_bodies_of_all_callers_together_are_bounded(path: Path, host: ModelHost) -> None:
    """Who asks for more than there is room for is told to come again."""
    activate(host)
    served = LocalService([UnixListener(path)], host, Status, gate=Gate(max_bodies_bytes=10_000))
    served.start()
    with Raw(path) as slow, Raw(path) as second:
        slow.send(INFER + b"Content-Length: 9000\r\n\r\n{")
        end = time.monotonic() + 20
        while True:
            padded = request_body(1, 2) + b" " * 5000
            status, headers, reply = second.ask("POST", "/v2/models/digits/infer", padded)
            if status == 429 or time.monotonic() > end:
                break
        assert (429, "1", "overloaded") == (status, headers["retry-after"], reply["code"])
        slow.send(request_body(1, 2)[1:].ljust(8999))
        assert 200 == slow.reply()[0]
        assert 200 == second.ask("POST", "/v2/models/digits/infer", padded)[0]
    served.close()
