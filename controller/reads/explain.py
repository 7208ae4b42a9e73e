"""Why a device runs what it runs, and why not something else: sentences from the record, and the next step."""

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from controller.api import schema
from controller.errors import RefusedError
from controller.reads.candidates import candidates
from controller.reads.devices import desired_versions, device_row, get_device
from controller.reads.releases import no_model, read_manifest, refusal_of
from controller.rollouts import plan_release
from controller.store.deployments import deployment_state, latest_deployments
from controller.store.files import FileStore
from controller.store.models import DeploymentRow, DeviceRow, InstalledRow, ModelRow, ReleaseRow, RolloutRow
from controller.store.times import rfc3339
from protocol import lifecycle
from protocol.errors import ProtocolError
from protocol.identifiers import Version
from protocol.messages import Reason

_WAITS = "nothing to do: it goes on by itself when the device is online"
_OF_THE_DEVICE = frozenset(
    {"disk_full", "disk_quota", "no_timer", "out_of_memory", "process_start", "process_gone", "stack_limit"}
)
"""The codes of ends that say nothing against the release: no new one would fare better."""


class _Case:
    """What is known about one model on one device; collects the sentences."""

    def __init__(self, session: Session, files: FileStore, device: DeviceRow, model: str) -> None:
        self.session = session
        self.files = files
        self.device = device
        self.model = model
        self.installed = session.get(InstalledRow, (device.id, model))
        self.latest = latest_deployments(session, [device.id])[device.id].get(model)
        self.because: list[str] = []
        self.next_step: str | None = None

    def say(self, sentence: str, next_step: str | None = None) -> None:
        """Add a reason; the first next step stays."""
        self.because.append(sentence)
        self.next_step = self.next_step or next_step


def explain_device(session: Session, files: FileStore, device_id: str, model: str | None) -> schema.Explanation:
    """Return the reasons for every model of the fleet, or for one; raises NotFoundError."""
    row = device_row(session, device_id)
    if model is not None and session.get(ModelRow, model) is None:
        raise no_model(session, model)
    names = [model] if model is not None else list(session.scalars(select(ModelRow.name).order_by(ModelRow.name)))
    desired = desired_versions(session, [row.id])[row.id]
    cases = [_Case(session, files, row, name) for name in names]
    for case in cases:
        _explain_unfinished(case)
        _explain_installed(case)
        _explain_ended(case)
        _explain_newer(case)
    return schema.Explanation(
        device=row.id,
        summary=_summary(session, row),
        models=tuple(
            schema.ExplainedModel(
                model=case.model,
                installed=case.installed.version if case.installed else None,
                desired=desired.get(case.model),
                because=tuple(case.because),
            )
            for case in cases
        ),
        next_step=_never_seen_step(row) or next((case.next_step for case in cases if case.next_step), None),
    )


def _summary(session: Session, row: DeviceRow) -> str:
    device = get_device(session, row.id)
    runs = ", ".join(f"{m.model} {m.installed}" for m in device.models if m.installed) or "no model"
    others = [f"; {name}: {reason.message}" for name, reason in _problems(row) if not name.startswith("model/")]
    return f"{row.id} is {_liveness(row)} and {device.state.replace('_', ' ')}; it runs {runs}{''.join(others)}"


def _problems(row: DeviceRow) -> list[tuple[str, Reason]]:
    return sorted(msgspec.json.decode(row.problems_json, type=dict[str, Reason]).items())


def _liveness(row: DeviceRow) -> str:
    if row.liveness == "never_seen":
        return "enrolled, but was never online"
    if row.liveness == "offline":
        return f"offline since {rfc3339(row.liveness_at_ms or row.enrolled_at_ms)}"
    return "online"


def _never_seen_step(row: DeviceRow) -> str | None:
    return "start the agent on the device: `fleet-agent run`" if row.liveness == "never_seen" else None


def _explain_unfinished(case: _Case) -> None:
    row = case.latest
    if row is None or lifecycle.is_final(lifecycle.DEPLOYMENT, deployment_state(row.state)):
        return
    aim = f"remove {row.model}" if row.is_removal else f"move it to {row.version}"
    case.say(f"rollout {row.rollout_id} is to {aim}: {row.state} since {rfc3339(row.updated_at_ms)}{_progress(row)}")
    if case.device.liveness != "online":
        case.say(f"the device is {_liveness(case.device)}: it has to come back first", _WAITS)
    elif (row.director_version or 0) > case.device.acknowledged_director_version:
        case.say("the device is online but has not confirmed its new assignment yet")


def _progress(row: DeploymentRow) -> str:
    if row.done_bytes is None or not row.total_bytes:
        return ""
    return f", {100 * row.done_bytes // row.total_bytes} % of {row.total_bytes:,} bytes"


