"""A service that was restored, and whose broker forgot as well, gets the operator's signed list back, and no other."""

from pathlib import Path

import pytest

from controller.api.schema import TargetsRecovered
from controller.commands import releases as commands
from controller.errors import ConflictError, RefusedError
from controller.reads.releases import list_releases
from controller.trust.image import check_continues, first_targets
from controller.trust.keys import generate_signer
from protocol.codec import sha256
from protocol.errors import SignatureError
from tests.controller.service.fleet import OPERATOR, FleetCore, Recorder, bundle, open_core, slot
from tests.controller.service.restorable import Believer, Restorable, finish, parse, publish


def test_an_operator_gives_back_the_list_that_the_broker_forgot(restorable: Restorable, tmp_path: Path) -> None:
    """Database and broker are both behind the devices: no device goes back, the operator's copy heals."""
    broker, second = restorable.broker, bundle(version="2.0.0", counter=2)
    with open_core(restorable.folder) as fleet:
        fleet.release(bundle())
        device = fleet.enroll("press-1")
        restorable.back_up()
        for _ in range(5):
            fleet.clock.advance(hours=9)
            publish(fleet, broker)
        fleet.release(second)
        finish(fleet, device, fleet.release(bundle(version="3.0.0", counter=3)), broker)
        believer = Believer(fleet, device, tmp_path / device.id)
        signed = fleet.targets()
        assert {} == believer.look_at(broker).problems
        fleet.core.files.path(sha256(second.files[0])).unlink()
    restorable.put_back()
    restorable.broker = broker = Recorder()
    with open_core(restorable.folder, fleet.clock) as fleet:
        publish(fleet, broker)
        assert {"timestamp"} <= believer.look_at(broker).problems.keys()
        device.session += 1
        fleet.say(device, "liveness", device.liveness(director_version=50, slots=(slot("double", "3.0.0"),)))
        publish(fleet, broker)
        assert parse(broker.retained[fleet.topics.director(device.id)]) < 50
        recovered = commands.recover_targets(fleet.core, signed, OPERATOR)
        assert TargetsRecovered(version=4, missing=("double@2.0.0",)) == recovered
        assert {"1.0.0", "3.0.0"} == shown_releases(fleet)
        publish(fleet, broker)
        judgement = believer.look_at(broker)
        assert judgement.assignment is not None
        assert "3.0.0" == judgement.assignment.goals["double"].version
        assert {} == believer.look_at(broker).problems
        fleet.upload(second)
        assert () == commands.recover_targets(fleet.core, signed, OPERATOR).missing
        assert {"1.0.0", "2.0.0", "3.0.0"} == shown_releases(fleet)
        assert signed == fleet.targets()
        finish(fleet, device, fleet.release(bundle(version="4.0.0", counter=4)), broker)
        assert {} == believer.look_at(broker).problems


def shown_releases(fleet: FleetCore) -> set[str]:
    """Return the versions that can be rolled out."""
    with fleet.core.store.read() as session:
        return {release.version for release in list_releases(session, "double")}


def test_only_a_service_that_is_behind_takes_a_list_back(restorable: Restorable) -> None:
    """An older list changes nothing, one that takes a release back neither, nor one of somebody else."""
    with open_core(restorable.folder) as fleet:
        first = fleet.targets()
        restorable.back_up()
        fleet.release(bundle())
        ahead = fleet.signed_with(bundle(version="2.0.0", counter=2))
        with pytest.raises(ConflictError, match="the service has targets version 2, which is no older than these"):
            commands.recover_targets(fleet.core, first, OPERATOR)
    restorable.put_back()
    with open_core(restorable.folder, fleet.clock) as fleet:
        fleet.release(bundle(version="1.0.1"))
        with pytest.raises(RefusedError, match=r"the new targets drop models/double/1\.0\.1"):
            commands.recover_targets(fleet.core, ahead, OPERATOR)
        with pytest.raises(SignatureError):
            commands.recover_targets(fleet.core, first_targets(generate_signer(), fleet.clock()), OPERATOR)


def test_the_same_backup_can_be_put_back_twice(restorable: Restorable, tmp_path: Path) -> None:
    """What was signed after the first recovery was seen as well, when lost files came back: the second one is ahead."""
    lost = [bundle(version=f"{n}.0.0", counter=n) for n in (2, 3)]
    with open_core(restorable.folder) as fleet:
        fleet.release(bundle())
        device = fleet.enroll("press-1")
        restorable.back_up()
        for each in lost:
            fleet.release(each)
        publish(fleet, restorable.broker)
        for each in lost:
            fleet.core.files.path(sha256(each.files[0])).unlink()
        signed, believer = fleet.targets(), Believer(fleet, device, tmp_path / device.id)
        assert {} == believer.look_at(restorable.broker).problems
    for came_back in (lost, []):
        restorable.put_back()
        with open_core(restorable.folder, fleet.clock) as fleet:
            fleet.clock.advance(hours=9)
            commands.recover_targets(fleet.core, signed, OPERATOR)
            for each in came_back:
                fleet.upload(each)
                assert signed == fleet.targets()
                commands.recover_targets(fleet.core, signed, OPERATOR)
            for _ in range(3):
                fleet.clock.advance(hours=9)
                publish(fleet, broker := Recorder())
            broker.retained[fleet.topics.director(device.id)] = restorable.broker.retained[
                fleet.topics.director(device.id)
            ]
            assert {} == believer.look_at(broker).problems


def test_an_old_list_given_back_moves_no_device_back(restorable: Restorable, tmp_path: Path) -> None:
    """A stolen token and an old signed list, when the service is older still: devices and operator know better."""
    with open_core(restorable.folder) as fleet:
        device = fleet.enroll("press-1")
        restorable.back_up()
        fleet.release(bundle())
        old = fleet.targets()
        fleet.release(bundle(version="2.0.0", counter=2))
        publish(fleet, restorable.broker)
        signed, believer = fleet.targets(), Believer(fleet, device, tmp_path / device.id)
        assert {} == believer.look_at(restorable.broker).problems
    restorable.put_back()
    with open_core(restorable.folder, fleet.clock) as fleet:
        commands.recover_targets(fleet.core, old, OPERATOR)
        publish(fleet, broker := Recorder())
        judged = believer.look_at(broker).problems["timestamp"]
        assert "image repository: Expected targets.json version 2, got 3." == judged.message
        with pytest.raises(RefusedError, match="returned targets version 2, this operator has seen 3"):
            check_continues(fleet.targets(), signed, fleet.core.trust.image_root)
        commands.recover_targets(fleet.core, signed, OPERATOR)
        publish(fleet, broker)
        assert not {"metadata", "timestamp"} & believer.look_at(broker).problems.keys()
