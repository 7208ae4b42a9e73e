"""What every start puts in order, and what the operator is warned of."""

import shutil
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from sqlalchemy import select

from controller.first_start import prepare
from controller.reads.targets import describe_signed
from controller.store import outbox
from controller.store.metadata import newest, roots
from controller.store.models import MetadataRow
from controller.workspace import create_workspace
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
