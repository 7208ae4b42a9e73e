"""What every start puts in order, and what the operator is warned of."""

import shutil
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from sqlalchemy import select

from controller.errors import WorkspaceError
from controller.first_start import prepare
from controller.reads.targets import describe_signed
from controller.service import serve
from controller.store import outbox
from controller.store.metadata import newest, roots
from controller.store.models import MetadataRow
from controller.workspace import Workspace, create_workspace
from protocol.assignment import parse_metadata
from tests.controller.service.fleet import START, Clock, FleetCore, bundle, open_core


def test_a_new_database_has_roots_targets_and_what_vouches_for_them(fleet: FleetCore) -> None:
    """Before anything was pushed."""
    with fleet.core.store.read() as session:
        assert [1, 1] == [len(roots(session, domain)) for domain in ("image", "director")]
        found = {row.name: row.version for row in session.scalars(select(MetadataRow))}
        assert {"root": 1, "targets": 1, "snapshot": 1, "timestamp": 1} == found
        assert 1 == describe_signed(session, fleet.clock()).version


def test_a_second_start_changes_nothing(fleet: FleetCore) -> None:
    """Neither metadata nor documents."""
    fleet.enroll("press-1")
    with fleet.core.store.write() as session:
        outbox.done(session, outbox.take(session, "assign", 10))
        before = list(session.scalars(select(MetadataRow.raw)))
    prepare(fleet.core, fleet.workspace.server, telemetry_interval_s=60)
    with fleet.core.store.read() as session:
        assert before == list(session.scalars(select(MetadataRow.raw)))
        assert [] == outbox.take(session, "assign", 10)


def test_another_telemetry_interval_reaches_every_device(fleet: FleetCore) -> None:
    """With the next document."""
    fleet.enroll("press-1")
    with fleet.core.store.write() as session:
        outbox.done(session, outbox.take(session, "assign", 10))
    prepare(fleet.core, fleet.workspace.server, telemetry_interval_s=5)
    with fleet.core.store.read() as session:
        assert ["press-1"] == [item.key for item in outbox.take(session, "assign", 10)]


def test_a_service_that_was_down_for_long_signs_anew_at_once(new_fleet: Path, tmp_path: Path) -> None:
    """Before a device asks."""
    shutil.copytree(new_fleet, tmp_path, dirs_exist_ok=True)
    clock = Clock(START + timedelta(days=30))
    with open_core(tmp_path, clock) as fleet, fleet.core.store.read() as session:
        for role in ("snapshot", "timestamp"):
            row = newest(session, "image", role)
            assert row is not None
            assert not parse_metadata(row.raw, role).signed.is_expired(clock())


def test_the_listener_gets_a_new_certificate_before_the_old_one_ends(new_fleet: Path, tmp_path: Path) -> None:
    """Devices know it by the fleet's CA."""
    shutil.copytree(new_fleet, tmp_path, dirs_exist_ok=True)
    with open_core(tmp_path, Clock(START + timedelta(days=300))) as fleet:
        path = fleet.workspace.server.listener_certificate_path
        first = path.read_bytes()
    with open_core(tmp_path, Clock(START + timedelta(days=340))):
        second = path.read_bytes()
    assert first != second
    ends = x509.load_pem_x509_certificate(second).not_valid_after_utc
    assert START + timedelta(days=340 + 300) < ends


def test_first_targets_that_are_too_old_do_not_keep_the_service_from_starting(tmp_path: Path) -> None:
    """A fleet that was made two years ago and never started; the operator is told."""
    create_workspace(tmp_path / "fleet", now=START, api_port=0, enroll_port=0)
    clock = Clock(START + timedelta(days=730))
    with open_core(tmp_path, clock) as fleet, fleet.core.store.read() as session:
        found = describe_signed(session, clock())
    assert (0, ("there are no signed targets yet",)) == (found.version, found.warnings)


def test_the_operator_is_warned_before_something_signed_ends(fleet: FleetCore) -> None:
    """Sixty days before, with what to do."""
    fleet.release(bundle())
    with fleet.core.store.read() as session:
        assert () == describe_signed(session, START).warnings
        soon = describe_signed(session, START + timedelta(days=310)).warnings
        late = describe_signed(session, START + timedelta(days=400)).warnings
    assert ("the targets end on 2027-01-15: push any release" in soon, 3) == (True, len(soon))
    assert "the root of the image domain ended on 2027-01-15: sign a new one with two root keys" in late


@pytest.mark.parametrize("file", ["image-snapshot.pem", "image-timestamp.pem", "director.pem"])
def test_a_key_of_another_fleet_is_noticed_before_anything_is_signed(
    new_fleet: Path, tmp_path: Path, file: str
) -> None:
    """The message names the file; no device would have believed what it signs."""
    shutil.copytree(new_fleet, tmp_path, dirs_exist_ok=True)
    other = create_workspace(tmp_path / "other", now=START)
    shutil.copyfile(other.server.keys_path / file, Workspace(tmp_path / "fleet").server.keys_path / file)
    with pytest.raises(WorkspaceError, match=f"keys/{file} is not the key"), open_core(tmp_path, Clock()):
        pass


def shuffled(page: bytes) -> bytes:
    """Return a page of the database with half of its bits turned."""
    return bytes(byte ^ 0x55 for byte in page)


@pytest.mark.parametrize("damage", ["no database", "its first page", "a page of its tables"])
def test_a_damaged_database_is_said_with_what_to_do(new_fleet: Path, tmp_path: Path, damage: str) -> None:
    """No traceback: the file, what SQLite says, and the command that puts a backup in its place."""
    shutil.copytree(new_fleet, tmp_path, dirs_exist_ok=True)
    server = Workspace(tmp_path / "fleet").server
    with sqlite3.connect(server.database_path) as database:
        database.execute("PRAGMA journal_mode=DELETE")
    database.close()
    content = server.database_path.read_bytes()
    spoilt = {
        "no database": b"x" * len(content),
        "its first page": content[:100] + shuffled(content[100:4096]) + content[4096:],
        "a page of its tables": content[:4096] + shuffled(content[4096:]),
    }
    server.database_path.write_bytes(spoilt[damage])
    with pytest.raises(WorkspaceError, match=r"fleet\.db cannot be used") as caught:
        serve(server, now=Clock(), mqtt_url="mqtt://127.0.0.1:1")
    assert "fleetctl restore FILE" in caught.value.hint


@pytest.mark.parametrize("damage", ["missing", "no certificate", "another key", "another authority"])
def test_a_listener_without_a_sound_certificate_gets_one(new_fleet: Path, tmp_path: Path, damage: str) -> None:
    """The fleet's CA is here: nobody has to copy anything back."""
    shutil.copytree(new_fleet, tmp_path, dirs_exist_ok=True)
    server = Workspace(tmp_path / "fleet").server
    other = create_workspace(tmp_path / "other", now=START).server
    if damage == "missing":
        server.listener_certificate_path.unlink()
    elif damage == "no certificate":
        server.listener_certificate_path.write_bytes(b"nonsense")
    else:
        shutil.copyfile(other.listener_key_path, server.listener_key_path)
    if damage == "another authority":
        shutil.copyfile(other.listener_certificate_path, server.listener_certificate_path)
    assert server.authority.end_of_listener(server.listener) is None
    with open_core(tmp_path, Clock()):
        assert server.authority.end_of_listener(server.listener) is not None
