"""The named queries: what a dashboard wants, as SQL over the documented views. Each is also an example to start from.

A parameter that is not given is null.
"""

from controller.api.schema import NamedQuery

NAMED: tuple[NamedQuery, ...] = (
    NamedQuery(
        name="fleet-status",
        about="every device: its state, whether it is online, what it runs",
        sql="SELECT device, state, liveness, groups, installed, last_seen_at FROM fleet_status ORDER BY device",
    ),
    NamedQuery(
        name="version-spread",
        about="how many devices run each release",
        sql="""SELECT model, version, devices, percent FROM version_spread
WHERE :model IS NULL OR model = :model ORDER BY model, devices DESC""",
        parameters=("model",),
    ),
    NamedQuery(
        name="rollout-progress",
        about="the rollouts, the newest first: how far each is",
        sql="""SELECT rollout, model, version, state, devices, done, failed, unfinished, created_at, finished_at
FROM rollout_progress WHERE :model IS NULL OR model = :model ORDER BY created_at DESC, rollout""",
        parameters=("model",),
    ),
    NamedQuery(
        name="latency",
        about="the latency of each release in microseconds, over all devices",
        sql="""SELECT model, version, devices, inferences, sketch_quantile(latency, 0.50) AS p50_us,
       sketch_quantile(latency, 0.95) AS p95_us, sketch_quantile(latency, 0.99) AS p99_us, memory_peak_bytes
FROM (SELECT model, version, count(DISTINCT device) AS devices, sum(inferences) AS inferences,
             sketch_merge(latency) AS latency, max(memory_peak_bytes) AS memory_peak_bytes
      FROM usage_totals WHERE :model IS NULL OR model = :model GROUP BY model, version)
GROUP BY model, version ORDER BY model, version""",
        parameters=("model",),
    ),
    NamedQuery(
        name="latency-by-device",
        about="the latency of one model's releases on each device, the slowest first",
        sql="""SELECT device, version, sum(inferences) AS inferences, sketch_quantile(latency, 0.50) AS p50_us,
       sketch_quantile(latency, 0.99) AS p99_us
FROM usage_totals WHERE model = :model GROUP BY device, version ORDER BY p99_us DESC""",
        parameters=("model",),
        required=("model",),
    ),
    NamedQuery(
        name="failures",
        about="why deployments ended badly, the most frequent reason first",
        sql="""SELECT model, version, state, reason_code, deployments, devices, example, last_at
FROM failures_by_reason WHERE :model IS NULL OR model = :model ORDER BY deployments DESC, last_at DESC""",
        parameters=("model",),
    ),
    NamedQuery(
        name="errors",
        about="inference errors of each release, by kind",
        sql="""SELECT model, version, code, sum(errors) AS errors, count(DISTINCT device) AS devices
FROM error_totals WHERE :model IS NULL OR model = :model GROUP BY model, version, code ORDER BY errors DESC""",
        parameters=("model",),
    ),
    NamedQuery(
        name="traps",
        about="where in each release inference went wrong, and how: the layer's name and the kind of trap; "
        "of the kind nan_output, an output's name and how many answers had NaN in it",
        sql="""SELECT model, version, layer, kind, sum(traps) AS traps, count(DISTINCT device) AS devices,
       max(received_at) AS last_at
FROM trap_log WHERE :model IS NULL OR model = :model
GROUP BY model, version, layer, kind ORDER BY traps DESC, last_at DESC""",
        parameters=("model",),
    ),
    NamedQuery(
        name="stale-devices",
        about="devices that are not online, the longest silent first",
        sql="""SELECT device, liveness, last_seen_at, silent_s, unfinished FROM stale_devices
ORDER BY last_seen_at IS NOT NULL, last_seen_at""",
    ),
    NamedQuery(
        name="unfinished",
        about="what every unfinished deployment is waiting for",
        sql="""SELECT d.device, d.model, d.version, d.state, d.rollout, d.updated_at, f.liveness
FROM deployment_log d JOIN fleet_status f ON f.device = d.device
WHERE d.state NOT IN ('succeeded', 'already_installed', 'removed', 'failed', 'rejected', 'timed_out', 'rolled_back',
                      'rollback_failed', 'canceled', 'superseded')
ORDER BY d.updated_at""",
    ),
    NamedQuery(
        name="device-history",
        about="what one device reported about its deployments, the newest first",
        sql="""SELECT received_at, model, version, state, reason_code, reason_message, deployment
FROM receipt_log WHERE device = :device ORDER BY received_at DESC, seq DESC""",
        parameters=("device",),
        required=("device",),
    ),
    NamedQuery(
        name="device-problems",
        about="what devices said that they cannot do: keep anything in memory, or serve a model",
        sql="SELECT device, concerned, code, message, liveness FROM device_problems ORDER BY device, concerned",
    ),
    NamedQuery(
        name="device-health",
        about="the newest telemetry of every device",
        sql="""SELECT t.device, t.received_at, t.cpu_permille / 10.0 AS cpu_percent, t.memory_used_bytes,
       t.memory_total_bytes, t.agent_memory_bytes, t.uptime_s
FROM telemetry_log t JOIN (SELECT device, max(received_at) AS newest FROM telemetry_log GROUP BY device) n
  ON n.device = t.device AND n.newest = t.received_at
GROUP BY t.device ORDER BY t.device""",
    ),
    NamedQuery(
        name="audit",
        about="who commanded what, the newest first",
        sql='SELECT "at", actor, action, subject, detail, request_id FROM audit_log ORDER BY id DESC',
    ),
)