def _explain_installed(case: _Case) -> None:
    if case.installed is None:
        if case.latest is None:
            case.say(f"no rollout has brought {case.model} to this device")
        return
    brought = case.session.get(DeploymentRow, case.installed.deployment_id)
    by = f"rollout {brought.rollout_id}" if brought else "an earlier rollout"
    at = rfc3339(case.installed.installed_at_ms)
    case.say(f"it runs {case.installed.version} because {by} succeeded at {at}")
    release = case.session.get(ReleaseRow, (case.model, case.installed.version))
    if release is not None and (refusal := refusal_of(case.session, release)) is not None:
        case.say(
            f"{refusal}; a device that runs it keeps it", f"fleetctl rollouts start {case.model} --to {case.device.id}"
        )
    for name, reason in _problems(case.device):
        if name == f"model/{case.model}":
            case.say(
                f"but the device said that it cannot serve it: {reason.message} ({reason.code})",
                "see `fleet-agent status` on the device",
            )
    active = next(
        (slot.active for slot in get_device(case.session, case.device.id).slots if slot.model == case.model), None
    )
    if active not in (None, case.installed.version):
        case.say(f"when it last connected, the device itself had {active} active")


def _explain_ended(case: _Case) -> None:
    row = case.latest
    if row is None or (case.installed is not None and case.installed.deployment_id == row.id):
        return
    state = deployment_state(row.state)
    at, why = rfc3339(row.updated_at_ms), f": {row.reason_message}" if row.reason_message else ""
    if state in lifecycle.BAD_ENDS:
        code = f" ({row.reason_code})" if row.reason_code else ""
        case.say(
            f"it does not run {row.version} because its deployment in rollout {row.rollout_id} ended as "
            f"{state.replace('_', ' ')} at {at}{why}{code}",
            _step_after(row),
        )
    elif state in lifecycle.NEUTRAL_ENDS:
        case.say(f"it does not run {row.version} because its deployment was {state} at {at}{why}")
    elif state == "removed":
        case.say(f"rollout {row.rollout_id} removed {row.model} at {at}")


def _step_after(row: DeploymentRow) -> str:
    """Return what to do after a bad end: about the device, where that was at fault, else about the release."""
    if row.reason_code in _OF_THE_DEVICE and not row.is_removal:
        again = f"fleetctl rollouts start {row.model} {row.version} --to {row.device_id}"
        return f"correct that on the device (`fleet-agent status` there says more), then `{again}`"
    return (
        f"correct the release, give it a new version and push it again; `fleetctl rollouts show {row.rollout_id}` "
        "tells which other devices are concerned"
    )


def _explain_newer(case: _Case) -> None:
    """Say why it does not have the newest release, unless a deployment of that one was explained already."""
    rows = case.session.scalars(select(ReleaseRow).where(ReleaseRow.model == case.model))
    newest = max(rows, key=lambda row: Version.parse(row.version), default=None)
    known = {case.latest.version if case.latest else None, case.installed.version if case.installed else None}
    if newest is None or newest.version in known:
        return
    if (refusal := refusal_of(case.session, newest) or _misfit(case, newest)) is not None:
        case.say(f"it does not get the newest release: {refusal}")
        return
    rollouts = case.session.scalars(
        select(RolloutRow)
        .where(RolloutRow.model == case.model, RolloutRow.version == newest.version)
        .order_by(RolloutRow.number.desc())
    )
    last = next(iter(rollouts), None)
    step = f"fleetctl rollouts start {case.model} {newest.version} --to {case.device.id}"
    if last is None:
        case.say(f"no rollout of the newest release, {newest.version}, was started", step)
        return
    refused = msgspec.json.decode(last.refused_json, type=tuple[schema.PlannedDevice, ...])
    mine = next((planned for planned in refused if planned.device == case.device.id), None)
    if mine is not None:
        case.say(f"rollout {last.id} of {newest.version} refused it: {mine.reason}", step)
    else:
        to = ", ".join(msgspec.json.decode(last.to_json, type=tuple[str, ...]))
        case.say(f"rollout {last.id} of {newest.version} did not include it: it went to {to}", step)


def _misfit(case: _Case, release: ReleaseRow) -> str | None:
    """Return why the device cannot take the release, by what it last said about itself."""
    try:
        manifest = read_manifest(case.files, release)
    except (OSError, ProtocolError) as error:
        raise RefusedError(
            f"the manifest of {release.model} {release.version} cannot be read: {error}", hint="upload it again"
        ) from error
    planned = plan_release(manifest, candidates(case.session, case.model, [case.device.id]))
    return planned[0].reason if planned[0].decision == "refused" else None
