"""Devices join by invite, come back, and are grouped."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select

from controller.api.schema import InviteRequest
from controller.commands import devices as device_commands
from controller.errors import ConflictError, ControllerError, NotFoundError, RefusedError
from controller.reads.devices import get_device, resolve
from controller.store.models import DirectorRow, GroupRow, InviteRow
from protocol.enrollment import EnrollRequest
from protocol.errors import ProtocolError
from tests.controller.service.fleet import (
    OPERATOR,
    FleetCore,
    bundle,
    signing_request,
)
from tests.controller.service.records import audited, settle_assignments, succeed


class TestDevices:
    """Invites, enrolment and groups."""

    def enroll(self, fleet: FleetCore, token: str, csr_pem: str | None = None) -> device_commands.Enrolled:
        csr = csr_pem or signing_request(Ed25519PrivateKey.generate())
        request = EnrollRequest(token=token, csr_pem=csr)
        return device_commands.enroll(fleet.core, fleet.workspace.server.authority, request, OPERATOR)

    def test_an_invite_takes_in_one_device_once(self, fleet: FleetCore) -> None:
        """Its token is not in the database."""
        invited = device_commands.invite(fleet.core, InviteRequest(groups=("line-1",)), OPERATOR)
        enrolled = self.enroll(fleet, invited.token)
        assert invited.device_id == enrolled.device_id
        assert "CERTIFICATE" in enrolled.certificate_pem
        with pytest.raises(RefusedError, match="unknown, used or expired"):
            self.enroll(fleet, invited.token)
        with fleet.core.store.read() as session:
            assert ("line-1",) == get_device(session, enrolled.device_id).groups
            (row,) = session.scalars(select(InviteRow))
        assert invited.token not in (row.token_hash, row.groups_json)
        assert ["device.invite", "device.enroll"] == audited(fleet)[-2:]

    @pytest.mark.parametrize("token", ["", "x", "\udcff", "é" * 100])
    def test_an_unknown_token_is_refused(self, fleet: FleetCore, token: str) -> None:
        """Whatever it is made of."""
        with pytest.raises(RefusedError):
            self.enroll(fleet, token)

    def test_an_invite_ends(self, fleet: FleetCore) -> None:
        """And is swept away by the next one."""
        invited = device_commands.invite(fleet.core, InviteRequest(valid_s=60), OPERATOR)
        fleet.clock.advance(seconds=60)
        with pytest.raises(RefusedError):
            self.enroll(fleet, invited.token)

    def test_a_bad_certificate_request_does_not_use_up_the_invite(self, fleet: FleetCore) -> None:
        """The device corrects it and tries again."""
        invited = device_commands.invite(fleet.core, InviteRequest(), OPERATOR)
        with pytest.raises(ProtocolError):
            self.enroll(fleet, invited.token, "no certificate request")
        assert invited.device_id == self.enroll(fleet, invited.token).device_id

    def test_a_device_that_enrolled_is_not_replaced_by_mistake(self, fleet: FleetCore) -> None:
        """An invite for a known name has to say that it replaces the device; the hint is the command."""
        fleet.enroll("press-1")
        with pytest.raises(ConflictError, match="has enrolled already") as caught:
            device_commands.invite(fleet.core, InviteRequest(device_id="press-1"), OPERATOR)
        assert "`fleetctl devices invite press-1 --replace`" in caught.value.hint

    def test_of_two_invites_for_one_name_the_first_used_counts(self, fleet: FleetCore) -> None:
        """Whoever comes second does not take the place of the first, and learns no more than that it is refused."""
        tokens = [
            device_commands.invite(fleet.core, InviteRequest(device_id="press-1"), OPERATOR).token for _ in range(2)
        ]
        fleet.clock.advance(seconds=1)
        self.enroll(fleet, tokens[0])
        with pytest.raises(RefusedError, match="unknown, used or expired"):
            self.enroll(fleet, tokens[1])
        again = InviteRequest(device_id="press-1", is_replacement=True)
        fleet.clock.advance(seconds=1)
        assert "press-1" == self.enroll(fleet, device_commands.invite(fleet.core, again, OPERATOR).token).device_id

    def test_a_device_that_comes_back_with_a_new_key_is_heard_by_that_alone(self, fleet: FleetCore) -> None:
        """What it had is assigned to it again, in a new document."""
        release = fleet.release(bundle())
        old = fleet.enroll("press-1")
        succeed(fleet, old, fleet.roll_out("double", "1.0.0"), release)
        settle_assignments(fleet)
        with fleet.core.store.read() as session:
            version = session.get_one(DirectorRow, "press-1").version
        new = fleet.enroll("press-1", is_born=False)
        settle_assignments(fleet)
        fleet.say(old, "liveness", old.liveness())
        with fleet.core.store.read() as session:
            assert "never_seen" == get_device(session, "press-1").liveness
            assert version + 1 == session.get_one(DirectorRow, "press-1").version
        fleet.say(new, "liveness", new.liveness(session=0))
        with fleet.core.store.read() as session:
            assert "online" == get_device(session, "press-1").liveness

    @pytest.mark.parametrize(
        "request_fields",
        [{"device_id": "NO"}, {"device_id": "all"}, {"groups": ("a b",)}, {"valid_s": 1}, {"valid_s": 10**9}],
    )
    def test_a_bad_invite_is_refused(self, fleet: FleetCore, request_fields: dict[str, object]) -> None:
        """Names and times have bounds."""
        with pytest.raises(ProtocolError):
            device_commands.invite(fleet.core, InviteRequest(**request_fields), OPERATOR)  # type: ignore[arg-type]

    def test_a_name_stands_for_a_group_or_a_device(self, fleet: FleetCore) -> None:
        """Checked when a device is invited, when it joins, and when it is grouped."""
        early = device_commands.invite(fleet.core, InviteRequest(device_id="line-1"), OPERATOR)
        late = device_commands.invite(fleet.core, InviteRequest(device_id="press-9", groups=("press-1",)), OPERATOR)
        fleet.enroll("press-1", "line-1")
        for request in (
            InviteRequest(device_id="line-1"),
            InviteRequest(device_id="press-2", groups=("press-2",)),
            InviteRequest(device_id="press-2", groups=("line-1", "press-1")),
        ):
            with pytest.raises(ConflictError, match=r"is the name of a (group|device)"):
                device_commands.invite(fleet.core, request, OPERATOR)
        for invited in (early, late):
            with pytest.raises(ConflictError, match=r"is the name of a (group|device)"):
                self.enroll(fleet, invited.token)
        with pytest.raises(ConflictError, match="'press-1' is the name of a device"):
            device_commands.set_groups(fleet.core, "press-1", ("press-1",), OPERATOR)
        device_commands.set_groups(fleet.core, "press-1", (), OPERATOR)
        assert "line-1" == self.enroll(fleet, early.token).device_id

    def test_a_group_without_members_is_gone(self, fleet: FleetCore) -> None:
        """Nobody lists it, and `--to` does not take it."""
        fleet.enroll("press-1", "old")
        device_commands.set_groups(fleet.core, "press-1", ("new",), OPERATOR)
        with fleet.core.store.read() as session:
            assert ["new"] == list(session.scalars(select(GroupRow.name)))
            with pytest.raises(NotFoundError, match="no group or device 'old'; there are groups: new"):
                resolve(session, ["old"])

    def test_groups_are_set_as_a_whole(self, fleet: FleetCore) -> None:
        """Naming one twice is naming it once."""
        fleet.enroll("press-1", "old")
        shown = device_commands.set_groups(fleet.core, "press-1", ("new", "new", "line-1"), OPERATOR)
        assert ("line-1", "new") == shown.groups
        with pytest.raises(ProtocolError):
            device_commands.set_groups(fleet.core, "press-1", ("all",), OPERATOR)
        with pytest.raises(ControllerError):
            device_commands.set_groups(fleet.core, "nobody", (), OPERATOR)
