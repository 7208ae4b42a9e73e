"""Starting, planning and stopping rollouts."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from controller.api.schema import Plan, PlannedDevice, Rollout, RolloutRequest
from controller.core import Core
from controller.errors import ConflictError, RefusedError
from controller.reads.candidates import candidates
from controller.reads.devices import resolve
from controller.reads.releases import no_model, read_manifest, refusal_of, release_row
from controller.reads.rollouts import get_rollout
from controller.rollouts import plan_release, plan_removal, superseded
from controller.store import audit, outbox
from controller.store.audit import Actor, Deed
from controller.store.batches import batches
from controller.store.deployments import OPEN_STATES, close, mark_files, refresh_rollout, standing
from controller.store.idempotency import Ticket, recall, remember
from controller.store.models import DeploymentRow, DeviceRow, ModelRow, RolloutRow, WaveRow
from protocol import lifecycle, limits
from protocol.errors import MalformedError
from protocol.identifiers import Version, parse_model_name
from protocol.lifecycle import DeploymentState
from protocol.manifest import Manifest

MAX_NAMES = 1_000
MAX_SOAK_MS = 86_400_000


def plan(core: Core, request: RolloutRequest) -> Plan:
    """Return what a rollout would do; changes nothing."""
    with core.store.read() as session:
        return Plan(model=request.model, version=request.version, devices=_plan(session, core, request)[0])


def start(core: Core, request: RolloutRequest, actor: Actor, ticket: Ticket | None) -> Rollout:
    """Start a rollout; with a `ticket`, the same request starts it once, however often it comes.

    Raises:
        NotFoundError: there is no such model, release, group or device.
        RefusedError: no device may get it, or there is none.
        ConflictError: the ticket was used for another request.
    """
    if request.manifest is not None:
        raise RefusedError(
            "a manifest in the request is for a dry run alone", hint="publish the release first, then start its rollout"
        )
    with core.store.write() as session:
        if ticket is not None and (answer := recall(session, ticket)) is not None:
            return msgspec.json.decode(answer, type=Rollout)
        planned, removed = _plan(session, core, request)
        _require_work(request, planned)
        rollout, touched = _create(session, core, request, planned, removed)
        subject = f"{request.model}@{request.version}" if request.version else f"{request.model} (removal)"
        deed = Deed(action="rollout.start", subject=subject, detail=f"{rollout} to {' '.join(request.to)}")
        audit.record(session, actor, deed, core.now_ms())
        shown = get_rollout(session, rollout)
        if ticket is not None:
            remember(session, ticket, msgspec.json.encode(shown), core.now_ms())
    core.changes.announce(touched)
    core.wake_publisher()
    return shown


def stop(core: Core, rollout_id: str, actor: Actor) -> Rollout:
    """Give up every deployment that no device has activated; those that are active finish by themselves.

    Raises:
        NotFoundError: there is no such rollout.
        ConflictError: it has ended already.
    """
    now_ms = core.now_ms()
    with core.store.write() as session:
        state = get_rollout(session, rollout_id).state
        if state not in ("stopping", "stopped"):
            if not lifecycle.allows(lifecycle.ROLLOUT, state, "stopping"):
                raise ConflictError(f"rollout {rollout_id} is {state}: there is nothing to stop")
            session.get_one(RolloutRow, rollout_id).state = "stopping"
            rows = session.scalars(
                select(DeploymentRow).where(
                    DeploymentRow.rollout_id == rollout_id, DeploymentRow.state.in_(OPEN_STATES)
                )
            )
            closed = [row for row in rows if standing(row).is_withdrawable]
            for row in closed:
                close(row, "canceled", "the rollout was stopped", now_ms)
            refresh_rollout(session, rollout_id, now_ms)
            outbox.mark(session, "assign", {row.device_id for row in closed})
            audit.record(session, actor, Deed(action="rollout.stop", subject=rollout_id), now_ms)
        shown = get_rollout(session, rollout_id)
    core.changes.announce([rollout_id])
    core.wake_publisher()
    return shown


def _plan(session: Session, core: Core, request: RolloutRequest) -> tuple[tuple[PlannedDevice, ...], dict[str, str]]:
    """Return the plan, and for a removal which version each device has or is getting."""
    parse_model_name(request.model)
    if not 1 <= len(request.to) <= MAX_NAMES:
        raise MalformedError(f"expected 1 to {MAX_NAMES} names in `to`, got {len(request.to)}")
    if request.soak_ms is not None and not 0 <= request.soak_ms <= MAX_SOAK_MS:
        raise MalformedError(f"expected soak_ms from 0 to {MAX_SOAK_MS:,}, got {request.soak_ms:,}")
    if request.version is None:
        if session.get(ModelRow, request.model) is None:
            raise no_model(session, request.model)
        found = candidates(session, request.model, resolve(session, request.to))
        return plan_removal(found), {c.device: c.open_version or c.installed or "" for c in found}
    manifest, refusal = _release(session, core, request, request.version)
    found = candidates(session, request.model, resolve(session, request.to))
    return plan_release(manifest, found, refusal=refusal), {}


def _release(session: Session, core: Core, request: RolloutRequest, version: str) -> tuple[Manifest, str | None]:
    """Return the manifest of the release, and why no device may get it, if so."""
    Version.parse(version)
    if request.manifest is not None:
        raw = request.manifest.encode()
        if len(raw) > limits.MAX_MANIFEST_BYTES:
            raise MalformedError(f"expected a manifest of at most {limits.MAX_MANIFEST_BYTES:,} bytes")
        manifest = Manifest.from_bytes(raw)
        if (manifest.model, manifest.version) != (request.model, version):
            raise MalformedError(
                f"expected the manifest of {request.model} {version}, got {manifest.model} {manifest.version}"
            )
        model = session.get(ModelRow, request.model)
        floor = model.min_release_counter if model else 0
        below = manifest.release_counter < floor
        return manifest, f"counter {manifest.release_counter} is below the floor {floor}" if below else None
    row = release_row(session, request.model, version)
    return read_manifest(core.files, row), refusal_of(session, row)


def _require_work(request: RolloutRequest, planned: Sequence[PlannedDevice]) -> None:
    if not planned and request.version is None:
        raise RefusedError(f"no device of {', '.join(request.to)} has {request.model}: there is nothing to remove")
    if not planned:
        raise RefusedError(
            f"there is no device in {', '.join(request.to)} yet", hint="invite one with `fleetctl devices invite`"
        )
    refused = [device for device in planned if device.decision == "refused"]
    if len(refused) == len(planned):
        first = f"{refused[0].device}: {refused[0].reason}"
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise RefusedError(f"no device can take it: {first}{more}", hint="see each with --dry-run")


def _create(
    session: Session,
    core: Core,
    request: RolloutRequest,
    planned: Sequence[PlannedDevice],
    removed: dict[str, str],
) -> tuple[str, set[str]]:
    """Write the rollout; return its id and every rollout that changed."""
    now_ms = core.now_ms()
    rollout_id = f"r-{core.random_hex(4)}"
    number = (session.scalar(select(func.max(RolloutRow.number))) or 0) + 1
    refused = [device for device in planned if device.decision == "refused"]
    session.add(
        RolloutRow(
            id=rollout_id,
            model=request.model,
            version=request.version,
            state="running",
            to_json=msgspec.json.encode(request.to).decode(),
            refused_json=msgspec.json.encode(refused).decode(),
            soak_ms=request.soak_ms,
            number=number,
            created_at_ms=now_ms,
        )
    )
    session.flush()
    session.add(WaveRow(rollout_id=rollout_id, number=1, state="running"))
    targets = [device.device for device in planned if device.decision == "deploy"]
    touched = _supersede(session, request.model, targets, rollout_id, now_ms)
    for index, device in enumerate((d for d in planned if d.decision != "refused"), start=1):
        state: DeploymentState = "queued" if device.decision == "deploy" else "already_installed"
        session.add(
            DeploymentRow(
                id=f"{rollout_id}-{index}",
                rollout_id=rollout_id,
                wave=1,
                number=number,
                device_id=device.device,
                model=request.model,
                version=request.version or removed[device.device],
                is_removal=request.version is None,
                state=state,
                created_at_ms=now_ms,
                updated_at_ms=now_ms,
            )
        )
    if request.soak_ms is not None:
        for id_ in targets:
            session.get_one(DeviceRow, id_).soak_ms = request.soak_ms
    refresh_rollout(session, rollout_id, now_ms)
    outbox.mark(session, "assign", targets)
    if request.version is not None and targets:
        mark_files(session, request.model, request.version)
    return rollout_id, {rollout_id, *touched}


def _supersede(session: Session, model: str, devices: Sequence[str], by: str, now_ms: int) -> set[str]:
    touched: set[str] = set()
    for batch in batches(devices):
        rows = {
            row.id: row
            for row in session.scalars(
                select(DeploymentRow).where(
                    DeploymentRow.model == model,
                    DeploymentRow.device_id.in_(batch),
                    DeploymentRow.state.in_(OPEN_STATES),
                )
            )
        }
        for id_ in superseded(standing(row) for row in rows.values()):
            close(rows[id_], "superseded", f"replaced by rollout {by}", now_ms)
            touched.add(rows[id_].rollout_id)
    for rollout in touched:
        refresh_rollout(session, rollout, now_ms)
    return touched
