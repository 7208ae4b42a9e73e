"""A service that fails at a request: the client gets a problem, the operator's log the cause, nobody a secret."""

import errno
import logging
import sqlite3

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from controller.api.problems import problem_of
from controller.cli.logs import EventFormatter
from tests.controller.service.fleet import FleetCore
from tests.controller.service.serving import serving


def formatted(records: list[logging.LogRecord]) -> str:
    """Return what the operator's log shows."""
    return "\n".join(map(EventFormatter().format, records))


def test_the_log_has_the_cause_of_a_defect_and_no_values(fleet: FleetCore, caplog: pytest.LogCaptureFixture) -> None:
    """The client hears that the log says why; it does, with the place, and without what the statement carried."""
    with fleet.core.store.write() as session:
        session.execute(text("DROP TABLE invites"))
    with serving(fleet) as served, caplog.at_level(logging.ERROR):
        answer = served.api.post("/invites", json={"device_id": "press-1", "valid_s": 60})
    assert (500, "internal") == (answer.status_code, answer.json()["code"])
    assert "invites" not in answer.text
    logged = formatted(caplog.records)
    assert "request failed method=POST path=/v1/invites reason=OperationalError: " in logged
    assert "no such table: invites" in logged
    assert "in invite\n" in logged
    assert "press-1" not in logged


def ioerr() -> OperationalError:
    """Return what the database raises when the disk fails below it."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR | 1 << 8
    return OperationalError("", {}, error)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), ioerr()])
def test_a_disk_that_fails_promises_nothing(error: Exception) -> None:
    """At reading there is nothing to store, and after a failed write nobody knows what is on the disk."""
    problem = problem_of(error)
    assert (500, "disk") == (problem.status, problem.code)
    assert "the disk of the service fails: " in problem.detail
    assert "nothing was changed" not in problem.hint


def test_a_line_of_the_log_stays_one() -> None:
    """A topic is chosen by whoever publishes: it forges no event and paints no terminal."""
    record = logging.LogRecord("controller", logging.WARNING, "", 1, "message refused", (), None)
    record.topic = "fleet/v1/x\n2026-01-01T00:00:00Z INFO ready\x1b[2J\ud800"
    line = EventFormatter().format(record)
    assert line.endswith(r"topic=fleet/v1/x\n2026-01-01T00:00:00Z INFO ready\x1b[2J\ud800")
