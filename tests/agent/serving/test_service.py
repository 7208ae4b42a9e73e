"""The local API over its socket: a real service, a real client, and callers who do not behave."""

import os
import resource
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.client import (
    AgentBusyError,
    InferenceFailedError,
    LocalClient,
)
from agent.host import ModelHost
from agent.serving.body import MAX_DRAIN_BYTES
from agent.serving.gate import Gate
from agent.serving.listeners import ListenerError, UnixListener
from agent.serving.service import LocalService
from tests.agent.rig import wait_for
from tests.agent.serving.callers import DOUBLE, Raw, Status, activate, request_body


def test_shortage_of_file_descriptors_passes(
    service: LocalService, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that cannot be accepted waits until it can be; the service goes on."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
        waiting.settimeout(20)
        lowest_free = os.dup(waiting.fileno())
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
        try:
            waiting.connect(os.fspath(path))
            wait_for("the shortage is logged", lambda: "cannot accept a local connection" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        waiting.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: agent\r\n\r\n")
        assert waiting.recv(12) == b"HTTP/1.1 200"


def test_shortage_of_threads_passes(service: LocalService, path: Path) -> None:
    """A connection that gets no thread is told that the agent is busy; the next one is served."""
    usual_bytes = threading.stack_size(1 << 60)  # more than any machine has
    try:
        with Raw(path) as raw:
            assert 503 == raw.reply()[0]
    finally:
        threading.stack_size(usual_bytes)
    with LocalClient(path) as client:
        assert {"device_id": "pump-1"} == client.status()


def test_concurrent_callers_get_their_own_answers(service: LocalService, path: Path, host: ModelHost) -> None:
    """Each thread sees the double of its own numbers, on whichever release."""
    activate(host)
    wrong: list[Any] = []

    def call(n: int) -> None:
        with LocalClient(path) as client:
            for i in range(50):
                got = client.infer("digits", {"x": [n, i]}).outputs["y"].values
                if got != [2 * n, 2 * i]:
                    wrong.append((n, i, got))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for n in range(20):
        activate(host, f"1.0.{n + 1}")
    for thread in threads:
        thread.join()
    assert [] == wrong


def test_health_and_metadata_follow_the_protocol(raw: Raw, host: ModelHost) -> None:
    """What a client of the Open Inference Protocol asks first."""
    assert (200, {"live": True}) == raw.ask("GET", "/v2/health/live")[::2]
    assert (503, {"ready": False}) == raw.ask("GET", "/v2/health/ready")[::2]
    status, _, body = raw.ask("GET", "/v2/models/digits/ready")
    assert (503, "unknown_model") == (status, body["code"])
    activate(host)
    assert (200, {"ready": True}) == raw.ask("GET", "/v2/health/ready")[::2]
    assert (200, {"name": "digits", "ready": True}) == raw.ask("GET", "/v2/models/digits/ready")[::2]
    assert 200 == raw.ask("GET", "/v2/models/digits/versions/1.0.0/ready")[0]
    status, _, body = raw.ask("GET", "/v2")
    assert (200, "fleet-agent", ["binary_tensor_data", "sequence"]) == (status, body["name"], body["extensions"])
    assert {
        "name": "digits",
        "versions": ["1.0.0"],
        "platform": "wasm_fleet",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2]}],
        "labels": {"y": ["no", "yes"]},
        "max_batch_size": 256,
    } == raw.ask("GET", "/v2/models/digits")[2]


def test_json_inference_follows_the_protocol(raw: Raw, host: ModelHost) -> None:
    """A request as any client of the protocol makes it."""
    activate(host)
    status, headers, body = raw.ask("POST", "/v2/models/digits/infer", request_body(1, 2))
    assert (200, "application/json") == (status, headers["content-type"])
    assert {
        "model_name": "digits",
        "model_version": "1.0.0",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [2.0, 4.0]}],
    } == body


