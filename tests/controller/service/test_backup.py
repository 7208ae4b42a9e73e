"""Backups of the server's folder: whole, made while the service runs, and put back only when nobody serves."""

import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from controller.backup import make_backup, restore_backup
from controller.errors import ConflictError, RefusedError, WorkspaceError
from controller.reads.devices import get_device
from controller.store.lock import one_service
from controller.workspace import ServerHome
from protocol.codec import sha256
from tests.controller.service.fleet import START, FleetCore, bundle, open_core


def test_a_fleet_comes_back_as_it_was(fleet: FleetCore, tmp_path: Path) -> None:
    """Database, files, keys and settings; what came later lies aside."""
    release = bundle()
    fleet.release(release)
    fleet.enroll("press-1")
    home = fleet.workspace.server
    size_bytes = make_backup(home, tmp_path / "fleet.backup", START)
    assert (tmp_path / "fleet.backup").stat().st_size == size_bytes
    assert 0o600 == stat.S_IMODE((tmp_path / "fleet.backup").stat().st_mode)
    fleet.enroll("press-2")
    fleet.core.store.close()
    restored = restore_backup(tmp_path / "fleet.backup", home, START)
    assert restored.replaced is not None
    assert (Path(restored.replaced) / "fleet.db").is_file()
    assert "2026-01-15T12:00:00Z" == restored.made_at
    assert {0o700} == {stat.S_IMODE(path.stat().st_mode) for path in (home.path, home.keys_path)}
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in home.keys_path.iterdir()}
    with open_core(tmp_path) as again, again.core.store.read() as session:
        assert "press-1" == get_device(session, "press-1").id
        assert again.core.files.read(sha256(release.files[0])) == release.files[0]
        with pytest.raises(Exception, match="no device 'press-2'"):
            get_device(session, "press-2")


def test_a_backup_is_never_overwritten(fleet: FleetCore, tmp_path: Path) -> None:
    """The older one may be the better one."""
    (tmp_path / "fleet.backup").write_bytes(b"older")
    with pytest.raises(RefusedError, match="exists"):
        make_backup(fleet.workspace.server, tmp_path / "fleet.backup", START)
    assert b"older" == (tmp_path / "fleet.backup").read_bytes()


def test_nothing_is_restored_under_a_running_service(fleet: FleetCore, tmp_path: Path) -> None:
    """It would go on with what it has in memory."""
    home = fleet.workspace.server
    make_backup(home, tmp_path / "fleet.backup", START)
    with one_service(home.path), pytest.raises(ConflictError, match="another service runs"):
        restore_backup(tmp_path / "fleet.backup", home, START)
    assert home.database_path.is_file()


@pytest.mark.parametrize("is_clean", [True, False])
def test_a_folder_that_may_not_be_written_is_backed_up(fleet: FleetCore, tmp_path: Path, is_clean: bool) -> None:
    """As on a file system that is mounted read-only, also after a crash that left changes in the log alone.

    A folder in the place of `fleet.db-shm` keeps SQLite from making that file, as such a file system does.
    """
    home, moved = fleet.workspace.server, ServerHome(tmp_path / "moved")
    fleet.enroll("press-1")
    if is_clean:
        fleet.core.store.close()
    shutil.copytree(home.path, moved.path, ignore=shutil.ignore_patterns("*-shm"))
    assert is_clean != (moved.path / "fleet.db-wal").exists()
    (moved.path / "fleet.db-shm").mkdir()
    before = moved.database_path.read_bytes()
    make_backup(moved, tmp_path / "fleet.backup", START)
    assert before == moved.database_path.read_bytes()
    fleet.core.store.close()
    restore_backup(tmp_path / "fleet.backup", home, START)
    with open_core(tmp_path) as again, again.core.store.read() as session:
        assert "press-1" == get_device(session, "press-1").id


@pytest.mark.parametrize("damage", ["cut off", "another file", "no database", "bad database", "missing", "folder"])
def test_a_damaged_backup_changes_nothing(fleet: FleetCore, tmp_path: Path, damage: str) -> None:
    """It is looked through before anything is put in place."""
    home, path = fleet.workspace.server, tmp_path / "fleet.backup"
    make_backup(home, path, START)
    whole = path.read_bytes()
    match damage:
        case "cut off":
            path.write_bytes(whole[: len(whole) // 3])
        case "another file":
            path.write_bytes(b"SQLite format 3\0" + bytes(10_000))
        case "no database" | "bad database":
            _without_database(path, b"SQLite format 3\0 but nothing else" if damage == "bad database" else None)
        case "missing":
            path.unlink()
        case "folder":
            path = tmp_path
    before = home.database_path.stat().st_ino
    with pytest.raises(WorkspaceError):
        restore_backup(path, home, START)
    assert before == home.database_path.stat().st_ino
    assert {"operator", "server"} == {path.name for path in (tmp_path / "fleet").iterdir()}


def _without_database(path: Path, instead: bytes | None) -> None:
    folder = path.with_suffix(".open")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
        names = archive.getnames()
    database = folder / "server" / "fleet.db"
    database.unlink()
    if instead is not None:
        database.write_bytes(instead)
    with tarfile.open(path, "w") as archive:
        for name in names:
            if (folder / name).exists():
                archive.add(folder / name, name, recursive=False)
    for file in sorted(folder.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    folder.rmdir()


def test_the_memory_of_its_own_broker_survives_a_restore(fleet: FleetCore, tmp_path: Path) -> None:
    """What `fleetctl up`'s broker retains is newer than the backup, and tells the service what was signed since."""
    home = fleet.workspace.server
    retained = home.path / "broker" / "mosquitto.db"
    make_backup(home, tmp_path / "fleet.backup", START)
    retained.parent.mkdir()
    retained.write_bytes(b"retained")
    fleet.core.store.close()
    restore_backup(tmp_path / "fleet.backup", home, START)
    assert b"retained" == retained.read_bytes()
