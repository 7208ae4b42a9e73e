"""Dashboard queries: what they answer, and what no SQL gets past the guard."""

import sqlite3
import time
from pathlib import Path

import pytest

from controller.api.schema import QueryRequest, QueryResult
from controller.errors import NotFoundError, RefusedError
from controller.queries.query import MAX_ROWS, Queries
from controller.queries.reference import reference
from controller.store.models import Base
from controller.store.views import VIEWS
from protocol.errors import MalformedError
from protocol.messages import Reason, TrapCount
from tests.controller.service.fleet import HAPPY, FleetCore, bundle


@pytest.fixture
def queries(fleet: FleetCore) -> Queries:
    return Queries(fleet.core.store.path)


def sql(queries: Queries, text: str, **parameters: str) -> QueryResult:
    return queries.run(QueryRequest(sql=text, parameters=parameters))


def column(result: QueryResult, name: str) -> list[object]:
    place = result.columns.index(name)
    return [row[place] for row in result.rows]


@pytest.fixture
def busy(fleet: FleetCore) -> FleetCore:
    """A fleet in which something happened: a success, a failure, telemetry."""
    release = fleet.release(bundle())
    one, two = fleet.enroll("press-1", "line-1"), fleet.enroll("press-2")
    fleet.enroll("press-3", is_born=False)
    rollout = fleet.roll_out("double", "1.0.0", "press-1", "press-2")
    ids = {d.device: d.id for d in rollout.deployments}
    fleet.say(one, "receipts", one.report(ids["press-1"], release, HAPPY))
    failed = two.report(ids["press-2"], release, (*HAPPY[:6], "failed"), Reason.of("self_test_failed", "vector 0"))
    fleet.say(two, "receipts", failed)
    for latencies in ([1_000] * 98, [5_000, 100_000]):
        traps = tuple(
            TrapCount(kind=kind, layer=layer, count=n)
            for kind, layer, n in (("unreachable", "conv1", 1), ("out_of_bounds", "", 2), ("nan_output", "y", 5))
        )
        fleet.say(one, "telemetry", one.telemetry(one.record((release, latencies), errors={"trap": 3}, traps=traps)))
    fleet.say(two, "liveness", two.liveness(online=False))
    return fleet


def test_every_named_query_runs_on_a_new_fleet(queries: Queries) -> None:
    """With no parameter given but those that it needs, and with every one given."""
    for query in queries.named:
        for parameters in (dict.fromkeys(query.required, "x"), dict.fromkeys(query.parameters, "x")):
            result = queries.run(QueryRequest(name=query.name, parameters=parameters))
            assert ((), False) == (result.rows, result.is_cut)


def test_a_parameter_that_is_needed_is_asked_for(queries: Queries) -> None:
    """A query about one device or model says so, with the command, in place of no rows; the others take all."""
    assert {"device-history", "latency-by-device"} == {query.name for query in queries.named if query.required}
    with pytest.raises(RefusedError, match="query device-history needs the parameter device") as caught:
        queries.run(QueryRequest(name="device-history"))
    assert "as in `fleetctl query device-history --param device=DEVICE`" == caught.value.hint
    for query in queries.named:
        any_value = {name for name in query.parameters if f":{name} IS NULL OR" in query.sql}
        assert set(query.parameters) - any_value == set(query.required)


def test_every_view_can_be_read_and_is_described(queries: Queries) -> None:
    """The database has the views that the code documents, and those alone."""
    for view in VIEWS:
        assert view.about
        assert sql(queries, f"SELECT * FROM {view.name}").columns
    assert queries._path is not None
    with sqlite3.connect(queries._path) as connection:
        found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'view'").fetchall())
    connection.close()
    assert {view.name: f"CREATE VIEW {view.name} AS {view.sql.strip()}" for view in VIEWS} == found


