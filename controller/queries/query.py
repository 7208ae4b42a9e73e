"""Dashboard queries: named ones, and SQL over the documented views alone.

What SQL may do is not guessed from its text. It runs on a connection of its own that cannot write, whose authorizer
refuses everything but reading documented views, and that is interrupted after a few seconds. A table may be read
only from inside a view: the authorizer is told by the innermost view or common table expression on whose behalf a
column is read, so the bodies of the views live in temporary views with random names, which no query can imitate.
"""

import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec

from controller.api.schema import NamedQuery, QueryRequest, QueryResult
from controller.errors import NotFoundError, RefusedError
from controller.queries.named import NAMED
from controller.store.views import VIEWS
from protocol.errors import MalformedError
from protocol.sketch import LatencySketch, SketchData

MAX_ROWS = 10_000
MAX_RESULT_BYTES = 16 << 20
MAX_SQL_CHARS = 20_000
TIME_LIMIT_S = 5.0
_STEPS_BETWEEN_CHECKS = 1_000
ALLOWED_FUNCTIONS = frozenset(
    re.findall(
        r"\S+",
        """
        -> ->> abs avg char coalesce concat concat_ws count cume_dist date datetime dense_rank first_value glob
        group_concat hex ifnull iif instr json json_array json_array_length json_extract json_group_array
        json_group_object json_object json_type json_valid julianday lag last_value lead length like lower ltrim max
        min nth_value ntile nullif percent_rank quote rank replace round row_number rtrim sign sketch_count
        sketch_merge sketch_quantile strftime string_agg substr substring sum time timediff total trim typeof unicode
        unixepoch upper
        """,
    )
)
"""Without printf, format, zeroblob and randomblob: one call makes gigabytes, in a step that cannot be interrupted."""
_FUNCTIONS_TABLES = frozenset({"json_each", "json_tree"})
_HINT = "docs/QUERIES.md describes the views, `fleetctl query --list` the named queries"
_LIMITS = {
    # One step of the engine cannot be interrupted: keep each small.
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: MAX_SQL_CHARS,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 20,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}

Value = str | int | float | bool | None


class Queries:
    """Answers queries on the SQLite file of the service."""

    def __init__(self, path: Path | None, *, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._path = path
        self._time_limit_s = time_limit_s
        self.named: tuple[NamedQuery, ...] = NAMED

    def run(self, request: QueryRequest) -> QueryResult:
        """Return the rows that `request` asks for.

        Raises:
            NotFoundError: no query has that name.
            RefusedError: the SQL is wrong, not allowed or too slow.
            MalformedError: the request is.
        """
        if (request.name is None) == (request.sql is None):
            raise MalformedError("expected either the name of a query or sql, exactly one of the two")
        if not 1 <= request.limit <= MAX_ROWS:
            raise MalformedError(f"expected a limit from 1 to {MAX_ROWS:,}, got {request.limit:,}")
        sql = request.sql if request.name is None else self._named(request).sql
        parameters = {name: request.parameters.get(name) for name in self._parameters(request)}
        return self._run(sql or "", parameters, request.limit)

    def _named(self, request: QueryRequest) -> NamedQuery:
        for query in self.named:
            if query.name == request.name:
                if unknown := sorted(set(request.parameters) - set(query.parameters)):
                    raise MalformedError(
                        f"query {query.name} has no parameter {unknown[0][:64]!r}; it has "
                        f"{', '.join(query.parameters) or 'none'}"
                    )
                if missing := [name for name in query.required if name not in request.parameters]:
                    given = " ".join(f"--param {name}={name.upper()}" for name in query.required)
                    raise RefusedError(
                        f"query {query.name} needs the parameter {missing[0]}",
                        hint=f"as in `fleetctl query {query.name} {given}`",
                    )
                return query
        known = ", ".join(query.name for query in self.named)
        raise NotFoundError(f"there is no query {str(request.name)[:64]!r}; there are {known}", hint=_HINT)

    def _parameters(self, request: QueryRequest) -> tuple[str, ...]:
        # A parameter of a named query that is not given is null, which its SQL takes for "any".
        return self._named(request).parameters if request.name is not None else tuple(request.parameters)

    def _run(self, sql: str, parameters: dict[str, str | None], limit: int) -> QueryResult:
        if len(sql) > MAX_SQL_CHARS:
            raise MalformedError(f"expected sql of at most {MAX_SQL_CHARS:,} characters, got {len(sql):,}")
        if self._path is None:
            raise RefusedError(
                "queries need the embedded database", hint="query the views with the database's own tools"
            )
        guard = Guard()
        with _read_only(self._path, guard, self._time_limit_s) as connection:
            try:
                with closing(connection.execute(sql, parameters)) as cursor:
                    if cursor.description is None:
                        raise RefusedError("the sql returns no rows: expected a SELECT", hint=_HINT)
                    return _collect(cursor, limit)
            except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError) as error:
                raise guard.explain(error, self._time_limit_s) from error


