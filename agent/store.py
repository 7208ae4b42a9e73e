"""The agent's memory: one SQLite file that survives a loss of power at any instruction.

Owns the engine's state, the reports that the controller has not yet stored, the version floors of both trust
domains and the counters. A change of state and the receipts that report it are one transaction. One thread only.

A disk that takes nothing more can still be read: `problem` then says why, writing raises StateError, and `retry` finds
out when there is room again.
"""

import contextlib
import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from agent import database, faults
from agent.engine import Ended, Model, State
from agent.engine.actions import EmitReceipt
from agent.errors import StateError
from protocol.assignment import AgentConfig
from protocol.messages import Ack, Reason, Receipt, TelemetryRecord

MAX_TELEMETRY_RECORDS: Final = 5_000
"""Older records are dropped, and counted, when a device was away for longer than that."""

_log = logging.getLogger(__name__)
S = TypeVar("S", bound=msgspec.Struct)


class _DamagedError(Exception):
    """The file is a database, but not what was written."""


class _Device(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the engine's state that belongs to no model."""

    settled: tuple[Ended, ...] = ()
    config: AgentConfig = AgentConfig()
    director_version: int = 0


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """How much is waiting to be stored by the controller."""

    receipts: int
    telemetry: int
    dropped_telemetry: int


class Store:
    """The open database. It belongs to one process: nobody else can open it meanwhile."""

    def __init__(self, path: Path) -> None:
        self.problem: Reason | None = None
        """Why nothing can be stored just now; None when the last attempt succeeded."""
        self._path = path
        self._uncounted_session = 0
        self._is_read_only = False
        try:
            self._open(path)
        except (sqlite3.DatabaseError, _DamagedError) as error:
            if isinstance(error, sqlite3.OperationalError) and not database.is_damage(error):
                raise StateError(f"cannot use {path}: {error}{database.advice_on(error)}") from error
            # Better a device that begins anew than none. What the controller needs comes again, and the trust
            # folder keeps the versions that the client of the image repository accepted.
            database.move_aside(path)
            _log.error("%s was damaged (%s) and moved aside; the agent begins with an empty memory", path, error)
            self._open(path)

    def close(self) -> None:
        """Close the database. Closing twice does nothing."""
        self._db.close()

    # --- the engine's state

    def load(self) -> State:
        """Return the engine's state as it was last saved."""
        device = _decoded(self._meta("device", "{}"), _Device)
        rows = self._read("SELECT name, state FROM models")
        return State(
            models={name: _decoded(state, Model) for name, state in rows},
            settled=device.settled,
            config=device.config,
            director_version=device.director_version,
        )

    def save(
        self, old: State, new: State, receipts: Iterable[EmitReceipt], *, at_ms: int, session: int
    ) -> tuple[Receipt, ...]:
        """Store what changed from `old` to `new`, and the receipts that report it, all or nothing."""
        emitted = tuple(receipts)
        if old == new and not emitted:
            return ()
        faults.reach("state.before_commit")
        with self._transaction():
            self._save_state(old, new)
            stored = tuple(self._add_receipt(emit, at_ms, session) for emit in emitted)
        faults.reach("state.after_commit")
        return stored

    def next_session(self) -> int:
        """Count one more start of the agent. If the disk does not take the count, it takes it with the next write."""
        session = self._uncounted_session = self._count("session") + 1
        self.retry()
        return session

    def retry(self) -> bool:
        """Return whether something can be stored (again): by storing how often the agent was started."""
        with contextlib.suppress(StateError):
            if self._is_read_only:
                self._reopen()
            with self._transaction():
                self._set_meta("session", str(self._uncounted_session or self._count("session")))
        return self.problem is None

    # --- trust

    def floors(self) -> dict[str, int]:
        """Return the highest version accepted of each role."""
        return dict(self._read("SELECT role, version FROM floors"))

    def raise_floors(self, versions: dict[str, int], *, signed_time_ms: int | None = None) -> None:
        """Remember accepted versions, which never fall, and the time that came with them instead of the one before."""
        known = self.floors()
        risen = {role: version for role, version in versions.items() if version > known.get(role, 0)}
        if not risen and signed_time_ms is None:
            return
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO floors VALUES (?, ?)", risen.items())
            if signed_time_ms is not None:
                self._set_meta("signed_time_ms", str(signed_time_ms))

    def signed_time_ms(self) -> int:
        """Return the issue time of the newest director document that was accepted."""
        return self._count("signed_time_ms")

    # --- reports

    @property
    def stream(self) -> str:
        """The name of this memory: another one after it was lost."""
        return self._meta("stream", "")

    def receipts(self, *, after: int, limit: int) -> tuple[Receipt, ...]:
        """Return receipts in order, from the first behind `after`."""
        rows = self._read("SELECT payload FROM receipts WHERE seq > ? ORDER BY seq LIMIT ?", after, limit)
        return tuple(_decoded(payload, Receipt) for (payload,) in rows)

    def telemetry(self, *, after: int, limit: int) -> tuple[TelemetryRecord, ...]:
        """Return telemetry records in order, from the first behind `after`."""
        rows = self._read("SELECT payload FROM telemetry WHERE seq > ? ORDER BY seq LIMIT ?", after, limit)
        return tuple(_decoded(payload, TelemetryRecord) for (payload,) in rows)

    def add_telemetry(self, record: TelemetryRecord) -> TelemetryRecord:
        """Store a record under the next sequence number; the oldest goes when there are too many."""
        with self._transaction():
            numbered = msgspec.structs.replace(record, seq=self._next_seq("telemetry"))
            self._db.execute("INSERT INTO telemetry VALUES (?, ?)", (numbered.seq, _json(numbered)))
            surplus = self._db.execute(
                "DELETE FROM telemetry WHERE seq IN (SELECT seq FROM telemetry ORDER BY seq DESC LIMIT -1 OFFSET ?)",
                (MAX_TELEMETRY_RECORDS,),
            ).rowcount
            if surplus:
                self._set_meta("dropped_telemetry", str(self._count("dropped_telemetry") + surplus))
        faults.reach("telemetry.stored")
        return numbered

    def acknowledge(self, ack: Ack) -> bool:
        """Forget what the controller has stored; return whether `ack` was about this memory and made sense."""
        issued = self._count("receipts_seq"), self._count("telemetry_seq")
        if ack.stream != self.stream or ack.receipts > issued[0] or ack.telemetry > issued[1]:
            return False
        faults.reach("ack.before_delete")
        with self._transaction():
            self._db.execute("DELETE FROM receipts WHERE seq <= ?", (ack.receipts,))
            self._db.execute("DELETE FROM telemetry WHERE seq <= ?", (ack.telemetry,))
            for outbox, seq in (("receipts", ack.receipts), ("telemetry", ack.telemetry)):
                self._set_meta(f"{outbox}_acked", str(max(seq, self.acknowledged(outbox))))
        return True

    def acknowledged(self, outbox: str) -> int:
        """Return up to which number of `receipts` or `telemetry` the controller has stored everything."""
        return int(self._meta(f"{outbox}_acked", "0"))

    def backlog(self) -> Backlog:
        """Return how much the controller has not yet stored."""
        counts = [self._read(f"SELECT count(*) FROM {table}")[0][0] for table in ("receipts", "telemetry")]  # noqa: S608 - two constants
        return Backlog(receipts=counts[0], telemetry=counts[1], dropped_telemetry=self._count("dropped_telemetry"))

    # --- inside

    def _open(self, path: Path) -> None:
        try:
            self._db = database.open_writable(path)
        except sqlite3.OperationalError as error:
            if not database.is_whole(path):
                raise
            self._db = database.open_read_only(path)
            self._is_read_only = True
            self._note(error)
        try:
            self._check()
        except BaseException:
            self._db.close()
            raise

    def _check(self) -> None:
        """Raise when any page or any value is damaged: better now than at every use, and again after every start."""
        ((verdict, *_), *_) = self._db.execute("PRAGMA quick_check").fetchall()
        if verdict != "ok":
            raise _DamagedError(str(verdict)[:200])
        try:
            self.load()
            for key in ("session", "signed_time_ms", "receipts_seq", "telemetry_seq", "dropped_telemetry"):
                self._count(key)
            for outbox, kind in (("receipts", Receipt), ("telemetry", TelemetryRecord)):
                for (payload,) in self._db.execute(f"SELECT payload FROM {outbox}"):  # noqa: S608 - two constants
                    _decoded(payload, kind)
        except StateError as error:
            raise _DamagedError(str(error)) from error

    def _read(self, query: str, *values: object) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StateError(f"cannot read the agent's state: {error}") from error

    def _reopen(self) -> None:
        try:
            db = database.open_writable(self._path)
        except sqlite3.Error as error:
            self._note(error)
            raise StateError(f"cannot write the agent's state: {error}") from error
        self._db.close()
        self._db, self._is_read_only = db, False

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            if self._uncounted_session:
                self._set_meta("session", str(self._uncounted_session))
            yield
            self._db.execute("COMMIT")
        except (sqlite3.Error, StateError) as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._note(error)
            raise StateError(f"cannot write the agent's state: {error}{database.advice_on(error)}") from error
        self._uncounted_session = 0
        if self.problem:
            self.problem = None
            _log.info("the agent's state can be stored again")

    def _note(self, error: Exception) -> None:
        """Remember why nothing is stored, and log it once."""
        code = "disk_full" if database.kind_of(error) == sqlite3.SQLITE_FULL else StateError.code
        problem = Reason.of(
            code, f"nothing can be stored: {error}{database.advice_on(error)}; what runs goes on running"
        )
        if self.problem is None:
            _log.error("%s", problem.message)
        self.problem = problem

    def _save_state(self, old: State, new: State) -> None:
        for name in old.models.keys() - new.models.keys():
            self._db.execute("DELETE FROM models WHERE name = ?", (name,))
        for name, model in new.models.items():
            if model != old.models.get(name):
                self._db.execute("INSERT OR REPLACE INTO models VALUES (?, ?)", (name, _json(model)))
        device = _Device(settled=new.settled, config=new.config, director_version=new.director_version)
        if device != _Device(settled=old.settled, config=old.config, director_version=old.director_version):
            self._set_meta("device", _json(device))

    def _add_receipt(self, emit: EmitReceipt, at_ms: int, session: int) -> Receipt:
        receipt = Receipt(
            seq=self._next_seq("receipts"),
            deployment_id=emit.deployment_id,
            model=emit.model,
            version=emit.version,
            state=emit.state,
            at_ms=at_ms,
            session=session,
            progress=emit.progress,
            reason=emit.reason,
            measures=emit.measures,
        )
        is_progress = emit.progress is not None
        if is_progress:  # only the latest progress is worth keeping while nobody listens
            self._db.execute("DELETE FROM receipts WHERE deployment_id = ? AND is_progress = 1", (emit.deployment_id,))
        self._db.execute(
            "INSERT INTO receipts VALUES (?, ?, ?, ?)",
            (receipt.seq, receipt.deployment_id, is_progress, _json(receipt)),
        )
        return receipt

    def _next_seq(self, outbox: str) -> int:
        seq = self._count(f"{outbox}_seq") + 1
        self._set_meta(f"{outbox}_seq", str(seq))
        return seq

    def _meta(self, key: str, default: str) -> str:
        rows = self._read("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else default

    def _count(self, key: str) -> int:
        text = self._meta(key, "0")
        try:
            return int(text)
        except ValueError as error:
            raise StateError(f"expected a number as {key} of the agent's state, got {text[:40]!r}") from error

    def _set_meta(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def _decoded(text: str, kind: type[S]) -> S:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise StateError(f"cannot read the agent's state: a damaged {kind.__name__}: {error}") from error


def _json(value: msgspec.Struct) -> str:
    return msgspec.json.encode(value).decode()