def test_the_dashboard_shows_what_happened(busy: FleetCore, queries: Queries) -> None:
    """Fleet status, version spread, progress, failures, stale devices."""

    def named(name: str, **parameters: str) -> QueryResult:
        return queries.run(QueryRequest(name=name, parameters=parameters))

    fleet = named("fleet-status")
    assert ["press-1", "press-2", "press-3"] == column(fleet, "device")
    assert ["in_sync", "error", "registered"] == column(fleet, "state")
    assert ["online", "offline", "never_seen"] == column(fleet, "liveness")
    assert ["double@1.0.0", None, None] == column(fleet, "installed")
    assert (("double", "1.0.0", 1, 100.0),) == named("version-spread", model="double").rows
    progress = named("rollout-progress")
    assert [["finished"], [2], [1], [1], [0]] == [
        column(progress, name) for name in ("state", "devices", "done", "failed", "unfinished")
    ]
    failures = named("failures")
    assert [["self_test_failed"], [1], ["vector 0"]] == [
        column(failures, name) for name in ("reason_code", "devices", "example")
    ]
    assert ["press-3", "press-2"] == column(named("stale-devices"), "device")
    assert ["trap"] == column(named("errors"), "code")
    assert [6] == column(named("errors"), "errors")
    assert [
        ("double", "1.0.0", "y", "nan_output", 10, 1),
        ("double", "1.0.0", None, "out_of_bounds", 4, 1),
        ("double", "1.0.0", "conv1", "unreachable", 2, 1),
    ] == [row[:6] for row in named("traps", model="double").rows]
    assert "succeeded" in column(named("device-history", device="press-1"), "state")
    assert [12.5] == column(named("device-health"), "cpu_percent")
    assert "rollout.start" in column(named("audit"), "action")
    assert [] == column(named("unfinished"), "device")


def test_latency_quantiles_come_from_merged_sketches(busy: FleetCore, queries: Queries) -> None:
    """Within the sketch's one percent; ad-hoc SQL has the same functions."""
    result = queries.run(QueryRequest(name="latency", parameters={"model": "double"}))
    values = dict(zip(result.columns, result.rows[0], strict=True))
    assert 100 == values["inferences"]
    assert values["p50_us"] == pytest.approx(1_000, rel=0.01)
    assert values["p99_us"] == pytest.approx(5_000, rel=0.01)
    assert (100,) == sql(queries, "SELECT sum(sketch_count(latency)) FROM usage_log").rows[0]
    (top,) = sql(queries, "SELECT sketch_quantile(latency, 1.0) FROM usage_log").rows[0]
    assert top == pytest.approx(100_000, rel=0.01)


def test_parameters_are_bound_and_never_become_sql(busy: FleetCore, queries: Queries) -> None:
    """A name with a quote in it is only a name."""
    assert () == sql(queries, "SELECT device FROM fleet_status WHERE device = :d", d="' OR 1=1 --").rows
    assert (("press-1",),) == sql(queries, "SELECT device FROM fleet_status WHERE device = :d", d="press-1").rows


def test_rows_beyond_the_limit_are_cut_and_that_is_said(busy: FleetCore, queries: Queries) -> None:
    """Also when the result is too large as a whole."""
    cut = queries.run(QueryRequest(sql="SELECT device FROM fleet_status", limit=2))
    assert (2, True) == (len(cut.rows), cut.is_cut)
    whole = queries.run(QueryRequest(sql="SELECT device FROM fleet_status", limit=3))
    assert (3, False) == (len(whole.rows), whole.is_cut)
    wide = QueryRequest(sql="SELECT :w FROM receipt_log, receipt_log", parameters={"w": "x" * 800_000}, limit=MAX_ROWS)
    large = queries.run(wide)
    assert large.is_cut
    assert len(large.rows) < 30


