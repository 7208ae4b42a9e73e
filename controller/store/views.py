"""The documented views: what `fleetctl query` may read. Names and columns stay; columns may be added.

Times are RFC 3339 in UTC. Latencies are sketches as JSON: `sketch_quantile(latency, 0.99)` of the query connection
adds up those of any rows and returns microseconds.
"""

# ruff: noqa: S608 - every piece of these statements is a literal of this file or of the lifecycle table
from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection, inspect, text

from protocol import lifecycle


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One view: its name, what a row is, and its SELECT."""

    name: str
    about: str
    sql: str


def _time(column: str, name: str) -> str:
    return f"strftime('%Y-%m-%dT%H:%M:%SZ', {column} / 1000, 'unixepoch') AS {name}"


def _instant(key: str) -> str:
    return f"coalesce((SELECT CAST(i.value AS INTEGER) FROM settings i WHERE i.key = '{key}'), 0)"


def _period(table: str) -> str:
    return f"CASE {table}.length_ms WHEN 3600000 THEN 'hour' ELSE 'day' END"


# Set by controller.reports.rollup: single intervals before are forgotten; hours before are summed up.
_KEPT_FROM = _instant("telemetry_kept_from_ms")
_SUMMED_UNTIL = _instant("telemetry_summed_until_ms")

# The newest deployment of each model on each device.
_LATEST = (
    "SELECT d.* FROM deployments d WHERE d.number = "
    "(SELECT max(n.number) FROM deployments n WHERE n.device_id = d.device_id AND n.model = d.model)"
)


def _states(states: Iterable[str]) -> str:
    return "(" + ", ".join(f"'{s}'" for s in sorted(states)) + ")"


_OPEN = _states(s for s in lifecycle.DEPLOYMENT if not lifecycle.is_final(lifecycle.DEPLOYMENT, s))
_BAD = _states(lifecycle.BAD_ENDS)
_GOOD = _states(lifecycle.GOOD_ENDS)

FLEET_STATUS = View(
    name="fleet_status",
    about="one row for each device",
    sql=f"""
SELECT d.id AS device,
       CASE WHEN d.liveness = 'never_seen' THEN 'registered'
            WHEN EXISTS (SELECT 1 FROM deployments p WHERE p.device_id = d.id AND p.state IN {_OPEN}) THEN 'pending'
            WHEN EXISTS (SELECT 1 FROM ({_LATEST}) l WHERE l.device_id = d.id AND l.state IN {_BAD}) THEN 'error'
            WHEN d.acknowledged_director_version < d.director_version THEN 'pending'
            ELSE 'in_sync' END AS state,
       d.liveness AS liveness,
       (SELECT group_concat(g.group_name, ' ') FROM device_groups g WHERE g.device_id = d.id) AS groups,
       (SELECT group_concat(i.model || '@' || i.version, ' ') FROM installed i WHERE i.device_id = d.id) AS installed,
       d.arch AS arch, d.agent_version AS agent_version,
       {_time("d.enrolled_at_ms", "enrolled_at")}, {_time("d.last_seen_at_ms", "last_seen_at")},
       d.director_version AS director_version,
       d.acknowledged_director_version AS acknowledged_director_version
FROM devices d""",
)
INSTALLED_MODELS = View(
    name="installed_models",
    about="one row for each model on each device that committed it",
    sql=f"""
SELECT i.device_id AS device, i.model AS model, i.version AS version, i.deployment_id AS deployment,
       {_time("i.installed_at_ms", "installed_at")}
FROM installed i""",
)
DEVICE_PROBLEMS = View(
    name="device_problems",
    about="one row for each thing that a device said it cannot do: `memory`, or `model/` and its name",
    sql="""
SELECT d.id AS device, p.key AS concerned, json_extract(p.value, '$.code') AS code,
       json_extract(p.value, '$.message') AS message, d.liveness AS liveness
FROM devices d, json_each(d.problems_json) p""",
)
DEVICE_GROUPS = View(
    name="group_members",
    about="one row for each device in each group",
    sql="SELECT m.group_name AS group_name, m.device_id AS device FROM device_groups m",
)
VERSION_SPREAD = View(
    name="version_spread",
    about="how many devices have committed each release",
    sql="""
SELECT i.model AS model, i.version AS version, count(*) AS devices,
       round(100.0 * count(*) / (SELECT count(*) FROM installed a WHERE a.model = i.model), 1) AS percent
FROM installed i GROUP BY i.model, i.version""",
)
RELEASE_LOG = View(
    name="release_log",
    about="one row for each release",
    sql=f"""
SELECT r.model AS model, r.version AS version, r.release_counter AS release_counter,
       r.module_bytes AS module_bytes, r.memory_bytes AS memory_bytes, {_time("r.created_at_ms", "created_at")},
       {_time("r.yanked_at_ms", "yanked_at")}, r.yank_reason AS yank_reason,
       r.release_counter < m.min_release_counter AS is_below_floor
