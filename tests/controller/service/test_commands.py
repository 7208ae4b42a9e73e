"""What the service accepts to do, and what it refuses: releases, rollouts, devices."""

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select

from controller.api.schema import InviteRequest, Rollout, RolloutRequest
from controller.commands import devices as device_commands
from controller.commands import releases as release_commands
from controller.commands import rollouts as rollout_commands
from controller.delivery.assigning import assign
from controller.errors import ConflictError, ControllerError, NotFoundError, RefusedError
from controller.reads.devices import get_device, resolve
from controller.reads.releases import get_release, list_models, list_releases
from controller.reads.rollouts import get_rollout, list_rollouts
from controller.store import outbox
from controller.store.files import FileStore
from controller.store.idempotency import Ticket
from controller.store.models import AuditRow, DirectorRow, GroupRow, InviteRow
from controller.trust import image
from protocol.assignment import Assignment, extension, parse_metadata
from protocol.enrollment import EnrollRequest
from protocol.errors import DigestError, LimitExceededError, MalformedError, ProtocolError, SignatureError
from protocol.lifecycle import DeploymentState
from protocol.manifest import FileRef
from tests.controller.service.fleet import (
    CAPACITY,
    HAPPY,
    OPERATOR,
    FleetCore,
    ScriptedDevice,
    bundle,
    signing_request,
)


def audited(fleet: FleetCore) -> list[str]:
    with fleet.core.store.read() as session:
        return list(session.scalars(select(AuditRow.action).order_by(AuditRow.id)))


def to_publish(fleet: FleetCore, kind: outbox.Kind) -> list[str]:
    with fleet.core.store.read() as session:
        return [item.key for item in outbox.take(session, kind, 1_000)]


def settle_assignments(fleet: FleetCore) -> None:
    """Sign what is due, as the publisher does."""
    with fleet.core.store.write() as session:
        items = outbox.take(session, "assign", 1_000)
        assign(session, fleet.core, [item.key for item in items])
        outbox.done(session, items)


def document(fleet: FleetCore, device: str) -> Assignment:
    with fleet.core.store.read() as session:
        raw = session.get_one(DirectorRow, device).raw
    return extension(parse_metadata(raw, "director document").signed, Assignment)


def succeed(fleet: FleetCore, device: ScriptedDevice, rollout: Rollout, release: object) -> None:
    deployment = next(d.id for d in rollout.deployments if d.device == device.id)
    fleet.say(device, "receipts", device.report(deployment, release, HAPPY))  # type: ignore[arg-type]