ATTACKS = (
    *(f"SELECT * FROM {table}" for table in Base.metadata.tables),
    *(f"SELECT count(*) FROM {table}" for table in Base.metadata.tables),
    "SELECT 1 FROM devices",
    "SELECT main.devices.public_key FROM main.devices",
    "SELECT rowid FROM invites",
    "SELECT (SELECT token_hash FROM invites) FROM fleet_status",
    "SELECT device FROM fleet_status WHERE EXISTS (SELECT 1 FROM invites WHERE token_hash > 'a')",
    "SELECT * FROM fleet_status JOIN invites",
    "SELECT * FROM fleet_status UNION SELECT token_hash, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 FROM invites",
    # SQLite names the innermost view *or* common table expression to the authorizer.
    "WITH fleet_status AS (SELECT * FROM invites) SELECT * FROM fleet_status",
    "WITH fleet_status AS MATERIALIZED (SELECT * FROM invites) SELECT * FROM fleet_status",
    "WITH audit_log(a) AS (SELECT token_hash FROM invites) SELECT a FROM audit_log",
    "WITH body_x AS (SELECT * FROM invites) SELECT * FROM body_x",
    "SELECT * FROM (SELECT * FROM invites) AS fleet_status",
    "SELECT * FROM sqlite_master",
    "SELECT * FROM sqlite_schema",
    "SELECT * FROM sqlite_temp_master",
    "SELECT * FROM temp.sqlite_temp_schema",
    "SELECT * FROM pragma_table_info('devices')",
    "SELECT * FROM pragma_database_list",
    "SELECT * FROM dbstat",
    "PRAGMA table_info(devices)",
    "PRAGMA writable_schema = 1",
    "ATTACH DATABASE '/etc/passwd' AS other",
    "ATTACH DATABASE ':memory:' AS other",
    "DETACH DATABASE main",
    "INSERT INTO groups VALUES ('x', 1)",
    "UPDATE devices SET public_key = x'00'",
    "DELETE FROM audit",
    "REPLACE INTO settings VALUES ('a', 'b')",
    "DROP VIEW fleet_status",
    "DROP TABLE devices",
    "CREATE TABLE x (a)",
    "CREATE TEMP TABLE x (a)",
    "CREATE TEMP VIEW x AS SELECT * FROM invites",
    "CREATE TEMP TRIGGER x AFTER INSERT ON groups BEGIN SELECT 1; END",
    "ALTER TABLE devices RENAME TO d",
    "ANALYZE",
    "REINDEX",
    "VACUUM INTO '/tmp/stolen.db'",
    "BEGIN IMMEDIATE",
    "SAVEPOINT x",
    "COMMIT",
    "SELECT load_extension('/tmp/evil.so')",
    "SELECT 1; DELETE FROM audit",
    "SELECT writefile('/tmp/x', 'y')",
    "SELECT readfile('/etc/passwd')",
    "SELECT fts3_tokenizer('simple', x'00')",
    # One call that makes gigabytes cannot be interrupted.
    "SELECT zeroblob(2000000000)",
    "SELECT randomblob(2000000000)",
    "SELECT printf('%.*c', 2000000000, 'x')",
    "SELECT FORMAT('%.*c', 2000000000, 'x')",
    "EXPLAIN SELECT * FROM invites",
    "EXPLAIN QUERY PLAN SELECT * FROM invites",
    "VALUES ((SELECT token_hash FROM invites))",
    "",
    ";",
    "-- nothing",
    "SELECT",
    "\0",
    "SELECT '\ud800'",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_sql_reads_documented_views_and_nothing_else(fleet: FleetCore, queries: Queries, attack: str) -> None:
    """No table, no schema, no file, no statement but SELECT."""
    with pytest.raises(RefusedError):
        sql(queries, attack)


def test_counting_a_view_is_allowed(busy: FleetCore, queries: Queries) -> None:
    """Although SQLite asks for the table behind it, without a word of the view."""
    assert ((3,),) == sql(queries, "SELECT count(*) FROM fleet_status").rows
    assert ((9,),) == sql(queries, "SELECT count(*) FROM fleet_status a JOIN fleet_status b").rows


@pytest.mark.parametrize(
    "text",
    [
        "WITH f AS (SELECT device, state FROM fleet_status) SELECT state, count(*) FROM f GROUP BY state",
        "SELECT device, row_number() OVER (ORDER BY device) FROM fleet_status",
        "SELECT key, value FROM receipt_log, json_each(measures)",
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 10) SELECT x FROM n",
        "SELECT x'00ff', 1.5, NULL, 'ä', 9e999",
        "EXPLAIN QUERY PLAN SELECT * FROM fleet_status",
    ],
)
def test_the_rest_of_sql_is_there(busy: FleetCore, queries: Queries, text: str) -> None:
    """Expressions, windows, JSON, recursion."""
    assert sql(queries, text).rows


