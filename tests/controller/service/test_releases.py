"""What the service accepts as a release, and to whom it goes no more."""

from pathlib import Path

import pytest

from controller.commands import releases as release_commands
from controller.errors import ConflictError, NotFoundError, RefusedError
from controller.reads.devices import get_device
from controller.reads.releases import get_release, list_models, list_releases
from controller.reads.rollouts import get_rollout
from controller.store.files import FileStore
from controller.trust import image
from protocol.errors import DigestError, LimitExceededError, MalformedError, SignatureError
from protocol.manifest import FileRef
from tests.controller.service.fleet import (
    OPERATOR,
    FleetCore,
    bundle,
)
from tests.controller.service.records import audited, succeed, to_publish


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
