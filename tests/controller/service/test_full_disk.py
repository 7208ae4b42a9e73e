"""A disk that takes nothing more: the operator is told so, nothing is half done, and room on it heals."""

import errno
import logging
import sqlite3

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from controller.store.faults import DiskFault, disk_fault
from tests.controller.cli.fleets import call
from tests.controller.service.fleet import FleetCore
from tests.controller.service.serving import serving


def test_a_full_database_is_told_and_heals(fleet: FleetCore, caplog: pytest.LogCaptureFixture) -> None:
    """No traceback, neither here nor in the service's log; what is there can be read, and room is enough to go on."""
    pages = [1]

    @event.listens_for(fleet.core.store.engine, "begin")
    def bound(connection: object) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages[0]}")  # type: ignore[attr-defined]

    with serving(fleet) as served, caplog.at_level(logging.ERROR):
        home = ("--home", str(fleet.workspace.path), "--api-url", served.api_url)
        for number in range(2_000):
            refused = call(*home, "devices", "invite", f"press-{number}")
            if refused.returncode:
                break
        assert refused.stderr.splitlines()[:1] == ["error: the service cannot store this: database or disk is full"]
        assert "hint: nothing was changed: make room on the disk" in refused.stderr
        assert "Traceback" not in refused.stderr + caplog.text
        assert 507 == served.api.post("/invites", json={"device_id": "press-x", "valid_s": 60}).status_code
        assert 0 == call(*home, "devices").returncode
        with fleet.core.store.read() as session:
            assert number == session.scalar(text("SELECT count(*) FROM invites"))
        pages[0] = 1_000_000
        assert 0 == call(*home, "devices", "invite", f"press-{number}").returncode


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskFault("No space left on device", True)),
        (OSError(errno.EROFS, "Read-only file system"), DiskFault("Read-only file system", True)),
        (OSError(errno.EIO, "Input/output error"), DiskFault("Input/output error", False)),
        (FileNotFoundError(errno.ENOENT, "No such file"), None),
        (ValueError("disk is full"), None),
        (OperationalError("", {}, sqlite3.OperationalError("database or disk is full")), None),
    ],
)
def test_only_the_disk_is_blamed_for_what_is_its_fault(error: Exception, said: DiskFault | None) -> None:
    """By its number: words prove nothing."""
    assert said == disk_fault(error)


def test_a_database_that_may_not_be_written_is_the_disks_fault(fleet: FleetCore) -> None:
    """As on a file system that was mounted again read-only."""
    with fleet.core.store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
        with pytest.raises(OperationalError) as caught:
            connection.exec_driver_sql("DELETE FROM invites")
        connection.exec_driver_sql("PRAGMA query_only=OFF")
    assert DiskFault("attempt to write a readonly database", True) == disk_fault(caught.value)
