"""Devices join by invite, and are grouped by the operator."""

import msgspec
from cryptography import x509
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from controller.api.schema import Device, InviteRequest
from controller.core import Core
from controller.errors import ConflictError, RefusedError
from controller.reads.devices import device_row, get_device
from controller.store import audit, outbox
from controller.store.audit import Actor, Deed
from controller.store.models import DeviceGroupRow, DeviceRow, DirectorRow, GroupRow, InviteRow
from controller.trust.authority import Authority, hash_invite_token, new_invite_token
from protocol.enrollment import EnrollRequest
from protocol.errors import MalformedError
from protocol.identifiers import DeviceId, parse_device_id, parse_group_name

MAX_GROUPS = 32
MAX_VALID_S = 30 * 86_400


class Invited(msgspec.Struct, frozen=True, kw_only=True):
    """A new invite: for whom, its token, until when."""

    device_id: DeviceId
    token: str
    expires_at_ms: int


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """A device that joined, and its certificate."""

    device_id: DeviceId
    certificate_pem: str


def invite(core: Core, request: InviteRequest, actor: Actor) -> Invited:
    """Make a single-use invite; one for a known device lets it come back with a new key.

    Raises:
        ProtocolError: a name or a number is outside its domain.
        ConflictError: the device has the name of a group, or a group that of a device; or it has enrolled already.
    """
    if not 60 <= request.valid_s <= MAX_VALID_S:
        raise MalformedError(f"expected valid_s from 60 to {MAX_VALID_S:,}, got {request.valid_s:,}")
    groups = _parse_groups(request.groups)
    name = f"device-{core.random_hex(3)}" if request.device_id is None else request.device_id
    device = parse_device_id(name)
    token, token_hash = new_invite_token()
    now_ms = core.now_ms()
    expires_at_ms = now_ms + request.valid_s * 1000
    with core.store.write() as session:
        _check_names(session, device, groups)
        if not request.is_replacement and session.get(DeviceRow, device) is not None:
            raise ConflictError(
                f"{device} has enrolled already: whoever used a new invite would take its place, and its present key "
                "would count no more",
                hint=f"if that is wanted: `fleetctl devices invite {device} --replace`",
            )
        session.execute(delete(InviteRow).where(InviteRow.expires_at_ms < now_ms))
        session.add(
            InviteRow(
                token_hash=token_hash,
                device_id=device,
                groups_json=msgspec.json.encode(groups).decode(),
                created_at_ms=now_ms,
                expires_at_ms=expires_at_ms,
            )
        )
        audit.record(session, actor, Deed(action="device.invite", subject=device, detail=" ".join(groups)), now_ms)
    return Invited(device_id=device, token=token, expires_at_ms=expires_at_ms)


def enroll(core: Core, authority: Authority, request: EnrollRequest, actor: Actor) -> Enrolled:
    """Take in the device that holds the invite, and certify its key. A bad request leaves the invite good.

    Raises:
        RefusedError: the token is unknown, used or expired; which one is nobody's business.
        ProtocolError: the certificate request is not one.
        ConflictError: meanwhile a group has the device's name, or a device that of a group.
    """
    now_ms = core.now_ms()
    with core.store.write() as session:
        invite_row = session.get(InviteRow, hash_invite_token(request.token))
        if invite_row is None or invite_row.used_at_ms is not None or invite_row.expires_at_ms <= now_ms:
            raise _invite_refused(core)
        device = DeviceId(invite_row.device_id)
        known = session.get(DeviceRow, device)
        if known is not None and known.enrolled_at_ms > invite_row.created_at_ms:
            # Two invites for one new name: the second must not take the place of whoever used the first.
            raise _invite_refused(core)
        groups = msgspec.json.decode(invite_row.groups_json, type=tuple[str, ...])
        _check_names(session, device, groups)
        issued = authority.issue_device_certificate(request.csr_pem, device, core.now())
        serial = x509.load_pem_x509_certificate(issued.pem.encode()).serial_number
        invite_row.used_at_ms = now_ms
        _admit(session, device, issued.public_key.public_bytes_raw(), f"{serial:x}", now_ms)
        _set_groups(session, device, groups, now_ms)
        outbox.mark(session, "assign", [device])
        audit.record(session, actor, Deed(action="device.enroll", subject=device, detail=f"serial {serial:x}"), now_ms)
    core.wake_publisher()
    return Enrolled(device_id=device, certificate_pem=issued.pem)


def _invite_refused(core: Core) -> RefusedError:
    core.counters.add("enroll.refused")
    return RefusedError("the invite is unknown, used or expired", hint="make a new one with `fleetctl devices invite`")


def _admit(session: Session, device: DeviceId, public_key: bytes, serial: str, now_ms: int) -> None:
    row = session.get(DeviceRow, device)
    if row is None:
        row = DeviceRow(id=device, enrolled_at_ms=now_ms, public_key=public_key, certificate_serial=serial)
        session.add(row)
    else:
        # It comes back with a new key: what the old one said last is nothing to go by, and what it signs no more heard.
        row.public_key, row.certificate_serial, row.enrolled_at_ms = public_key, serial, now_ms
        row.session, row.liveness, row.liveness_at_ms = 0, "never_seen", None
        row.capacity_json, row.slots_json, row.acknowledged_director_version = None, "[]", 0
        row.restored_version, row.problems_json = None, "{}"
        if (document := session.get(DirectorRow, device)) is not None:
            document.renew_at_ms = now_ms
    session.flush()


def set_groups(core: Core, device_id: str, groups: tuple[str, ...], actor: Actor) -> Device:
    """Make `groups` the groups of the device; one that has no member left is gone.

    Raises:
        NotFoundError: there is no such device.
        ProtocolError: a name is not one.
        ConflictError: a group would have the name of a device.
    """
    names = _parse_groups(groups)
    now_ms = core.now_ms()
    with core.store.write() as session:
        device = DeviceId(device_row(session, device_id).id)
        _check_names(session, None, names)
        _set_groups(session, device, names, now_ms)
        audit.record(session, actor, Deed(action="device.groups", subject=device, detail=" ".join(names)), now_ms)
        return get_device(session, device)


def _set_groups(session: Session, device: DeviceId, names: tuple[str, ...], now_ms: int) -> None:
    session.execute(delete(DeviceGroupRow).where(DeviceGroupRow.device_id == device))
    for name in names:
        if session.get(GroupRow, name) is None:
            session.add(GroupRow(name=name, created_at_ms=now_ms))
            session.flush()
        session.add(DeviceGroupRow(device_id=device, group_name=name))
    session.flush()
    session.execute(delete(GroupRow).where(GroupRow.name.not_in(select(DeviceGroupRow.group_name))))


def _check_names(session: Session, device: DeviceId | None, groups: tuple[str, ...]) -> None:
    """Raise ConflictError unless every name will stand for one thing: `--to NAME` must not be ambiguous."""
    if device is not None and (device in groups or session.get(GroupRow, device) is not None):
        raise ConflictError(f"{device!r} is the name of a group", hint="choose another name for the device")
    taken = session.scalar(select(DeviceRow.id).where(DeviceRow.id.in_(groups)).limit(1)) if groups else None
    if taken is not None:
        raise ConflictError(f"{taken!r} is the name of a device", hint="choose another name for the group")


def _parse_groups(groups: tuple[str, ...]) -> tuple[str, ...]:
    if len(groups) > MAX_GROUPS:
        raise MalformedError(f"expected at most {MAX_GROUPS} groups for a device, got {len(groups)}")
    return tuple(parse_group_name(name) for name in dict.fromkeys(groups))
