"""Models that go wrong and turns that do not come, as a caller over HTTP hears of them, on both isolation levels."""

import hashlib
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host import ModelHost
from agent.runtime import Zygote
from agent.serving.gate import Gate
from agent.serving.listeners import UnixListener
from agent.serving.service import LocalService
from tests.agent.serving.callers import RESET, SPIN, SUM, Raw, Status, activate, request_body

INFER = "/v2/models/digits/infer"


@pytest.fixture
def gate() -> Gate:
    """The gate of the service, so that a test can stand in it."""
    return Gate()


@pytest.fixture
def raw(path: Path, host: ModelHost, gate: Gate) -> Iterator[Raw]:
    service = LocalService([UnixListener(path)], host, Status, gate=gate)
    service.start()
    with Raw(path) as raw:
        yield raw
    service.close()


def test_a_turn_that_does_not_come_in_the_time_of_the_request_is_504(
    raw: Raw, host: ModelHost, gate: Gate, isolation: Zygote | None
) -> None:
    """The model did not run, nor does it later; the next request has its turn."""
    activate(host, infer=SUM, reset=RESET, isolation=isolation)
    with gate.turn("digits", time.monotonic()):
        begin = time.monotonic()
        status, headers, reply = raw.ask("POST", INFER, request_body(5, 0, timeout=50_000))
        took_s = time.monotonic() - begin
    assert (504, "request_timeout") == (status, reply["code"])
    assert "connection" not in headers
    assert 0.05 <= took_s < 10
    status, _, reply = raw.ask("POST", INFER, request_body(1, 0, timeout=20_000_000))
    assert (200, 1.0) == (status, reply["outputs"][0]["data"][0])


@pytest.mark.parametrize(
    "timeout", [-1, 1.5, "soon", True, 10**30, 10**400], ids=["-1", "1.5", "soon", "true", "1e30", "1e400"]
)
def test_a_time_that_is_none_is_refused(raw: Raw, host: ModelHost, timeout: object) -> None:
    """Microseconds are a whole number; one that is longer than anybody waits is not a mistake."""
    activate(host)
    status, _, _ = raw.ask("POST", INFER, request_body(1, 2, timeout=timeout))
    assert (200 if timeout in (10**30, 10**400) else 400) == status


@pytest.mark.parametrize(
    ("infer", "status", "code", "kind"),
    [
        ("unreachable", 500, "trap", "unreachable"),
        ("(i32.div_s (i32.const 1) (i32.load (i32.const 0)))", 500, "trap", "integer_division_by_zero"),
        ("(i32.load (i32.const -4))", 500, "trap", "memory_out_of_bounds"),
        ("(call $run)", 500, "stack_overflow", "stack_overflow"),
        (SPIN, 504, "deadline_exceeded", "deadline_exceeded"),
    ],
    ids=["unreachable", "division", "bounds", "recursion", "loop"],
)
def test_a_fault_is_described(
    raw: Raw, host: ModelHost, isolation: Zygote | None, infer: str, status: int, code: str, kind: str
) -> None:
    """Kind, layer, place, release and input, so that whoever reads the reply can find it; then the model goes on."""
    activate(host, infer=infer, isolation=isolation)
    for _ in range(2):
        got, headers, reply = raw.ask("POST", INFER, request_body(0, 2))
        assert (status, code) == (got, reply["code"])
        assert "connection" not in headers
        fault = reply["fault"]
        assert {"kind", "layer", "offset", "release", "input_sha256"} == set(fault)
        assert (kind, "run", "digits 1.0.0") == (fault["kind"], fault["layer"], fault["release"])
        assert fault["offset"] > 0
        assert hashlib.sha256(struct.pack("<2f", 0, 2)).hexdigest() == fault["input_sha256"]


def test_a_model_that_says_itself_that_it_failed_has_no_fault(
    raw: Raw, host: ModelHost, isolation: Zygote | None
) -> None:
    """Its status is in the message; there is no place in the module to name."""
    activate(host, infer="(i32.const 7)", isolation=isolation)
    status, _, reply = raw.ask("POST", INFER, request_body(1, 2))
    assert (500, "model_status") == (status, reply["code"])
    assert {"error", "code"} == set(reply)
    assert "7" in reply["error"]


def test_an_update_that_goes_wrong_is_answered_by_the_release_before(
    raw: Raw, host: ModelHost, isolation: Zygote | None
) -> None:
    """A caller never sees the fault of a release that soaks."""
    activate(host, isolation=isolation)
    activate(host, "2.0.0", infer="unreachable", isolation=isolation, is_committed=False)
    for _ in range(2):
        status, _, reply = raw.ask("POST", INFER, request_body(1, 2))
        assert (200, "1.0.0") == (status, reply["model_version"])
        assert "fault" not in reply
