"""Backups of the server's folder: one file that holds all that the service needs, made while it runs.

The database is copied by SQLite's own online backup, so that the copy is one state of it; files are named by their
content and never change. A restore puts nothing in place before it has seen that the backup is whole, and moves what
was there aside. The operator's folder is no part of it.
"""

import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import msgspec

from agent import durable
from controller.errors import RefusedError, WorkspaceError
from controller.store.lock import one_service
from controller.workspace import ServerHome

_MANIFEST = "backup.json"
_DATABASE = "fleet.db"
_LEFT_OUT = frozenset({_DATABASE, f"{_DATABASE}-wal", f"{_DATABASE}-shm", "service.lock", "endpoints.json", "broker"})
_PRIMARY = 0xFF
"""The low byte of an extended result code, see https://sqlite.org/rescode.html."""
_NO_INDEX = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})
_NO_BACKUP = "expected a file that `fleetctl backup` made"


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup says about itself, in its first member."""

    made_at: str
    schema: int = 1


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore put where."""

    made_at: str
    server: str
    replaced: str | None
    """Where the folder now lies that was there before."""


def make_backup(home: ServerHome, target: Path, now: datetime) -> int:
    """Write the backup of the server folder `home` to the new file `target`; return its size in bytes.

    Raises:
        RefusedError: the database is not SQLite, or `target` exists.
        WorkspaceError: the folder or its database cannot be read, or `target` not be written.
    """
    if home.config.database.url and not home.config.database.url.startswith("sqlite"):
        raise RefusedError(
            "the fleet's database is not SQLite", hint="back it up with its own tools, and the server folder besides"
        )
    if target.exists():
        raise RefusedError(f"{target} exists", hint="a backup is never overwritten: name a new file")
    try:
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=target.absolute().parent) as folder:
            copy, draft = Path(folder) / _DATABASE, Path(folder) / "draft.tar"
            _copy_database(home.database_path, copy)
            with draft.open("wb") as stream:
                os.chmod(stream.fileno(), 0o600)  # noqa: PTH101 - a descriptor has no Path; the backup holds keys
                _write(stream, home.path, copy, Backup(made_at=f"{now:%Y-%m-%dT%H:%M:%SZ}"))
                durable.sync(stream)
            durable.rename(draft, target)
    except (OSError, sqlite3.Error) as error:
        raise WorkspaceError(
            f"cannot make the backup: {error}", hint="see whether there is room and the folder may be written"
        ) from error
    return target.stat().st_size


def restore_backup(source: Path, home: ServerHome, now: datetime) -> Restored:
    """Put the backup `source` in the place of the server folder `home`, whose service must not run.

    Raises:
        ConflictError: the service runs.
        WorkspaceError: the backup is damaged, or the folder cannot be written; nothing was changed.
    """
    parent = home.path.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=parent) as folder:
            draft = Path(folder) / "server"
            made = _extract(source, draft)
            with _unused(home.path):
                replaced = None
                if home.path.exists():
                    _keep_files(home.path / "files", draft / "files")
                    _keep_broker(home.path / "broker", draft / "broker")
                    replaced = home.path.with_name(f"{home.path.name}.replaced-{now:%Y%m%dT%H%M%SZ}")
                    home.path.rename(replaced)
                draft.rename(home.path)
                durable.sync_folder(parent)
    except OSError as error:
        raise WorkspaceError(f"cannot restore to {home.path}: {error}", hint="nothing was put in place") from error
    shown = str(replaced) if replaced else None
    return Restored(made_at=made.made_at, server=str(home.path), replaced=shown)


def _copy_database(source: Path, target: Path) -> None:
    if not source.is_file():
        raise WorkspaceError(
            f"there is no database at {source}", hint="start the service once: there is nothing to lose"
        )
    with closing(_open(target, "rwc")) as copy:
        try:
            with closing(_open(source, "ro")) as live:
                live.backup(copy)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & _PRIMARY not in _NO_INDEX:
                raise
            with closing(_open(_set_aside(source, target.parent / "aside"), "rw")) as still:
                still.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")  # so that the copy is one file


def _set_aside(source: Path, folder: Path) -> Path:
    """Copy the files of a database that nobody has open, and return where: its folder may not be written.

    Even a reader needs the index of the log of changes (`-shm`, see https://sqlite.org/wal.html#readonly), which a
    writer would have made. From the copy SQLite takes what is in the log, as after a crash.
    """
    folder.mkdir()
    parts = [path for path in (source, source.with_name(f"{source.name}-wal")) if path.exists()]
    before = [_state(path) for path in parts]
    for path in parts:
        shutil.copyfile(path, folder / path.name)
    if before != [_state(path) for path in parts]:
        raise WorkspaceError(f"{source} was written while it was copied", hint="run the backup where the service runs")
    return folder / source.name


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _open(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)


def _write(stream: object, folder: Path, database: Path, manifest: Backup) -> None:
    with tarfile.open(fileobj=stream, mode="w") as archive:  # type: ignore[call-overload] # any binary stream will do
        note = database.with_name(_MANIFEST)
        note.write_bytes(msgspec.json.encode(manifest))
        archive.add(note, _MANIFEST)
        archive.add(database, f"server/{_DATABASE}")
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if inside.parts[0] in _LEFT_OUT or inside.parts[:2] == ("files", "incoming"):
                continue
            try:
                archive.add(path, f"server/{inside}", recursive=False)
            except FileNotFoundError:
                continue  # a file that no release names was cleared away meanwhile


def _extract(source: Path, target: Path) -> Backup:
    if not source.is_file():
        raise WorkspaceError(f"there is no file {source}", hint=_NO_BACKUP)
    try:
        with tarfile.open(source, "r:") as archive:  # as it was written: other compressions could unfold without end
            first = archive.next()
            stream = archive.extractfile(first) if first is not None and first.name == _MANIFEST else None
            if stream is None:
                raise WorkspaceError(f"{source}: {_NO_BACKUP}")
            made = msgspec.json.decode(stream.read(4_096), type=Backup)
            for member in archive:
                if member.name.startswith("server/"):
                    archive.extract(member, target.parent, filter="data")
        for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
            folder.chmod(0o700)  # extracting gives folders the modes of the umask
        with closing(_open(target / _DATABASE, "rw")) as database:
            found = database.execute("PRAGMA integrity_check").fetchone()[0]
    except (tarfile.TarError, EOFError, msgspec.DecodeError, sqlite3.Error) as error:
        raise WorkspaceError(f"{source} is damaged: {error}", hint=_NO_BACKUP) from error
    if found != "ok":
        raise WorkspaceError(f"{source} is damaged: its database says {found}", hint="use an older backup")
    return made


def _keep_files(old: Path, new: Path) -> None:
    """Keep what was uploaded after the backup: files are named by their content, and devices may run them."""
    for path in old.iterdir() if old.is_dir() else ():
        if path.is_file() and not (new / path.name).exists():
            shutil.copy2(path, new / path.name)


def _keep_broker(old: Path, new: Path) -> None:
    """Keep what `fleetctl up`'s broker retains: from it the service learns what was signed after the backup."""
    if old.is_dir():
        shutil.copytree(old, new, dirs_exist_ok=True)


@contextmanager
def _unused(folder: Path) -> Iterator[None]:
    """Keep a service from starting on `folder`; raises ConflictError when one runs."""
    if not folder.is_dir():
        yield
        return
    with one_service(folder):
        yield