def test_errors_have_the_form_of_the_protocol(raw: Raw, host: ModelHost) -> None:
    """Every error is JSON with a message, on a connection that stays."""
    activate(host)
    infer = "/v2/models/digits/infer"
    for expected, method, target, body in (
        (404, "GET", "/", b""),
        (404, "GET", "/v2/models/", b""),
        (404, "GET", "/v2/models/" + "d" * 3000, b""),
        (404, "GET", "/v2/models/digits/versions/9.0.0", b""),
        (405, "GET", infer, b""),
        (404, "POST", "/v2/models/other/infer", request_body(1, 2)),
        (405, "POST", "/v2/health/live", b""),
        (400, "POST", infer, b""),
        (400, "POST", infer, b"{"),
        (400, "POST", infer, request_body(1, 2, 3)),
        (413, "POST", infer, b" " * 100_000),
    ):
        status, headers, reply = raw.ask(method, target, body)
        assert (expected, method, target) == (status, method, target)
        assert {"error", "code"} == set(reply)
        assert len(reply["error"]) < 500
        assert "connection" not in headers
    assert 200 == raw.ask("POST", infer, request_body(1, 2))[0]


def test_wrong_method_is_told_with_the_right_one(raw: Raw, host: ModelHost) -> None:
    """RFC 9110, section 15.5.6: the reply lists what is allowed."""
    activate(host)
    for method, target, allowed in (("GET", "/v2/models/digits/infer", "POST"), ("POST", "/v2/models/digits", "GET")):
        status, headers, reply = raw.ask(method, target)
        assert (405, allowed, "wrong_method") == (status, headers["allow"], reply["code"])


