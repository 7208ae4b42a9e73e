"""Attacks on the local API from a program on the device, or a web page in its browser: each by its name."""

import contextlib
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from agent.client import LocalClient
from agent.host import ModelHost
from agent.runtime.errors import InputError
from agent.serving.listeners import TcpListener, UnixListener
from agent.serving.openinference import pack_json
from agent.serving.service import LocalService
from protocol.tensors import TensorSpec
from tests.agent.serving.callers import Raw, Status, activate, request_body

INFER = "/v2/models/digits/infer"
DIGITS = "9" * 4_200
"""As many as Python still writes as a decimal number."""
MAX_REPLY_CHARACTERS = 600


def one_input(**fields: str) -> bytes:
    """Return a request whose single input has the given JSON texts."""
    given = {"name": '"x"', "datatype": '"FP32"', "shape": "[1,2]", "data": "[1,2]", **fields}
    return ('{"inputs":[{' + ",".join(f'"{key}":{text}' for key, text in given.items()) + "}]}").encode()


@pytest.mark.parametrize(
    "body",
    [
        one_input(shape=f"[{','.join([DIGITS] * 12)}]"),
        one_input(shape="[9223372036854775807,9223372036854775807]"),
        one_input(shape=f"[1{',1' * 20_000}]"),
        one_input(shape="[-1,-2]"),
        one_input(shape="[true,2]"),
        one_input(parameters=f'{{"binary_data_size":{DIGITS}}}'),
        one_input(parameters=f'{{"binary_data_size":{DIGITS}9}}'),
        one_input(data=f"[1,{DIGITS}]"),
        one_input(data=f"[[1,{DIGITS}]]"),
        one_input(data="[[1,%s]]" % ("9" * 400)),
        one_input(data="[NaN,Infinity]"),
        one_input(data="[1,1e400]"),
        one_input(data="[" * 60_000),
        one_input(data="[" * 30_000 + "]" * 30_000),
        one_input(data='["\\ud800",1]'),
        one_input(datatype='"%s"' % ("F" * 50_000)),
        one_input(datatype='"BYTES"', data='["a","b"]'),
        one_input(name='"\\u0000\\r\\nX-Header: y"'),
        one_input(name='"%s"' % ("x" * 50_000)),
        b'{"zz":' * 10_000,
        b'{"inputs":[' + b",".join([b'{"name":"","datatype":"","shape":[]}'] * 1_700) + b"]}",
        b"\xef\xbb\xbf" + request_body(1, 2),
    ],
    ids=lambda body: body[:60].decode(errors="replace"),
)
def test_json_that_is_meant_to_hurt_is_refused_in_a_few_words(raw: Raw, host: ModelHost, body: bytes) -> None:
    """Huge numbers, deep nesting, foreign literals: a short 400, and the connection is as good as before."""
    activate(host)
    status, _, reply = raw.ask("POST", INFER, body)
    assert (400, {"error", "code"}) == (status, set(reply))
    assert len(reply["error"]) < MAX_REPLY_CHARACTERS
    assert 200 == raw.ask("POST", INFER, request_body(1, 2))[0]


@pytest.mark.parametrize("piece", [b"[]", b"0", b'""', b"{}"])
def test_numbers_are_counted_before_they_are_parsed(piece: bytes) -> None:
    """A body of small pieces would take twenty times its size in memory."""
    data = b"[" + (b"[" + piece + b"],") * 500_000 + piece + b"]"
    spec = TensorSpec(name="x", datatype="FP32", shape=(1, 250_000))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"expected 250,000 numbers .*, got 500,001"):
        pack_json(data, spec)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(data) // 4


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"GET /v2 HTTP/{'x' * 50_000}\r\n", 400),
        (f"GET /v2 HTTP/1.{'9' * 5_000}\r\n", 400),
        ("\x16\x03\x01" + "a" * 30_000 + "\r\n", 400),
        ("GET /v2 HTTP/1.1\r\nContent-Length : 44\r\n", 400),
        ("GET /v2 HTTP/1.1\r\nTransfer-Encoding : chunked\r\n", 400),
        ("GET /v2 HTTP/1.1\r\nno colon\r\nContent-Length: 44\r\n", 400),
        ("GET /v2 HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", 400),
        ("GET /v2 HTTP/1.1\r\nX: a\rHost: localhost\r\nHost: evil.example\r\n", 400),
        (f"POST {INFER} HTTP/1.1\r\nContent-Length: 5, 5\r\n", 400),
        (f"POST {INFER} HTTP/1.1\r\nContent-Length: +5\r\n", 400),
        (f"POST {INFER} HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n", 501),
        ("PRI * HTTP/2.0\r\n", 505),
        ("OPTIONS * HTTP/1.1\r\n", 501),
        (f"{'A' * 60_000} / HTTP/1.1\r\n", 501),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_head_that_two_readers_may_take_for_two_things_ends_the_connection(raw: Raw, head: str, status: int) -> None:
    """What follows is not taken for a second request; the reply does not repeat what came."""
    raw.send(head.encode("latin-1") + b"\r\nGET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
    got, headers, reply = raw.reply()
    assert (status, "close", "bad_request") == (got, headers["connection"], reply["code"])
    assert len(reply["error"]) < MAX_REPLY_CHARACTERS
    assert raw.is_closed()


@pytest.mark.parametrize("is_tcp", [False, True])
def test_caller_that_still_sends_reads_why_it_is_refused(host: ModelHost, path: Path, is_tcp: bool) -> None:
    """A connection that is closed on unread bytes is reset, and the reply lost with it."""
    listener = TcpListener("127.0.0.1:0") if is_tcp else UnixListener(path)
    served = LocalService([listener], host, Status)
    served.start()
    port = int(served.addresses[0].rpartition(":")[2]) if is_tcp else 0
    for header in ("Content-Encoding: br", "Content-Length: 1"):
        with Raw(None if is_tcp else path, port) as raw:
            status, headers, _ = raw.ask("POST", INFER, bytes(5_000_000), header)
            assert (header, "close") == (header, headers["connection"])
            assert status in {400, 403, 415}
    served.close()


def test_port_that_is_full_leaves_the_socket_to_its_owner(host: ModelHost, path: Path) -> None:
    """Programs that hold all connections of a port, each with half a request, keep nobody from the Unix socket."""
    served = LocalService([UnixListener(path), TcpListener("127.0.0.1:0")], host, Status, max_connections=3)
    served.start()
    port = int(served.addresses[1].rpartition(":")[2])
    with contextlib.ExitStack() as stack, LocalClient(path) as client:
        for _ in range(3):
            stack.enter_context(Raw(None, port)).send(b"GET /v2 HT")
        with Raw(None, port) as late:
            assert 503 == late.reply()[0]
        assert {"device_id": "pump-1"} == client.status()
    served.close()


def test_names_of_a_path_stay_names(raw: Raw, host: ModelHost) -> None:
    """Control characters, other encodings and long names are quoted, cut and never part of a header."""
    activate(host)
    for name in ("%00%0d%0aX:%20y", "%ff%fe", "%41" * 15_000, "..%2f..%2fetc", "digits/versions/" + "%41" * 15_000):
        status, headers, reply = raw.ask("GET", f"/v2/models/{name}")
        assert (404, False) == (status, "x" in headers)
        assert len(msgspec.json.encode(reply)) < MAX_REPLY_CHARACTERS
