"""Devices, as the API shows them, and the devices that a `to` names."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import String, column, select, table
from sqlalchemy.orm import Session

from controller.api import schema
from controller.errors import NotFoundError, RefusedError
from controller.reads.rollouts import reason_of
from controller.rollouts import desired_state
from controller.store.batches import batches
from controller.store.deployments import (
    deployment_state,
    installed_on,
    latest_deployments,
    relevant_rows,
    standing,
)
from controller.store.models import DeploymentRow, DeviceGroupRow, DeviceRow, GroupRow
from controller.store.times import rfc3339, rfc3339_or_none
from protocol.messages import Reason, SlotReport

EVERYTHING = "all"


def get_device(session: Session, device_id: str) -> schema.Device:
    """Return one device; raises NotFoundError."""
    return show_devices(session, [device_row(session, device_id).id])[0]


def device_row(session: Session, device_id: str) -> DeviceRow:
    """Return the row of one device; raises NotFoundError."""
    row = session.get(DeviceRow, device_id)
    if row is None:
        raise NotFoundError(
            f"there is no device {device_id[:64]!r}",
            hint="see `fleetctl devices list`; a device appears when it has enrolled",
        )
    return row


def resolve(session: Session, to: Sequence[str]) -> list[str]:
    """Return the ids of all devices that `to` names, sorted. A name is `all`, a group or a device.

    Raises:
        NotFoundError: there is no such group or device.
        RefusedError: there are both, which a database of an earlier version may hold.
    """
    found: set[str] = set()
    for name in dict.fromkeys(to):
        if name == EVERYTHING:
            found.update(session.scalars(select(DeviceRow.id)))
        elif session.get(GroupRow, name) is not None:
            if session.get(DeviceRow, name) is not None:
                raise RefusedError(
                    f"{name!r} names a group and a device",
                    hint="give the members of the group another one with `fleetctl devices group`",
                )
            found.update(session.scalars(select(DeviceGroupRow.device_id).where(DeviceGroupRow.group_name == name)))
        elif session.get(DeviceRow, name) is not None:
            found.add(name)
        else:
            raise _unknown_target(session, name)
    return sorted(found)


def _unknown_target(session: Session, name: str) -> NotFoundError:
    groups = list(session.scalars(select(GroupRow.name).order_by(GroupRow.name).limit(5)))
    devices = list(session.scalars(select(DeviceRow.id).order_by(DeviceRow.id).limit(5)))
    parts = [f"groups: {', '.join(groups)}"] if groups else []
    parts += [f"devices: {', '.join(devices)}"] if devices else []
    return NotFoundError(
        f"there is no group or device {name[:64]!r}; there are {'; '.join(parts) or 'no devices yet'}",
        hint="see `fleetctl devices list`, or use `--to all`",
    )


def show_devices(session: Session, ids: Sequence[str]) -> list[schema.Device]:
    """Return the devices `ids`, in that order."""
    shown = []
    for batch in batches(ids):
        shown += _show_batch(session, batch)
    return shown


def _show_batch(session: Session, ids: Sequence[str]) -> list[schema.Device]:
    rows = {row.id: row for row in session.scalars(select(DeviceRow).where(DeviceRow.id.in_(ids)))}
    states = _states(session, ids)
    groups: dict[str, list[str]] = {}
    for member in session.scalars(select(DeviceGroupRow).where(DeviceGroupRow.device_id.in_(ids))):
        groups.setdefault(member.device_id, []).append(member.group_name)
    models = _models(session, ids)
    return [
        schema.Device(
            id=row.id,
            state=states[row.id],
            liveness=msgspec.convert(row.liveness, schema.Liveness),
            groups=tuple(sorted(groups.get(row.id, []))),
            enrolled_at=rfc3339(row.enrolled_at_ms),
            last_seen_at=rfc3339_or_none(row.last_seen_at_ms),
            arch=row.arch,
            agent_version=row.agent_version,
            director_version=row.director_version,
            acknowledged_director_version=row.acknowledged_director_version,
            models=models[row.id],
            slots=msgspec.json.decode(row.slots_json, type=tuple[SlotReport, ...]),
            problems=msgspec.json.decode(row.problems_json, type=dict[str, Reason]),
        )
        for row in (rows[id_] for id_ in ids)
    ]


def _states(session: Session, ids: Sequence[str]) -> dict[str, schema.DeviceState]:
    """Return the state of each device, by the same rule that the view `fleet_status` shows."""
    view = table("fleet_status", column("device", String), column("state", String))
    rows = session.execute(select(view.c.device, view.c.state).where(view.c.device.in_(ids)))
    return {device: msgspec.convert(state, schema.DeviceState) for device, state in rows}


def _models(session: Session, ids: Sequence[str]) -> dict[str, tuple[schema.InstalledModel, ...]]:
    installed = installed_on(session, ids)
    desired = desired_versions(session, ids)
    latest = latest_deployments(session, ids)
    return {
        id_: _models_of({item.model: item.version for item in installed[id_]}, desired[id_], latest[id_]) for id_ in ids
    }


def _models_of(
    installed: dict[str, str], desired: dict[str, str], latest: dict[str, DeploymentRow]
) -> tuple[schema.InstalledModel, ...]:
    return tuple(
        schema.InstalledModel(
            model=model,
            desired=desired.get(model),
            installed=installed.get(model),
            deployment_id=latest[model].id if model in latest else None,
            deployment_state=deployment_state(latest[model].state) if model in latest else None,
            reason=reason_of(latest[model]) if model in latest else None,
        )
        for model in sorted({*installed, *latest})
    )


def desired_versions(session: Session, ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return what each device must run: the version of each model."""
    installed, deployments = installed_on(session, ids), relevant_rows(session, ids)
    found = {}
    for id_ in ids:
        standings = [standing(row) for row in deployments[id_]]
        releases, _ = desired_state(installed[id_], standings)
        found[id_] = {model: releases[model].version for model in sorted(releases)}
    return found