def test_head_is_get_without_a_body(raw: Raw) -> None:
    """As monitors ask whether somebody is there; the next reply follows the head at once."""
    for target, status in (("/v2/health/live", b"200"), ("/v2/health/ready", b"503"), ("/x", b"404")):
        raw.send(b"HEAD %s HTTP/1.1\r\nHost: agent\r\n\r\n" % target.encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += raw.socket.recv(1)
        assert head.startswith(b"HTTP/1.1 " + status)
        assert b"\r\nContent-Length: " in head
        assert {"live": True} == raw.ask("GET", "/v2/health/live")[2]


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("GARBAGE\r\n\r\n", 400),
        ("GET / HTTP/9.9\r\n\r\n", 505),
        ("DELETE /v2 HTTP/1.1\r\n\r\n", 501),
        ("GET /" + "a" * 70_000 + " HTTP/1.1\r\n\r\n", 414),
        ("GET /v2 HTTP/1.1\r\n" + "A: b\r\n" * 200 + "\r\n", 431),
        ("GET /v2 HTTP/1.1\r\nA: " + "b" * 70_000 + "\r\n\r\n", 431),
        ("POST /v2/models/digits/infer HTTP/1.1\r\n\r\n", 411),
        ("POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        ("POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        ("POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        ("POST /v2/models/digits/infer HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n", 501),
        ("POST /v2/models/digits/infer HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
        ("POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: 9\r\nContent-Encoding: br\r\n\r\n", 415),
        ("POST /v2 HTTP/1.1\r\nContent-Length: 9\r\nContent-Encoding: gzip\r\nContent-Encoding: deflate\r\n\r\n", 415),
    ],
)
def test_what_is_not_http_ends_the_connection_with_a_reason(
    raw: Raw, service: LocalService, request_text: str, status: int
) -> None:
    """The caller is told, then the connection ends: what follows could mean anything."""
    raw.send(request_text.encode())
    got, headers, body = raw.reply()
    assert (status, "close", "bad_request") == (got, headers["connection"], body["code"])
    assert raw.is_closed()


def test_body_too_large_to_throw_away_ends_the_connection(raw: Raw, host: ModelHost) -> None:
    """A caller cannot make the agent read for ever, and still reads why."""
    activate(host)
    raw.send(b"POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_DRAIN_BYTES + 1))
    status, headers, _ = raw.reply()
    assert (413, "close") == (status, headers["connection"])
    assert raw.is_closed()


def test_caller_that_hangs_up_in_a_request_harms_nobody(
    service: LocalService, path: Path, client: LocalClient, host: ModelHost
) -> None:
    """Half a request is dropped and the next caller is served."""
    activate(host)
    for head in ("GET", "POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: 50\r\n\r\n{"):
        with Raw(path) as raw:
            raw.send(head.encode())
    assert [2.0, 4.0] == client.infer("digits", {"x": [1, 2]}).outputs["y"].values


def test_requests_on_one_connection_do_not_run_into_each_other(raw: Raw, host: ModelHost) -> None:
    """The body of a refused request is not taken for the next one."""
    activate(host)
    smuggled = b"GET /v1/status HTTP/1.1\r\n\r\n"
    assert 404 == raw.ask("POST", "/v2/models/other/infer", smuggled)[0]
    assert {"live": True} == raw.ask("GET", "/v2/health/live")[2]


def test_pipelined_requests_are_answered_in_order(raw: Raw) -> None:
    """A caller may ask several things before it reads."""
    head = b"GET %s HTTP/1.1\r\nHost: agent\r\n\r\n"
    raw.send(head % b"/v2/health/live" + head % b"/v1/status")
    response = b""
    while b"pump-1" not in response:
        response += raw.socket.recv(4096)
    assert response.index(b'{"live":true}') < response.index(b'{"device_id":"pump-1"}')


def test_too_many_connections_are_turned_away(path: Path, host: ModelHost) -> None:
    """Who comes too late is told to come again, and those inside are served."""
    service = LocalService([UnixListener(path)], host, Status, max_connections=1)
    service.start()
    with LocalClient(path) as first, LocalClient(path) as second:
        first.status()
        with pytest.raises(AgentBusyError) as busy:
            second.status()
        assert "overloaded" == busy.value.code
        assert {"device_id": "pump-1"} == first.status()
    service.close()


def test_failure_of_the_daemon_is_told_without_its_details(
    path: Path, host: ModelHost, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug behind the status is in the log, and a plain error for the caller."""

    def fail() -> msgspec.Struct:
        raise RuntimeError("secret")

    service = LocalService([UnixListener(path)], host, fail)
    service.start()
    with LocalClient(path) as client, pytest.raises(InferenceFailedError, match="see the agent's log") as failed:
        client.status()
    service.close()
    assert "secret" not in str(failed.value)
    assert "a request of the local API failed" in caplog.messages


def test_socket_is_for_the_owner_alone(service: LocalService, path: Path) -> None:
    """Other users of the machine can neither read inputs nor run models."""
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert [path] == list(path.parent.iterdir())


def test_stale_socket_is_replaced_and_removed_in_the_end(path: Path, host: ModelHost) -> None:
    """What a killed agent left behind does not stop the next one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    service = LocalService([UnixListener(path)], host, Status)
    service.start()
    with LocalClient(path) as client:
        assert {"device_id": "pump-1"} == client.status()
    service.close()
    service.close()
    assert [] == list(path.parent.iterdir())


def test_other_files_are_not_replaced(path: Path, host: ModelHost) -> None:
    """A mistyped path does not cost anybody a file."""
    path.write_text("precious")
    with pytest.raises(ListenerError, match="another kind of file"):
        LocalService([UnixListener(path)], host, Status).start()
    assert "precious" == path.read_text()


def test_path_too_long_for_a_socket_is_explained(folder: Path, host: ModelHost) -> None:
    """The limit is the system's, and the way out is ours to name."""
    with pytest.raises(ListenerError, match="choose another state folder"):
        LocalService([UnixListener(folder / ("d" * 100) / "agent.sock")], host, Status).start()


def test_closing_lets_a_running_request_end(path: Path, host: ModelHost) -> None:
    """A request under way when the agent stops is answered."""
    slow = """(local $i i32)
      (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 20000000))))"""
    activate(host, infer=slow + DOUBLE)
    service = LocalService([UnixListener(path)], host, Status)
    service.start()
    with Raw(path) as raw:
        body = request_body(1, 2)
        raw.send(b"POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        service.close()
        assert 200 == raw.reply()[0]
        assert raw.is_closed()


def test_hammering_callers_are_answered_in_turn_or_turned_away(path: Path, host: ModelHost) -> None:
    """With 32 callers and room for 8 nobody waits behind more than 8 others, and every request has an answer."""
    slow = """(local $i i32)
      (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 2000000))))"""
    activate(host, infer=slow + DOUBLE)
    service = LocalService([UnixListener(path)], host, Status, gate=Gate(max_waiting=8))
    service.start()
    outcomes: list[str] = []

    def call(n: int) -> None:
        with LocalClient(path) as client:
            for i in range(10):
                try:
                    values = client.infer("digits", {"x": [n, i]}).outputs["y"].values
                    outcomes.append("right" if values == [2 * n, 2 * i] else "wrong")
                except AgentBusyError as error:
                    outcomes.append(error.code)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    service.close()
    assert 320 == len(outcomes)
    assert {"right", "overloaded"} == set(outcomes)
