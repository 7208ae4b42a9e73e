"""The facts about each device that a rollout of one model is planned on."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from controller.api.schema import Liveness
from controller.rollouts import Candidate
from controller.store.batches import batches
from controller.store.deployments import OPEN_STATES
from controller.store.models import DeploymentRow, DeviceRow, InstalledRow
from protocol.admission import Capacity


def candidates(session: Session, model: str, devices: Sequence[str]) -> list[Candidate]:
    """Return what matters about each of `devices`, in that order."""
    found: list[Candidate] = []
    for batch in batches(devices):
        found += _batch(session, model, batch)
    return found


def _batch(session: Session, model: str, ids: Sequence[str]) -> list[Candidate]:
    rows = {row.id: row for row in session.scalars(select(DeviceRow).where(DeviceRow.id.in_(ids)))}
    installed: dict[str, str] = {}
    others: dict[str, int] = {}
    for item in session.scalars(select(InstalledRow).where(InstalledRow.device_id.in_(ids))):
        if item.model == model:
            installed[item.device_id] = item.version
        else:
            others[item.device_id] = others.get(item.device_id, 0) + 1
    opened = {
        row.device_id: row.version
        for row in session.scalars(
            select(DeploymentRow)
            .where(
                DeploymentRow.model == model,
                DeploymentRow.device_id.in_(ids),
                DeploymentRow.state.in_(OPEN_STATES),
            )
            .order_by(DeploymentRow.number)
        )
    }
    coming = session.execute(
        select(DeploymentRow.device_id, func.count(DeploymentRow.model.distinct()))
        .outerjoin(
            InstalledRow,
            (InstalledRow.device_id == DeploymentRow.device_id) & (InstalledRow.model == DeploymentRow.model),
        )
        .where(
            DeploymentRow.model != model,
            DeploymentRow.device_id.in_(ids),
            DeploymentRow.state.in_(OPEN_STATES),
            ~DeploymentRow.is_removal,
            InstalledRow.model.is_(None),
        )
        .group_by(DeploymentRow.device_id)
    )
    for device, n in coming:
        others[device] = others.get(device, 0) + n
    return [
        Candidate(
            device=row.id,
            liveness=msgspec.convert(row.liveness, Liveness),
            capacity=msgspec.json.decode(row.capacity_json, type=Capacity) if row.capacity_json else None,
            installed=installed.get(row.id),
            open_version=opened.get(row.id),
            other_models=others.get(row.id, 0),
        )
        for row in (rows[id_] for id_ in ids)
    ]
