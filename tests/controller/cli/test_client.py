"""Tests of the API client against servers that misbehave. The real service is tested through the commands."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from controller.api.schema import QueryRequest, RolloutRequest
from controller.client import FleetClient, ServiceLostError, ServiceNotRunningError, TokenError
from controller.errors import ConflictError, ControllerError, NotFoundError, RefusedError

TOKEN = "a-secret-token"
ROLLOUT = {
    "id": "r-1", "model": "m", "version": "1.0.0", "state": "running", "to": ["all"],
    "created_at": "2026-03-01T12:00:00Z", "finished_at": None, "counts": {},
}  # fmt: skip


class Answers(ThreadingHTTPServer):
    """A server that gives prepared answers, one after the other, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, *answers: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Answers

    def handle_one_request(self) -> None:
        self.close_connection = True
        self.raw_requestline = self.rfile.readline()
        if not self.raw_requestline or not self.parse_request():
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((f"{self.command} {self.path}", dict(self.headers), body))
        self.wfile.write(self.server.answers.pop(0))


def answer(status: int, body: bytes = b"", *, kind: str = "application/json", cut: int = 0) -> bytes:
    """Return a response as it goes over the wire; `cut` promises that many bytes more than it has."""
    head = (
        f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body) + cut}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def problem(status: int, code: str) -> bytes:
    detail = {"status": status, "code": code, "title": "T", "detail": f"it is {code}", "hint": "do this"}
    return answer(status, json.dumps(detail).encode(), kind="application/problem+json")


@contextmanager
def client(*answers: bytes) -> Iterator[tuple[FleetClient, Answers]]:
    with Answers(*answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with FleetClient(server.url, TOKEN, timeout_s=10) as connected:
                yield connected, server
        finally:
            server.shutdown()
            thread.join()


def test_every_request_carries_the_token() -> None:
    """The token goes into the header of each request, and nowhere else."""
    with client(answer(200, b"[]")) as (fleet, server):
        fleet.models()
    line, headers, body = server.requests[0]
    assert ("GET /v1/models", f"Bearer {TOKEN}", b"") == (line, headers["Authorization"], body)
    assert TOKEN not in repr(fleet)


def test_names_cannot_leave_their_place_in_the_path() -> None:
    """A name with question marks stays one segment; one that is a path is not sent at all."""
    with client(answer(404)) as (fleet, server), pytest.raises(NotFoundError):
        fleet.device("info?x=1#%2F")
    assert "GET /v1/devices/info%3Fx%3D1%23%252F" == server.requests[0][0]
    for name in ("", ".", "..", "../info", "a/b"):
        with client(answer(200)) as (fleet, server):
            with pytest.raises(NotFoundError, match="nothing has the name") as caught:
                fleet.stop_rollout(name)
            assert ([], "give a name as rollouts are listed") == (server.requests, caught.value.hint)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFoundError), (409, ConflictError), (422, RefusedError), (401, TokenError), (500, ControllerError)],
)
def test_a_problem_is_an_error_of_its_kind(status: int, kind: type[ControllerError]) -> None:
    """Words, hint and code are the service's."""
    with client(problem(status, "this_code")) as (fleet, _), pytest.raises(kind, match="it is this_code") as caught:
        fleet.info()
    assert ("do this", "this_code" if status != 401 else "bad_token") == (caught.value.hint, caught.value.code)


@pytest.mark.parametrize("body", [b"", b"<html>Bad gateway</html>", b"\xff", b'{"status": "x"}'])
def test_an_error_without_a_problem_is_one_still(body: bytes) -> None:
    """A proxy's page is not shown; its status is."""
    with client(answer(502, body, kind="text/html")) as (fleet, _), pytest.raises(ControllerError, match="502"):
        fleet.info()


