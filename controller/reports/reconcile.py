"""What a birth tells a database that was restored from a backup: what the device has committed since.

A device takes up no deployment twice, so the backup's idea of what it runs would stay wrong for ever. A birth that
knows a newer document than the database ever signed was sent after the backup, and is believed about the device.
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from controller.store.deployments import OPEN_STATES, close, refresh_rollout
from controller.store.metadata import newest
from controller.store.models import DeploymentRow, DeviceRow, InstalledRow
from controller.trust.director import is_released
from protocol.messages import Liveness


def reconcile(session: Session, row: DeviceRow, birth: Liveness, at_ms: int) -> set[str]:
    """Make the device's record what `birth` says; return the rollouts that changed.

    A release that is in no signed list here is believed as well: no document can name it, so the device keeps the one
    that it has until the operator gives the list back or rolls out another release. Until then it counts as restored.
    """
    if row.restored_version is None or birth.director_version <= row.restored_version:
        return set()
    rollouts = _close_forgotten(session, row, birth, at_ms)
    active = {slot.model: slot.active for slot in birth.slots if slot.active}
    targets = newest(session, "image", "targets")
    is_listed = targets is not None and all(is_released(targets.raw, *item) for item in active.items())
    for installed in session.scalars(select(InstalledRow).where(InstalledRow.device_id == row.id)):
        version = active.pop(installed.model, None)
        if version is None:
            session.delete(installed)
        elif version != installed.version:
            _adopt(installed, version, birth, at_ms)
    for model, version in active.items():
        fresh = InstalledRow(device_id=row.id, model=model)
        _adopt(fresh, version, birth, at_ms)
        session.add(fresh)
    session.flush()
    if is_listed:
        row.restored_version = None
    return rollouts


def _adopt(installed: InstalledRow, version: str, birth: Liveness, at_ms: int) -> None:
    installed.version, installed.installed_at_ms = version, at_ms
    installed.deployment_id = f"restored-{birth.director_version}"


def _close_forgotten(session: Session, row: DeviceRow, birth: Liveness, at_ms: int) -> set[str]:
    """End what the device was told before the backup and works on no more: how it ended was reported meanwhile."""
    slots = {slot.model: slot for slot in birth.slots}
    rollouts = set()
    unfinished = select(DeploymentRow).where(
        DeploymentRow.device_id == row.id,
        DeploymentRow.state.in_(OPEN_STATES) | DeploymentRow.is_closed_by_controller,
        DeploymentRow.director_version <= row.restored_version,
    )
    for deployment in session.scalars(unfinished):
        slot = slots.get(deployment.model)
        if slot is not None and slot.candidate == deployment.version:
            continue
        has_it = slot is not None and slot.active == deployment.version
        if deployment.is_removal and (slot is None or slot.active is None):
            close(deployment, "removed", "learned from the device after a restore", at_ms)
        elif has_it and not deployment.is_removal:
            close(deployment, "succeeded", "learned from the device after a restore", at_ms)
        else:
            close(deployment, "superseded", "its end was reported after the backup that was restored", at_ms)
        deployment.is_closed_by_controller = False
        rollouts.add(deployment.rollout_id)
    for rollout in rollouts:
        refresh_rollout(session, rollout, at_ms)
    return rollouts
