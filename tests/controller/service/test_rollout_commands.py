"""Starting, planning, replacing and stopping rollouts, and the documents that follow."""

import msgspec
import pytest
from sqlalchemy import select

from controller.api.schema import RolloutRequest
from controller.commands import rollouts as rollout_commands
from controller.errors import ConflictError, NotFoundError, RefusedError
from controller.reads.devices import get_device, resolve
from controller.reads.rollouts import get_rollout, list_rollouts
from controller.store.idempotency import Ticket
from controller.store.models import DirectorRow, GroupRow
from protocol.errors import MalformedError, ProtocolError
from protocol.lifecycle import DeploymentState
from protocol.manifest import FileRef
from tests.controller.service.fleet import (
    CAPACITY,
    HAPPY,
    OPERATOR,
    FleetCore,
    bundle,
)
from tests.controller.service.records import document, settle_assignments, succeed, to_publish


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