class TestReleases:
    """Signed targets come in after the files that they name."""

    def test_a_release_is_known_when_its_targets_are_accepted(self, fleet: FleetCore) -> None:
        """With it comes a snapshot and a timestamp, to be published."""
        fleet.release(bundle())
        with fleet.core.store.read() as session:
            shown = get_release(session, "double", "1.0.0")
            (model,) = list_models(session)
        assert (1, 65_536, 0, False) == (
            shown.release_counter,
            shown.memory_bytes,
            shown.devices,
            shown.is_below_floor,
        )
        assert ("double", "1.0.0", 1, 1) == (model.name, model.latest, model.releases, model.last_counter)
        assert ["set", "timestamp"] == to_publish(fleet, "metadata")
        assert "targets.put" in audited(fleet)

    def test_targets_before_their_files_are_refused(self, fleet: FleetCore) -> None:
        """Which one is missing is said, and nothing is changed."""
        release = bundle()
        with pytest.raises(RefusedError, match=r"the manifest models/double/1\.0\.0\.json was not uploaded"):
            release_commands.accept_targets(fleet.core, fleet.signed_with(release), OPERATOR)
        manifest = release.files[-1]
        ref = FileRef.of(manifest)
        with fleet.core.files.upload(ref.digest) as upload:
            upload.write(manifest)
            upload.commit()
        release_commands.record_file(fleet.core, ref.digest, ref.size, OPERATOR)
        with pytest.raises(RefusedError, match=r"a file of double 1\.0\.0 was not uploaded"):
            release_commands.accept_targets(fleet.core, fleet.signed_with(release), OPERATOR)
        with fleet.core.store.read() as session:
            assert [] == list_releases(session)

    def test_the_same_targets_twice_are_no_error(self, fleet: FleetCore) -> None:
        """The answer to the first may have been lost."""
        fleet.upload(bundle())
        raw = fleet.signed_with(bundle())
        first = release_commands.accept_targets(fleet.core, raw, OPERATOR)
        assert (2, ("double@1.0.0",)) == (first.version, first.released)
        assert first == release_commands.accept_targets(fleet.core, raw, OPERATOR)

    def test_of_two_operators_at_once_the_second_is_told(self, fleet: FleetCore) -> None:
        """It fetches the targets again and repeats its change."""
        one, two = bundle("one"), bundle("two")
        for release in (one, two):
            fleet.upload(release)
        first, second = fleet.signed_with(one), fleet.signed_with(two)
        release_commands.accept_targets(fleet.core, first, OPERATOR)
        with pytest.raises(ConflictError):
            release_commands.accept_targets(fleet.core, second, OPERATOR)
        release_commands.accept_targets(fleet.core, fleet.signed_with(two), OPERATOR)

    def test_targets_of_another_key_are_refused(self, fleet: FleetCore) -> None:
        """The service cannot be made to vouch for what the operator did not sign."""
        release = bundle()
        fleet.upload(release)
        forged = fleet.workspace.server.snapshot_signer
        raw = image.add_release(
            image.first_targets(forged, fleet.clock()),
            release.manifest,
            release.manifest.to_bytes(),
            forged,
            fleet.clock(),
        )
        with pytest.raises(SignatureError):
            release_commands.accept_targets(fleet.core, raw, OPERATOR)

    def test_a_manifest_that_says_something_else_is_refused(self, fleet: FleetCore) -> None:
        """The signed claim and the manifest must agree."""
        signed, other = bundle(version="1.0.0"), bundle(version="2.0.0")
        fleet.upload(other)
        targets = image.add_release(
            fleet.targets(),
            signed.manifest,
            other.manifest.to_bytes(),
            fleet.workspace.operator.targets_signer,
            fleet.clock(),
        )
        with pytest.raises(MalformedError, match=r"the manifest says"):
            release_commands.accept_targets(fleet.core, targets, OPERATOR)

    def test_a_duplicate_version_is_a_conflict_where_it_is_signed(self, fleet: FleetCore) -> None:
        """A release never changes."""
        fleet.release(bundle())
        with pytest.raises(ConflictError, match="exists already"):
            fleet.signed_with(bundle(counter=2))

    def test_a_file_that_is_not_what_its_name_says_is_refused(self, fleet: FleetCore) -> None:
        """And leaves nothing behind."""
        ref = FileRef.of(b"right")
        with fleet.core.files.upload(ref.digest) as upload:
            upload.write(b"wrong")
            with pytest.raises(DigestError):
                upload.commit()
        assert not fleet.core.files.has(ref.digest)
        assert [] == list((fleet.workspace.server.files_path / "incoming").iterdir())

    def test_a_file_is_bounded(self, tmp_path: Path) -> None:
        """Before the disk is full."""
        files = FileStore(tmp_path, limit_bytes=4)
        with files.upload(FileRef.of(b"12345").digest) as upload, pytest.raises(LimitExceededError):
            upload.write(b"12345")

    def test_a_yanked_release_goes_to_nobody_any_more(self, fleet: FleetCore) -> None:
        """Who runs it keeps it; who was only about to get it does not."""
        release = fleet.release(bundle())
        one, two = fleet.enroll("press-1"), fleet.enroll("press-2")
        rollout = fleet.roll_out("double", "1.0.0")
        succeed(fleet, one, rollout, release)
        shown = release_commands.yank(fleet.core, "double", "1.0.0", "wrong labels", OPERATOR)
        assert "wrong labels" == shown.yank_reason
        with fleet.core.store.read() as session:
            states = {d.device: d.state for d in get_rollout(session, rollout.id).deployments}
            devices = [get_device(session, d.id).models[0] for d in (one, two)]
        assert {"press-1": "succeeded", "press-2": "canceled"} == states
        assert [("1.0.0", "1.0.0"), (None, None)] == [(m.installed, m.desired) for m in devices]
        with pytest.raises(RefusedError, match="was yanked: wrong labels"):
            fleet.roll_out("double", "1.0.0")

    def test_a_yank_wants_a_reason(self, fleet: FleetCore) -> None:
        """Others will read it."""
        fleet.release(bundle())
        with pytest.raises(RefusedError, match="reason"):
            release_commands.yank(fleet.core, "double", "1.0.0", "  ", OPERATOR)

    def test_a_retired_release_goes_to_nobody_any_more(self, fleet: FleetCore) -> None:
        """The floor is signed by the operator."""
        fleet.release(bundle(version="1.0.0", counter=1))
        fleet.release(bundle(version="2.0.0", counter=2))
        fleet.enroll("press-1")
        signer = fleet.workspace.operator.targets_signer
        raised = image.raise_floor(fleet.targets(), "double", 2, signer, fleet.clock())
        release_commands.accept_targets(fleet.core, raised, OPERATOR)
        with pytest.raises(RefusedError, match="retired"):
            fleet.roll_out("double", "1.0.0")
        assert "running" == fleet.roll_out("double", "2.0.0").state

    def test_an_unknown_release_is_named_with_those_there_are(self, fleet: FleetCore) -> None:
        """So that a typo is seen."""
        fleet.release(bundle())
        with fleet.core.store.read() as session:
            with pytest.raises(NotFoundError, match=r"no release '9.9.9' of double; the newest are 1.0.0"):
                get_release(session, "double", "9.9.9")
            with pytest.raises(NotFoundError, match="no model 'triple'; there are double"):
                get_release(session, "triple", "1.0.0")