@pytest.mark.parametrize(
    "text",
    [
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n",
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n WHERE x < 0",
        "SELECT count(*) FROM receipt_log a, receipt_log b, receipt_log c, receipt_log d, receipt_log e, receipt_log f,"
        " receipt_log g, receipt_log h, receipt_log i, receipt_log j",
    ],
)
def test_a_query_that_takes_too_long_is_stopped(busy: FleetCore, text: str) -> None:
    """The service goes on serving."""
    started = time.monotonic()
    with pytest.raises(RefusedError, match="took longer than"):
        sql(Queries(busy.core.store.path, time_limit_s=0.2), text)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "text",
    [
        "SELECT replace(hex(replace(hex(hex('abcdefgh')), '3', hex(hex(hex('abcdefgh'))))), '3', 'a longer text')"
        " || group_concat(a.measures || b.state || c.deployment || d.stream || e.deployment)"
        " FROM receipt_log a, receipt_log b, receipt_log c, receipt_log d, receipt_log e",
        "SELECT " + "(" * 2_000 + "1" + ")" * 2_000,
        "SELECT sketch_quantile('{', 0.5)",
        "SELECT sketch_quantile('{}', 7)",
        "SELECT sketch_quantile(1)",
        "SELECT sketch_count('[]')",
        "SELECT :missing",
        "SELECT CAST(x'ff' AS TEXT)",
    ],
)
def test_a_query_that_goes_wrong_says_so(busy: FleetCore, queries: Queries, text: str) -> None:
    """Large values, deep nesting, wrong arguments."""
    with pytest.raises(RefusedError):
        sql(queries, text)


@pytest.mark.parametrize(
    ("request_fields", "error"),
    [
        ({}, MalformedError),
        ({"name": "latency", "sql": "SELECT 1"}, MalformedError),
        ({"name": "unknown"}, NotFoundError),
        ({"name": "latency", "parameters": {"nonsense": "x"}}, MalformedError),
        ({"sql": "SELECT 1", "limit": 0}, MalformedError),
        ({"sql": "SELECT 1", "limit": MAX_ROWS + 1}, MalformedError),
        ({"sql": "SELECT 1 " + " " * 20_000}, MalformedError),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    queries: Queries, request_fields: dict[str, object], error: type[Exception]
) -> None:
    """A query is either named or written, within bounds."""
    with pytest.raises(error):
        queries.run(QueryRequest(**request_fields))  # type: ignore[arg-type]


def test_without_the_embedded_database_there_are_no_queries() -> None:
    """The message says where to ask instead."""
    with pytest.raises(RefusedError, match="embedded database"):
        Queries(None).run(QueryRequest(sql="SELECT 1"))


def test_a_query_sees_what_was_committed_and_holds_up_no_writer(busy: FleetCore, queries: Queries) -> None:
    """Readers and the writer do not wait for each other."""
    with busy.core.store.write() as session:
        session.connection().exec_driver_sql("INSERT INTO groups VALUES ('new', 1)")
        assert ((3,),) == sql(queries, "SELECT count(*) FROM fleet_status").rows


def test_a_path_with_odd_characters_is_only_a_path(tmp_path: Path) -> None:
    """A question mark does not add options to the connection."""
    odd = tmp_path / "a?mode=rwc&b.db"
    with sqlite3.connect(odd) as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()
    assert ((1,),) == sql(Queries(odd), "SELECT 1").rows


def test_the_page_about_queries_is_that_of_the_code() -> None:
    """docs/QUERIES.md is what `python -m controller.queries.reference` makes."""
    page = Path(__file__).parents[3] / "docs" / "QUERIES.md"
    assert reference() == page.read_text()
