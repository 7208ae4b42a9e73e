"""Rollouts, as the API shows them."""

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from controller.api import schema
from controller.errors import NotFoundError
from controller.store.deployments import count_states, deployment_state, rollout_state
from controller.store.models import DeploymentRow, RolloutRow, WaveRow
from controller.store.times import rfc3339, rfc3339_or_none
from protocol.lifecycle import WaveState
from protocol.messages import Progress, Reason


def list_rollouts(session: Session, model: str | None, limit: int) -> list[schema.Rollout]:
    """Return the newest rollouts without their deployments, the newest first."""
    query = select(RolloutRow).order_by(RolloutRow.number.desc()).limit(limit)
    if model is not None:
        query = query.where(RolloutRow.model == model)
    return [_show(session, row) for row in session.scalars(query)]


def get_rollout(session: Session, rollout_id: str) -> schema.Rollout:
    """Return one rollout with its deployments; raises NotFoundError."""
    row = session.get(RolloutRow, rollout_id)
    if row is None:
        raise NotFoundError(f"there is no rollout {rollout_id[:64]!r}", hint="see `fleetctl rollouts list`")
    rows = session.scalars(
        select(DeploymentRow).where(DeploymentRow.rollout_id == row.id).order_by(DeploymentRow.device_id)
    )
    return _show(session, row, tuple(show_deployment(d) for d in rows))


def show_deployment(row: DeploymentRow) -> schema.Deployment:
    """Return one deployment as the API shows it."""
    return schema.Deployment(
        id=row.id,
        device=row.device_id,
        state=deployment_state(row.state),
        updated_at=rfc3339(row.updated_at_ms),
        progress=progress_of(row),
        reason=reason_of(row),
        measures=msgspec.json.decode(row.measures_json, type=dict[str, int]),
    )


def progress_of(row: DeploymentRow) -> Progress | None:
    """Return how far the download is."""
    if row.done_bytes is None or row.total_bytes is None:
        return None
    return Progress(done_bytes=row.done_bytes, total_bytes=row.total_bytes)


def reason_of(row: DeploymentRow) -> Reason | None:
    """Return why the deployment is where it is."""
    return Reason.of(row.reason_code, row.reason_message or "") if row.reason_code else None


def _show(session: Session, row: RolloutRow, deployments: tuple[schema.Deployment, ...] = ()) -> schema.Rollout:
    counts = count_states(session, row.id)
    devices = dict(
        session.execute(
            select(DeploymentRow.wave, func.count())
            .where(DeploymentRow.rollout_id == row.id)
            .group_by(DeploymentRow.wave)
        ).all()
    )
    waves = session.scalars(select(WaveRow).where(WaveRow.rollout_id == row.id).order_by(WaveRow.number))
    return schema.Rollout(
        id=row.id,
        model=row.model,
        version=row.version,
        state=rollout_state(row.state),
        to=msgspec.json.decode(row.to_json, type=tuple[str, ...]),
        created_at=rfc3339(row.created_at_ms),
        finished_at=rfc3339_or_none(row.finished_at_ms),
        counts={str(state): n for state, n in counts.items()},
        waves=tuple(
            schema.Wave(number=w.number, state=msgspec.convert(w.state, WaveState), devices=devices.get(w.number, 0))
            for w in waves
        ),
        deployments=deployments,
        refused=msgspec.json.decode(row.refused_json, type=tuple[schema.PlannedDevice, ...]),
    )
