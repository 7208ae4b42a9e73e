"""Opening the agent's database: for writing, where the disk takes nothing more for reading, or moved out of the way.

Owns the schema and how SQLite is set. What the tables mean is `agent.store`'s.
"""

import sqlite3
import time
import uuid
from pathlib import Path
from typing import Final

from agent.errors import StateError

_SCHEMA: Final = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE models (name TEXT PRIMARY KEY, state TEXT NOT NULL) STRICT;
    CREATE TABLE floors (role TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT;
    CREATE TABLE receipts (
        seq INTEGER PRIMARY KEY, deployment_id TEXT NOT NULL, is_progress INTEGER NOT NULL, payload TEXT NOT NULL
    ) STRICT;
    CREATE TABLE telemetry (seq INTEGER PRIMARY KEY, payload TEXT NOT NULL) STRICT;
    """,
    # How deployments ended was not kept: that they ended is.
    """
    UPDATE meta SET value = json_set(value, '$.settled', json((
        SELECT json_group_array(json_array(value, 'superseded')) FROM json_each(meta.value, '$.settled')
    ))) WHERE key = 'device';
    """,
)
"""One script for each version of the schema; `PRAGMA user_version` says how many were run."""
_WAL_PAGES: Final = 256
"""How long the write-ahead log grows, in pages of 4 KiB, before it is worked into the file."""
_DAMAGE: Final = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_IOERR_READ,
        sqlite3.SQLITE_IOERR_SHORT_READ,
        sqlite3.SQLITE_IOERR_CORRUPTFS,
        sqlite3.SQLITE_IOERR_DATA,
    }
)
"""OperationalErrors that another attempt does not mend: the file is not what was written, or cannot be read."""


def open_writable(path: Path) -> sqlite3.Connection:
    """Return the database at `path`, made or brought up to date if need be; raises sqlite3.Error or StateError."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        # Exclusive: then the index of the write-ahead log lies in memory, and opening takes no room on the disk.
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL", "busy_timeout = 5000"):
            db.execute(f"PRAGMA {pragma}")
        db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_SCHEMA):
            raise StateError(f"expected a state of version {len(_SCHEMA)}, got {version}: update fleet-agent")
        for number, script in enumerate(_SCHEMA[version:], version + 1):
            db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")
        if not db.execute("SELECT 1 FROM meta WHERE key = 'stream'").fetchone():
            db.execute("INSERT INTO meta VALUES ('stream', ?)", (uuid.uuid4().hex,))
    except BaseException:
        db.close()
        raise
    return db


def open_read_only(path: Path) -> sqlite3.Connection:
    """Return a database beside which nothing can be written: exact only if it `is_whole`."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", isolation_level=None, uri=True)


def is_whole(path: Path) -> bool:
    """Return whether everything that was stored is in the one file: no write-ahead log is left."""
    log = path.with_name(f"{path.name}-wal")
    return path.exists() and path.stat().st_size > 0 and not (log.exists() and log.stat().st_size)


def move_aside(path: Path) -> None:
    """Give a damaged database another name, for whoever wants to see it."""
    for suffix in ("", "-wal", "-shm"):
        damaged = path.with_name(path.name + suffix)
        if damaged.exists():
            damaged.rename(path.with_name(f"{path.name}.damaged-{time.time_ns()}{suffix}"))


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether the file is at fault, not the moment."""
    return error.sqlite_errorcode in _DAMAGE


def kind_of(error: Exception) -> int:
    """Return SQLite's primary result code of `error`; 0 when it has none."""
    code = getattr(error, "sqlite_errorcode", 0) if isinstance(error, sqlite3.Error) else 0
    return int(code) & 0xFF


def advice_on(error: Exception) -> str:
    """Return what to do about `error`, as the end of a message."""
    return ": free some space" if kind_of(error) == sqlite3.SQLITE_FULL else ""