class TestRollouts:
    """Starting, planning, replacing and stopping."""

    def test_a_rollout_reaches_the_devices_that_it_names(self, fleet: FleetCore) -> None:
        """`all`, groups, devices; each once."""
        fleet.release(bundle())
        for name, group in (("press-1", "line-1"), ("press-2", "line-2"), ("press-3", "line-2")):
            fleet.enroll(name, group)
        rollout = fleet.roll_out("double", "1.0.0", "line-2", "press-2")
        assert ["press-2", "press-3"] == [d.device for d in rollout.deployments]
        assert ("running", {"queued": 2}, "running") == (rollout.state, rollout.counts, rollout.waves[0].state)
        assert ["press-1", "press-2", "press-3"] == to_publish(fleet, "assign")
        assert {FileRef.of(f).digest for f in bundle().files} == set(to_publish(fleet, "file"))

    def test_a_name_that_an_older_version_gave_twice_is_refused(self, fleet: FleetCore) -> None:
        """Whoever means the device must not reach the group, nor the other way round."""
        fleet.enroll("press-1", "line-1")
        fleet.enroll("both")
        with fleet.core.store.write() as session:
            session.add(GroupRow(name="both", created_at_ms=1))
        with fleet.core.store.read() as session, pytest.raises(RefusedError, match="'both' names a group and a device"):
            resolve(session, ["both"])

    @pytest.mark.parametrize(
        ("request_fields", "error", "message"),
        [
            ({"model": "triple"}, NotFoundError, "no model 'triple'"),
            ({"version": "9.9.9"}, NotFoundError, "no release '9.9.9'"),
            ({"to": ("nobody",)}, NotFoundError, "no group or device 'nobody'; there are groups: line-1; devices"),
            ({"to": ()}, MalformedError, "expected 1 to 1000 names"),
            ({"model": "BAD NAME"}, ProtocolError, "model name"),
            ({"version": "one"}, ProtocolError, "version"),
            ({"soak_ms": -1}, MalformedError, "soak_ms"),
            ({"manifest": "{}"}, RefusedError, "dry run"),
            ({"version": None}, RefusedError, "nothing to remove"),
        ],
    )
    def test_a_bad_request_is_refused_with_the_reason(
        self, fleet: FleetCore, request_fields: dict[str, object], error: type[Exception], message: str
    ) -> None:
        """And nothing is started."""
        fleet.release(bundle())
        fleet.enroll("press-1", "line-1")
        fields: dict[str, object] = {"model": "double", "version": "1.0.0", "to": ("all",), **request_fields}
        request = RolloutRequest(**fields)  # type: ignore[arg-type]
        with pytest.raises(error, match=message):
            rollout_commands.start(fleet.core, request, OPERATOR, None)
        with fleet.core.store.read() as session:
            assert [] == list_rollouts(session, None, 10)

    def test_a_fleet_without_devices_is_refused_with_what_to_do(self, fleet: FleetCore) -> None:
        """An empty rollout would look like success."""
        fleet.release(bundle())
        with pytest.raises(RefusedError) as caught:
            fleet.roll_out("double", "1.0.0")
        assert "invite" in caught.value.hint

    def test_devices_that_cannot_take_it_are_listed_and_left_alone(self, fleet: FleetCore) -> None:
        """The others get it."""
        fleet.release(bundle(memory_bytes=32 << 20))
        fleet.enroll("big")
        small = fleet.enroll("small", is_born=False)
        less = msgspec.structs.replace(CAPACITY, max_model_memory_bytes=1 << 20)
        fleet.say(small, "liveness", small.liveness(capacity=less))
        rollout = fleet.roll_out("double", "1.0.0")
        assert (["big"], ["small"]) == (
            [d.device for d in rollout.deployments],
            [d.device for d in rollout.refused],
        )
        with pytest.raises(RefusedError, match=r"no device can take it: small: .*memory"):
            fleet.roll_out("double", "1.0.0", "small")

    def test_a_dry_run_changes_nothing(self, fleet: FleetCore) -> None:
        """Also for a release that is not published yet."""
        fleet.release(bundle())
        fleet.enroll("press-1")
        new = bundle(version="2.0.0", counter=2)
        request = RolloutRequest(
            model="double", version="2.0.0", is_dry_run=True, manifest=new.manifest.to_bytes().decode()
        )
        (planned,) = rollout_commands.plan(fleet.core, request).devices
        assert ("deploy", "press-1") == (planned.decision, planned.device)
        wrong = msgspec.structs.replace(request, version="3.0.0")
        with pytest.raises(MalformedError, match=r"expected the manifest of double 3\.0\.0"):
            rollout_commands.plan(fleet.core, wrong)
        with fleet.core.store.read() as session:
            assert [] == list_rollouts(session, None, 10)

    def test_the_same_request_twice_starts_one_rollout(self, fleet: FleetCore) -> None:
        """With the same key; another request with that key is a conflict."""
        fleet.release(bundle())
        fleet.enroll("press-1")
        request = RolloutRequest(model="double", version="1.0.0")
        ticket = Ticket.of("key", b"request")
        first = rollout_commands.start(fleet.core, request, OPERATOR, ticket)
        assert first == rollout_commands.start(fleet.core, request, OPERATOR, ticket)
        with pytest.raises(ConflictError, match="Idempotency-Key"):
            rollout_commands.start(fleet.core, request, OPERATOR, Ticket.of("key", b"another"))
        with fleet.core.store.read() as session:
            assert 1 == len(list_rollouts(session, "double", 10))

    def test_a_key_is_forgotten_after_a_day(self, fleet: FleetCore) -> None:
        """The table does not grow for ever."""
        fleet.release(bundle())
        fleet.enroll("press-1")
        request = RolloutRequest(model="double", version="1.0.0")
        first = rollout_commands.start(fleet.core, request, OPERATOR, Ticket.of("key", b"request"))
        fleet.clock.advance(days=2)
        rollout_commands.start(fleet.core, request, OPERATOR, Ticket.of("other", b"request"))
        third = rollout_commands.start(fleet.core, request, OPERATOR, Ticket.of("key", b"request"))
        assert first.id != third.id

    def test_a_newer_rollout_replaces_an_unfinished_one(self, fleet: FleetCore) -> None:
        """Which ends by that; a device that was never told has nothing to give up."""
        fleet.release(bundle(version="1.0.0", counter=1))
        fleet.release(bundle(version="2.0.0", counter=2))
        fleet.enroll("press-1")
        first = fleet.roll_out("double", "1.0.0")
        settle_assignments(fleet)
        second = fleet.roll_out("double", "2.0.0")
        settle_assignments(fleet)
        with fleet.core.store.read() as session:
            old = get_rollout(session, first.id)
        assert ("finished", "superseded") == (old.state, old.deployments[0].state)
        told = document(fleet, "press-1")
        assert ((second.deployments[0].id,), (first.deployments[0].id,)) == (
            tuple(r.deployment_id for r in told.releases),
            told.canceled,
        )

    def test_a_failed_deployment_does_not_block_the_next(self, fleet: FleetCore) -> None:
        """And the device is told to go on with what it has."""
        release = fleet.release(bundle(version="1.0.0", counter=1))
        broken = fleet.release(bundle(version="1.1.0", counter=2))
        fixed = fleet.release(bundle(version="1.1.1", counter=3))
        device = fleet.enroll("press-1")
        succeed(fleet, device, fleet.roll_out("double", "1.0.0"), release)
        settle_assignments(fleet)
        before = document(fleet, "press-1")
        rollout = fleet.roll_out("double", "1.1.0")
        settle_assignments(fleet)
        failure: tuple[DeploymentState, ...] = (*HAPPY[:6], "failed")
        fleet.say(device, "receipts", device.report(rollout.deployments[0].id, broken, failure))
        settle_assignments(fleet)
        assert before.releases == document(fleet, "press-1").releases
        succeed(fleet, device, fleet.roll_out("double", "1.1.1"), fixed)
        with fleet.core.store.read() as session:
            assert "1.1.1" == get_device(session, "press-1").models[0].installed

    def test_a_stop_gives_up_what_is_not_active(self, fleet: FleetCore) -> None:
        """What is active ends by itself, and only then is the rollout stopped."""
        release = fleet.release(bundle())
        devices = [fleet.enroll(f"press-{n}") for n in (1, 2, 3)]
        rollout = fleet.roll_out("double", "1.0.0")
        settle_assignments(fleet)
        ids = {d.device: d.id for d in rollout.deployments}
        fleet.say(devices[0], "receipts", devices[0].report(ids["press-1"], release, HAPPY[:7]))
        fleet.say(devices[1], "receipts", devices[1].report(ids["press-2"], release, HAPPY[:3]))
        stopping = rollout_commands.stop(fleet.core, rollout.id, OPERATOR)
        assert ("stopping", {"activated": 1, "canceled": 2}) == (stopping.state, stopping.counts)
        fleet.say(devices[0], "receipts", devices[0].report(ids["press-1"], release, HAPPY[7:]))
        again = rollout_commands.stop(fleet.core, rollout.id, OPERATOR)
        assert ("stopped", {"succeeded": 1, "canceled": 2}) == (again.state, again.counts)
        settle_assignments(fleet)
        told = document(fleet, "press-2")
        assert ((), (ids["press-2"],)) == (told.releases, told.canceled)
        fleet.say(devices[1], "receipts", devices[1].report(ids["press-2"], release, ("canceled",)))
        settle_assignments(fleet)
        assert () == document(fleet, "press-2").canceled

    def test_a_device_that_committed_before_the_stop_reached_it_is_believed(self, fleet: FleetCore) -> None:
        """What is desired then is what it runs: the record and the device do not drift apart."""
        release = fleet.release(bundle())
        device = fleet.enroll("press-1")
        rollout = fleet.roll_out("double", "1.0.0")
        settle_assignments(fleet)
        rollout_commands.stop(fleet.core, rollout.id, OPERATOR)
        succeed(fleet, device, rollout, release)
        settle_assignments(fleet)
        with fleet.core.store.read() as session:
            shown = get_rollout(session, rollout.id)
            model = get_device(session, "press-1").models[0]
        assert ("stopped", "succeeded", "1.0.0", "1.0.0") == (
            shown.state,
            shown.deployments[0].state,
            model.installed,
            model.desired,
        )
        assert ("1.0.0",) == tuple(r.version for r in document(fleet, "press-1").releases)

    def test_what_has_ended_cannot_be_stopped(self, fleet: FleetCore) -> None:
        """It says so."""
        release = fleet.release(bundle())
        device = fleet.enroll("press-1")
        rollout = fleet.roll_out("double", "1.0.0")
        succeed(fleet, device, rollout, release)
        with pytest.raises(ConflictError, match="is finished: there is nothing to stop"):
            rollout_commands.stop(fleet.core, rollout.id, OPERATOR)
        with pytest.raises(NotFoundError):
            rollout_commands.stop(fleet.core, "r-none", OPERATOR)

    def test_a_model_is_removed_where_it_is(self, fleet: FleetCore) -> None:
        """`version` null; the device says `removed`."""
        release = fleet.release(bundle())
        device = fleet.enroll("press-1")
        fleet.enroll("press-2")
        succeed(fleet, device, fleet.roll_out("double", "1.0.0", "press-1"), release)
        rollout = fleet.roll_out("double", None)
        settle_assignments(fleet)
        assert ["press-1"] == [d.device for d in rollout.deployments]
        told = document(fleet, "press-1")
        assert ((), ("double",)) == (told.releases, tuple(r.model for r in told.removals))
        report = device.report(rollout.deployments[0].id, release, ("retrieved", "removed"))
        fleet.say(device, "receipts", report)
        settle_assignments(fleet)
        with fleet.core.store.read() as session:
            assert ("finished", None) == (
                get_rollout(session, rollout.id).state,
                get_device(session, "press-1").models[0].installed,
            )
        assert ((), ()) == (document(fleet, "press-1").releases, document(fleet, "press-1").removals)

    def test_devices_that_have_it_already_are_counted_as_done(self, fleet: FleetCore) -> None:
        """A second rollout of the same release is finished at once."""
        release = fleet.release(bundle())
        device = fleet.enroll("press-1")
        succeed(fleet, device, fleet.roll_out("double", "1.0.0"), release)
        again = fleet.roll_out("double", "1.0.0")
        assert ("finished", {"already_installed": 1}) == (again.state, again.counts)

    def test_the_soak_of_a_rollout_reaches_the_device(self, fleet: FleetCore) -> None:
        """Together with the telemetry interval of the service."""
        fleet.release(bundle())
        fleet.enroll("press-1")
        fleet.roll_out("double", "1.0.0", soak_ms=1_234)
        settle_assignments(fleet)
        config = document(fleet, "press-1").config
        assert (1_234, 60) == (config.soak_ms, config.telemetry_interval_s)


class TestDocuments:
    """When a device gets a new document."""

    def test_a_document_is_signed_anew_only_when_something_changed(self, fleet: FleetCore) -> None:
        """A device that has it verifies nothing twice."""
        release = fleet.release(bundle())
        device = fleet.enroll("press-1")
        rollout = fleet.roll_out("double", "1.0.0")
        settle_assignments(fleet)
        with fleet.core.store.read() as session:
            version = session.get_one(DirectorRow, "press-1").version
        succeed(fleet, device, rollout, release)
        settle_assignments(fleet)
        with fleet.core.store.read() as session:
            assert version == session.get_one(DirectorRow, "press-1").version

    def test_a_document_is_renewed_before_it_ends(self, fleet: FleetCore) -> None:
        """After one to two of its seven days, each device at its own time."""
        for n in range(20):
            fleet.enroll(f"press-{n}")
        settle_assignments(fleet)
        with fleet.core.store.read() as session:
            rows = list(session.scalars(select(DirectorRow)))
        ages = {(row.renew_at_ms - row.signed_at_ms) / 86_400_000 for row in rows}
        assert len(ages) == 20
        assert 1 <= min(ages) <= max(ages) <= 2


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