FROM releases r JOIN models m ON m.name = r.model""",
)
ROLLOUT_PROGRESS = View(
    name="rollout_progress",
    about="one row for each rollout",
    sql=f"""
SELECT r.id AS rollout, r.model AS model, r.version AS version, r.state AS state,
       (SELECT count(*) FROM deployments d WHERE d.rollout_id = r.id) AS devices,
       (SELECT count(*) FROM deployments d WHERE d.rollout_id = r.id AND d.state IN {_GOOD}) AS done,
       (SELECT count(*) FROM deployments d WHERE d.rollout_id = r.id AND d.state IN {_BAD}) AS failed,
       (SELECT count(*) FROM deployments d WHERE d.rollout_id = r.id AND d.state IN {_OPEN}) AS unfinished,
       {_time("r.created_at_ms", "created_at")}, {_time("r.finished_at_ms", "finished_at")}
FROM rollouts r""",
)
DEPLOYMENT_LOG = View(
    name="deployment_log",
    about="one row for each device in each rollout",
    sql=f"""
SELECT d.id AS deployment, d.rollout_id AS rollout, d.device_id AS device, d.model AS model, d.version AS version,
       d.is_removal AS is_removal, d.state AS state, d.reason_code AS reason_code,
       d.reason_message AS reason_message, d.done_bytes AS done_bytes, d.total_bytes AS total_bytes,
       d.measures_json AS measures, {_time("d.created_at_ms", "created_at")}, {_time("d.updated_at_ms", "updated_at")}
FROM deployments d""",
)
FAILURES_BY_REASON = View(
    name="failures_by_reason",
    about="how many deployments of each release ended badly, by reason",
    sql=f"""
SELECT f.model AS model, f.version AS version, f.state AS state,
       coalesce(f.reason_code, 'unknown') AS reason_code, count(*) AS deployments,
       count(DISTINCT f.device_id) AS devices, max(f.reason_message) AS example,
       {_time("max(f.updated_at_ms)", "last_at")}
FROM deployments f WHERE f.state IN {_BAD}
GROUP BY f.model, f.version, f.state, coalesce(f.reason_code, 'unknown')""",
)
STALE_DEVICES = View(
    name="stale_devices",
    about="one row for each device that is not online, with how long it has been silent",
    sql=f"""
SELECT d.id AS device, d.liveness AS liveness, {_time("d.last_seen_at_ms", "last_seen_at")},
       CAST(strftime('%s', 'now') AS INTEGER) - d.last_seen_at_ms / 1000 AS silent_s,
       (SELECT count(*) FROM deployments p WHERE p.device_id = d.id AND p.state IN {_OPEN}) AS unfinished
FROM devices d WHERE d.liveness <> 'online'""",
)
RECEIPT_LOG = View(
    name="receipt_log",
    about="one row for each signed receipt; `at` is by the device's clock",
    sql=f"""
SELECT r.device_id AS device, r.stream AS stream, r.seq AS seq, r.deployment_id AS deployment, r.model AS model,
       r.version AS version, r.state AS state, r.session AS session, {_time("r.at_ms", '"at"')},
       {_time("r.received_at_ms", "received_at")}, r.reason_code AS reason_code,
       r.reason_message AS reason_message, r.measures_json AS measures, r.ignored_because AS ignored_because
FROM receipts r""",
)
TELEMETRY_LOG = View(
    name="telemetry_log",
    about="one row for each telemetry interval of each device; `from_at` and `to_at` are by the device's clock. Of "
    "older ones a row for each hour or day, as `period` says: the mean of the processor, the highest of the rest",
    sql=f"""
SELECT s.device_id AS device, s.stream AS stream, s.seq AS seq, s.session AS session,
       {_time("s.from_ms", "from_at")}, {_time("s.to_ms", "to_at")}, {_time("s.received_at_ms", "received_at")},
       s.cpu_permille AS cpu_permille, s.memory_used_bytes AS memory_used_bytes,
       s.memory_total_bytes AS memory_total_bytes, s.agent_memory_bytes AS agent_memory_bytes, s.uptime_s AS uptime_s,
       'interval' AS period
FROM device_samples s WHERE s.received_at_ms >= {_KEPT_FROM}
UNION ALL
SELECT h.device_id, NULL, NULL, NULL, {_time("h.start_ms", "from_at")},
       {_time("h.start_ms + h.length_ms", "to_at")}, {_time("h.start_ms", "received_at")},
       h.cpu_permille, h.memory_used_bytes, h.memory_total_bytes, h.agent_memory_bytes, h.uptime_s, {_period("h")}
FROM sample_rollups h WHERE h.start_ms < {_KEPT_FROM}""",
)


def _usage(kept_from: str) -> str:
    """Return releases in single intervals that arrived since, and in sums from before."""
    return f"""
SELECT u.device_id AS device, u.model AS model, u.version AS version, u.seq AS seq,
       {_time("u.received_at_ms", "received_at")}, u.inferences AS inferences, u.latency_json AS latency,
       u.memory_peak_bytes AS memory_peak_bytes,
       (SELECT coalesce(sum(e.count), 0) FROM usage_errors e WHERE e.device_id = u.device_id
        AND e.stream = u.stream AND e.seq = u.seq AND e.model = u.model AND e.version = u.version) AS errors,
       'interval' AS period
