"""Deployments between rows and the facts that `controller.rollouts` decides on."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from controller.rollouts import Installed, Standing, outcome
from controller.store import outbox
from controller.store.models import DeploymentRow, FileRow, InstalledRow, ReleaseFileRow, RolloutRow, WaveRow
from protocol import lifecycle
from protocol.lifecycle import DEPLOYMENT, DeploymentState, RolloutState

OPEN_STATES: tuple[DeploymentState, ...] = tuple(s for s in DEPLOYMENT if not lifecycle.is_final(DEPLOYMENT, s))


def deployment_state(text: str) -> DeploymentState:
    """Return the state that a row names."""
    state: DeploymentState = msgspec.convert(text, DeploymentState)
    return state


def rollout_state(text: str) -> RolloutState:
    """Return the state that a row names."""
    state: RolloutState = msgspec.convert(text, RolloutState)
    return state


def standing(row: DeploymentRow) -> Standing:
    """Return where the deployment of `row` stands."""
    return Standing(
        id=row.id,
        model=row.model,
        version=row.version,
        number=row.number,
        state=deployment_state(row.state),
        is_removal=row.is_removal,
        is_closed_by_controller=row.is_closed_by_controller,
        stream=row.stream,
        seq=row.seq,
    )


def relevant_rows(session: Session, devices: Sequence[str]) -> dict[str, list[DeploymentRow]]:
    """Return for each device its unfinished deployments and those that the controller closed before the device did."""
    found: dict[str, list[DeploymentRow]] = {device: [] for device in devices}
    relevant = or_(DeploymentRow.state.in_(OPEN_STATES), DeploymentRow.is_closed_by_controller)
    for row in session.scalars(select(DeploymentRow).where(DeploymentRow.device_id.in_(devices), relevant)):
        found[row.device_id].append(row)
    return found


def installed_on(session: Session, devices: Sequence[str]) -> dict[str, list[Installed]]:
    """Return what each device has committed."""
    found: dict[str, list[Installed]] = {device: [] for device in devices}
    for row in session.scalars(select(InstalledRow).where(InstalledRow.device_id.in_(devices))):
        found[row.device_id].append(Installed(model=row.model, version=row.version, deployment_id=row.deployment_id))
    return found


def latest_deployments(session: Session, devices: Sequence[str]) -> dict[str, dict[str, DeploymentRow]]:
    """Return for each device the newest deployment of each model."""
    newest = (
        select(DeploymentRow.device_id, DeploymentRow.model, func.max(DeploymentRow.number).label("number"))
        .where(DeploymentRow.device_id.in_(devices))
        .group_by(DeploymentRow.device_id, DeploymentRow.model)
        .subquery()
    )
    same = (
        (DeploymentRow.device_id == newest.c.device_id)
        & (DeploymentRow.model == newest.c.model)
        & (DeploymentRow.number == newest.c.number)
    )
    found: dict[str, dict[str, DeploymentRow]] = {device: {} for device in devices}
    for row in session.scalars(select(DeploymentRow).join(newest, same)):
        found[row.device_id][row.model] = row
    return found


def close(row: DeploymentRow, state: DeploymentState, message: str, at_ms: int) -> None:
    """Withdraw a deployment that the device has not activated; the device may still correct it."""
    row.state = state
    # A device that was never told has nothing to correct.
    row.is_closed_by_controller = row.director_version is not None
    row.reason_code, row.reason_message = state, message
    row.done_bytes = row.total_bytes = None
    row.updated_at_ms = at_ms


def refresh_rollout(session: Session, rollout_id: str, at_ms: int) -> None:
    """Bring a rollout and its wave to the states that follow from its deployments."""
    session.flush()
    rollout = session.get_one(RolloutRow, rollout_id)
    if rollout.state not in ("running", "stopping"):
        return  # a device may still correct what was closed here, but an end stays an end
    found = outcome(rollout_state(rollout.state), count_states(session, rollout_id))
    rollout.state = found.rollout
    if found.is_finished and rollout.finished_at_ms is None:
        rollout.finished_at_ms = at_ms
    wave = session.get_one(WaveRow, (rollout_id, 1))
    wave.state = found.wave


def count_states(session: Session, rollout_id: str) -> dict[DeploymentState, int]:
    """Return how many deployments of a rollout are in each state."""
    rows = session.execute(
        select(DeploymentRow.state, func.count())
        .where(DeploymentRow.rollout_id == rollout_id)
        .group_by(DeploymentRow.state)
    )
    return {deployment_state(state): n for state, n in rows}


def mark_files(session: Session, model: str, version: str) -> None:
    """Have the files of a release published that the broker does not have yet."""
    missing = session.scalars(
        select(FileRow.digest)
        .join(ReleaseFileRow, ReleaseFileRow.digest == FileRow.digest)
        .where(ReleaseFileRow.model == model, ReleaseFileRow.version == version, FileRow.published_at_ms.is_(None))
    )
    outbox.mark(session, "file", missing)