class Guard:
    """Decides what a statement may touch; remembers what it refused."""

    def __init__(self) -> None:
        self.prefix = f"body_{secrets.token_hex(12)}_"
        self._views = frozenset(view.name for view in VIEWS)
        self._tables_behind: set[str] = set()
        self._refused: str | None = None

    def __call__(
        self, action: int, first: str | None, second: str | None, _database: str | None, source: str | None
    ) -> int:
        """Return SQLITE_OK or SQLITE_DENY. Source: https://www.sqlite.org/c3ref/set_authorizer.html"""
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION:
            return self._judge((second or "").lower() in ALLOWED_FUNCTIONS, f"the function {second}")
        if action == sqlite3.SQLITE_READ:
            return self._judge(self._may_read(first or "", second or "", source), f"the table {first}")
        self._refused = self._refused or "a statement other than SELECT"
        return sqlite3.SQLITE_DENY

    def _may_read(self, table: str, column: str, source: str | None) -> bool:
        if table in self._views or table in _FUNCTIONS_TABLES or table.startswith(self.prefix):
            return True
        if source is not None and source.startswith(self.prefix):
            self._tables_behind.add(table)
            return True
        # `count(*)` reads no column, and SQLite does not say for which view: it may count what a view of the same
        # statement reads.
        return column == "" and table in self._tables_behind

    def _judge(self, is_allowed: bool, what: str) -> int:
        if not is_allowed:
            self._refused = self._refused or what
        return sqlite3.SQLITE_OK if is_allowed else sqlite3.SQLITE_DENY

    def explain(self, error: Exception, time_limit_s: float) -> RefusedError:
        """Return the refusal that `error` means."""
        if isinstance(error, sqlite3.OperationalError) and "interrupted" in str(error):
            return RefusedError(
                f"the query took longer than {time_limit_s:g} s", hint="narrow it down, or ask a copy of the database"
            )
        if self._refused is not None:
            views = ", ".join(sorted(self._views))
            return RefusedError(f"{self._refused} may not be used in a query; the views are {views}", hint=_HINT)
        message = str(error).replace(self.prefix, "")
        return RefusedError(f"the sql cannot be run: {message[:500]}", hint=_HINT)


class _Quantile:
    """The SQL aggregate `sketch_quantile(sketch, fraction)`: in microseconds, over the sketches of all rows."""

    def __init__(self) -> None:
        self._sketch = LatencySketch()
        self._fraction = 0.5

    def step(self, sketch_json: Value, fraction: Value) -> None:
        """Add one row."""
        if not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
            raise ValueError("expected a fraction from 0 to 1")
        self._fraction = float(fraction)
        if isinstance(sketch_json, str):
            self._sketch.merge(msgspec.json.decode(sketch_json, type=SketchData))

    def finalize(self) -> float | None:
        """Return the quantile, or null when nothing was counted."""
        value = self._sketch.quantile_us(self._fraction)
        return None if value is None else round(value, 1)


class _Merge:
    """The SQL aggregate `sketch_merge(sketch)`: the sketch of all rows."""

    def __init__(self) -> None:
        self._sketch = LatencySketch()

    def step(self, sketch_json: Value) -> None:
        """Add one row."""
        if isinstance(sketch_json, str):
            self._sketch.merge(msgspec.json.decode(sketch_json, type=SketchData))

    def finalize(self) -> str:
        """Return the sum of the sketches."""
        return msgspec.json.encode(self._sketch.data()).decode()


def _count(sketch_json: Value) -> int | None:
    """Return how many durations a sketch counted: the SQL function `sketch_count(sketch)`."""
    return msgspec.json.decode(sketch_json, type=SketchData).count if isinstance(sketch_json, str) else None


@contextmanager
def _read_only(path: Path, guard: Guard, time_limit_s: float) -> Iterator[sqlite3.Connection]:
    """Open the database so that the guard sees every statement, and time is up after `time_limit_s`."""
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        for kind, value in _LIMITS.items():
            connection.setlimit(kind, value)
        # typeshed wants a TypedDict-like protocol of the class; any class with step and finalize will do
        connection.create_aggregate("sketch_quantile", 2, _Quantile)  # type: ignore[arg-type]
        connection.create_aggregate("sketch_merge", 1, _Merge)  # type: ignore[arg-type] # as above
        connection.create_function("sketch_count", 1, _count, deterministic=True)
        _hide_bodies(connection, guard.prefix)
        connection.set_authorizer(guard)
        connection.set_progress_handler(_deadline(time_limit_s), _STEPS_BETWEEN_CHECKS)
        yield connection


def _hide_bodies(connection: sqlite3.Connection, prefix: str) -> None:
    connection.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')")  # the first use registers them
    for name, statement in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'view'").fetchall():
        body = re.sub(r"(?is)^\s*CREATE\s+VIEW\s+\w+\s+AS\s", "", statement, count=1)
        connection.execute(f"CREATE TEMP VIEW {prefix}{name} AS {body}")
        connection.execute(f"CREATE TEMP VIEW {name} AS SELECT * FROM {prefix}{name}")  # noqa: S608 - our own names


def _deadline(time_limit_s: float) -> Callable[[], int]:
    ends_at = time.monotonic() + time_limit_s
    return lambda: int(time.monotonic() > ends_at)


def _collect(cursor: sqlite3.Cursor, limit: int) -> QueryResult:
    columns = tuple(column[0] for column in cursor.description)
    rows: list[tuple[Value, ...]] = []
    left_bytes = MAX_RESULT_BYTES
    is_cut = False
    for row in cursor:
        shown = tuple(_shown(value) for value in row)
        left_bytes -= sum(len(value) if isinstance(value, str) else 8 for value in shown)
        if len(rows) == limit or left_bytes < 0:
            is_cut = True
            break
        rows.append(shown)
    return QueryResult(columns=columns, rows=tuple(rows), is_cut=is_cut)


def _shown(value: object) -> Value:
    if value is None or isinstance(value, str | int | float):
        return value
    return value.hex() if isinstance(value, bytes) else str(value)