@pytest.mark.parametrize("body", [b"", b"hello", b"\xff", b'[{"name": 1}]', b"[" * 5_000])
def test_what_is_not_the_api_is_refused(body: bytes) -> None:
    """An answer of another shape is an error that says where to look, never a crash."""
    with client(answer(200, body)) as (fleet, _), pytest.raises(ControllerError, match="not the API") as caught:
        fleet.models()
    assert "--api-url" in caught.value.hint


def test_nobody_at_home_is_said() -> None:
    """The hint says how to start the service."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port, nobody answers
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with FleetClient(url, TOKEN) as fleet, pytest.raises(ServiceNotRunningError, match="no service") as caught:
            fleet.info()
    assert "fleetctl up" in caught.value.hint


def test_an_answer_that_is_cut_off_is_a_loss() -> None:
    """Half an answer is no answer."""
    with client(answer(200, b"[", cut=10)) as (fleet, _), pytest.raises(ServiceLostError, match="went away"):
        fleet.models()


def test_a_rollout_is_started_once() -> None:
    """When the answer is lost, the request is sent again under the same key, by which the service knows it."""
    again = answer(201, json.dumps(ROLLOUT).encode())
    with client(answer(201, b"{", cut=10), again) as (fleet, server):
        assert "r-1" == fleet.start_rollout(RolloutRequest(model="m", version="1.0.0")).id
    first, second = (headers["Idempotency-Key"] for _, headers, _ in server.requests)
    assert first == second
    assert server.requests[0][2] == server.requests[1][2]


def test_every_rollout_has_a_key_of_its_own() -> None:
    """Two pushes of the same release are two rollouts."""
    both = [answer(201, json.dumps(ROLLOUT).encode())] * 2
    with client(*both) as (fleet, server):
        for _ in both:
            fleet.start_rollout(RolloutRequest(model="m", version="1.0.0"))
    assert 2 == len({headers["Idempotency-Key"] for _, headers, _ in server.requests})


def test_events_are_read_as_they_are_written() -> None:
    """Data may come in several lines, comments are signs of life, everything else is skipped."""
    text = json.dumps(ROLLOUT)
    middle = text.index(",") + 1
    lines = [
        ": hello", "", f"event: rollout\ndata: {text}", "", "id: 7", "retry: 10", "",
        f"data:{text[:middle]}", f"data: {text[middle:]}", "", ": still here", "",
    ]  # fmt: skip
    body = "\r\n".join(lines).encode() + b"\r\n"
    with client(answer(200, body, kind="text/event-stream")) as (fleet, _):
        events = list(fleet.rollout_events("r-1", silence_s=5))
    assert [None, "r-1", "r-1", None] == [event and event.id for event in events]


def test_a_stream_that_breaks_is_a_loss() -> None:
    """What came before the break was delivered."""
    body = f"data: {json.dumps(ROLLOUT)}\n\n".encode()
    with client(answer(200, body, kind="text/event-stream", cut=100)) as (fleet, _):
        events = fleet.rollout_events("r-1", silence_s=5)
        assert "r-1" == getattr(next(events), "id", None)
        with pytest.raises(ServiceLostError):
            next(events)


def test_a_stream_that_is_refused_is_the_services_error() -> None:
    """An unknown rollout is not a broken stream."""
    with client(problem(404, "not_found")) as (fleet, _), pytest.raises(NotFoundError, match="it is not_found"):
        next(fleet.rollout_events("r-1", silence_s=5))


def test_a_closed_client_can_be_closed_again() -> None:
    """Closing twice does nothing."""
    fleet = FleetClient("http://127.0.0.1:9", TOKEN)
    fleet.close()
    fleet.close()


def test_a_query_is_sent_as_it_is() -> None:
    """SQL goes to the service, which is the one to judge it."""
    with client(answer(200, b'{"columns": ["a"], "rows": [[1]]}')) as (fleet, server):
        assert ((1,),) == fleet.query(QueryRequest(sql="SELECT 1 AS a")).rows
    assert "SELECT 1 AS a" == json.loads(server.requests[0][2])["sql"]
