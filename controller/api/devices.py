"""Routes: devices, their groups, why they run what they run, and invites."""

from litestar import get, post, put
from litestar.params import FromPath, FromQuery, JSONBody

from controller.api.access import new_actor
from controller.api.office import OfficeDependency
from controller.api.schema import Device, Explanation, GroupsRequest, InviteRequest, InviteResponse
from controller.commands import devices as commands
from controller.reads.devices import EVERYTHING, get_device, resolve, show_devices
from controller.reads.explain import explain_device
from controller.store.times import rfc3339
from protocol.enrollment import Invite


@get("/v1/devices", sync_to_thread=True)
def devices(office: OfficeDependency, to: FromQuery[list[str] | None] = None) -> list[Device]:
    """Return every device, or those that `to` names: `all`, groups, device ids."""
    with office.core.store.read() as session:
        return show_devices(session, resolve(session, to or [EVERYTHING]))


@get("/v1/devices/{device:str}", sync_to_thread=True)
def device(device: FromPath[str], office: OfficeDependency) -> Device:
    """Return one device."""
    with office.core.store.read() as session:
        return get_device(session, device)


@put("/v1/devices/{device:str}/groups", sync_to_thread=True)
def set_groups(device: FromPath[str], data: JSONBody[GroupsRequest], office: OfficeDependency) -> Device:
    """Make these the groups of the device."""
    return commands.set_groups(office.core, device, data.groups, new_actor())


@get("/v1/devices/{device:str}/explain", sync_to_thread=True)
def explain(device: FromPath[str], office: OfficeDependency, model: FromQuery[str | None] = None) -> Explanation:
    """Return why the device runs what it runs, and why not something else."""
    with office.core.store.read() as session:
        return explain_device(session, office.core.files, device, model)


@post("/v1/invites", sync_to_thread=True)
def invite(data: JSONBody[InviteRequest], office: OfficeDependency) -> InviteResponse:
    """Make a single-use invite, and the line to paste on the device."""
    invited = commands.invite(office.core, data, new_actor())
    text = str(Invite(url=office.addresses.enroll_url, ca_sha256=office.authority.fingerprint, token=invited.token))
    return InviteResponse(
        device_id=invited.device_id,
        invite=text,
        command=f"fleet-agent enroll {text}",
        expires_at=rfc3339(invited.expires_at_ms),
    )


HANDLERS = (devices, device, set_groups, explain, invite)