FROM device_samples s JOIN usage u ON u.device_id = s.device_id AND u.stream = s.stream AND u.seq = s.seq
WHERE s.received_at_ms >= {kept_from}
UNION ALL
SELECT h.device_id, h.model, h.version, NULL, {_time("h.start_ms", "received_at")}, h.inferences, h.latency_json,
       h.memory_peak_bytes,
       (SELECT coalesce(sum(e.count), 0) FROM usage_error_rollups e WHERE e.start_ms = h.start_ms
        AND e.length_ms = h.length_ms AND e.device_id = h.device_id AND e.model = h.model AND e.version = h.version),
       {_period("h")}
FROM usage_rollups h WHERE h.start_ms < {kept_from}"""


def _errors(kept_from: str) -> str:
    """Return errors, likewise."""
    return f"""
SELECT e.device_id AS device, e.model AS model, e.version AS version, e.seq AS seq, e.code AS code, e.count AS errors,
       'interval' AS period
FROM device_samples s JOIN usage_errors e ON e.device_id = s.device_id AND e.stream = s.stream AND e.seq = s.seq
WHERE s.received_at_ms >= {kept_from}
UNION ALL
SELECT h.device_id, h.model, h.version, NULL, h.code, h.count, {_period("h")}
FROM usage_error_rollups h WHERE h.start_ms < {kept_from}"""


USAGE_LOG = View(
    name="usage_log",
    about="one row for each release in each telemetry interval; `latency` is a sketch. Of older ones a row for each "
    "hour or day, as `period` says",
    sql=_usage(_KEPT_FROM),
)
USAGE_TOTALS = View(
    name="usage_totals",
    about="the same, with every hour that is over as one row: what it adds up to is equal, and quicker to add up",
    sql=_usage(_SUMMED_UNTIL),
)
ERROR_LOG = View(
    name="error_log",
    about="one row for each kind of inference error in each telemetry interval, hour or day",
    sql=_errors(_KEPT_FROM),
)
ERROR_TOTALS = View(
    name="error_totals",
    about="the same, with every hour that is over as one row",
    sql=_errors(_SUMMED_UNTIL),
)
TRAP_LOG = View(
    name="trap_log",
    about="one row for each way in which a release went wrong in one of its layers, in each telemetry interval; "
    "of older ones in each hour or day, as `period` says",
    sql=f"""
SELECT t.device_id AS device, t.model AS model, t.version AS version, t.seq AS seq,
       {_time("s.received_at_ms", "received_at")}, t.kind AS kind, nullif(t.layer, '') AS layer, t.count AS traps,
       'interval' AS period
FROM device_samples s JOIN usage_traps t ON t.device_id = s.device_id AND t.stream = s.stream AND t.seq = s.seq
WHERE s.received_at_ms >= {_KEPT_FROM}
UNION ALL
SELECT h.device_id, h.model, h.version, NULL, {_time("h.start_ms", "received_at")}, h.kind, nullif(h.layer, ''),
       h.count, {_period("h")}
FROM usage_trap_rollups h WHERE h.start_ms < {_KEPT_FROM}""",
)
AUDIT_LOG = View(
    name="audit_log",
    about="one row for each command that changed something",
    sql=f"""
SELECT a.id AS id, {_time("a.at_ms", '"at"')}, a.actor AS actor, a.action AS action, a.subject AS subject,
       a.request_id AS request_id, a.detail AS detail
FROM audit a""",
)
VIEWS = (
    FLEET_STATUS,
    INSTALLED_MODELS,
    DEVICE_PROBLEMS,
    DEVICE_GROUPS,
    VERSION_SPREAD,
    RELEASE_LOG,
    ROLLOUT_PROGRESS,
    DEPLOYMENT_LOG,
    FAILURES_BY_REASON,
    STALE_DEVICES,
    RECEIPT_LOG,
    TELEMETRY_LOG,
    USAGE_LOG,
    USAGE_TOTALS,
    ERROR_LOG,
    ERROR_TOTALS,
    TRAP_LOG,
    AUDIT_LOG,
)


def create_views(connection: Connection) -> None:
    """Create every view."""
    for view in VIEWS:
        connection.execute(text(_statement(view)))


def drop_views(connection: Connection) -> None:
    """Drop every view that exists, also one of another version of this program."""
    for name in inspect(connection).get_view_names():
        connection.execute(text(f"DROP VIEW {name}"))


def has_views(connection: Connection) -> bool:
    """Return whether the database has exactly the views of this file."""
    if connection.dialect.name != "sqlite":
        return False  # other databases keep another text than they were given
    found = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'view'"))
    return {row.name: row.sql for row in found} == {view.name: _statement(view) for view in VIEWS}


def _statement(view: View) -> str:
    return f"CREATE VIEW {view.name} AS {view.sql.strip()}"
