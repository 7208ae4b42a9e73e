"""Deployments between rows and the facts that `controller.rollouts` decides on."""

import msgspec
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from controller.rollouts import Installed, Standing, outcome
from controller.store import outbox
from controller.store.models import DeploymentRow, FileRow, InstalledRow, ReleaseFileRow, RolloutRow, WaveRow
from protocol import lifecycle
from protocol.identifiers import DeviceId
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


def relevant_rows(session: Session, device: DeviceId) -> list[DeploymentRow]:
    """Return the device's unfinished deployments and those that the controller closed before the device did."""
    return list(
        session.scalars(
            select(DeploymentRow).where(
                DeploymentRow.device_id == device,
                or_(DeploymentRow.state.in_(OPEN_STATES), DeploymentRow.is_closed_by_controller),
            )
        )
    )


def installed_on(session: Session, device: DeviceId) -> list[Installed]:
    """Return what the device has committed."""
    rows = session.scalars(select(InstalledRow).where(InstalledRow.device_id == device))
    return [Installed(model=r.model, version=r.version, deployment_id=r.deployment_id) for r in rows]


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
