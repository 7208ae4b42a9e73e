"""Tests of which release a file becomes, and that a lying service gets no signature."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.api.schema import TargetsAccepted, TargetsRecovered
from controller.bundling.bundle import Bundle, build_bundle
from controller.bundling.naming import Choice
from controller.bundling.preflight import preflight
from controller.bundling.source import parse_source
from controller.cli.publishing import choose_release
from controller.cli.repository import ImageRepository, KnownRelease, OvertakenError, releases_of, until_first
from controller.errors import ConflictError, RefusedError
from controller.trust.image import accept_targets, add_release, first_targets, newest_targets, raise_floor
from controller.trust.keys import generate_signer
from controller.workspace import Workspace, create_workspace
from protocol.errors import ProtocolError
from protocol.identifiers import Version
from tests.controller.wat_models import DOUBLE, TRIPLE, wasm

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def builder(infer: str = DOUBLE) -> Callable[[Version, int], Bundle]:
    source = parse_source("a.wasm", wasm(infer))
    checked = preflight(source)
    return lambda version, counter: build_bundle(source, checked, model="m", version=version, release_counter=counter)


def known(infer: str, version: str, counter: int) -> KnownRelease:
    parsed = Version.parse(version)
    return KnownRelease(version=parsed, release_counter=counter, digest=builder(infer)(parsed, counter).digest)


def given(version: str) -> Choice:
    return Choice(value=version, origin="given")


def test_the_first_release_is_1_0_0() -> None:
    """Without a word about versions, a new model starts at 1.0.0 with counter 1."""
    chosen = choose_release([], None, builder())
    assert ("1.0.0 (the first)", True, 1) == (
        str(chosen.version),
        chosen.is_new,
        chosen.bundle.manifest.release_counter,
    )


def test_new_content_is_the_next_release() -> None:
    """Counter and version rise by one."""
    chosen = choose_release([known(DOUBLE, "1.0.0", 1)], None, builder(TRIPLE))
    assert ("1.0.1 (next after 1.0.0)", 2) == (str(chosen.version), chosen.bundle.manifest.release_counter)


def test_counters_follow_the_order_of_making() -> None:
    """A release of an older line has a lower version and a higher counter."""
    chosen = choose_release([known(DOUBLE, "1.0.0", 1), known(DOUBLE, "2.0.0", 2)], given("1.0.1"), builder(TRIPLE))
    assert ("1.0.1", 3) == (chosen.version.value, chosen.bundle.manifest.release_counter)
    assert Version.parse("2.0.0") == chosen.newest


@pytest.mark.parametrize("wanted", [None, given("1.0.0")])
def test_the_same_content_is_no_new_release(wanted: Choice | None) -> None:
    """Pushing again is harmless: the release that exists is the one that is rolled out."""
    chosen = choose_release([known(DOUBLE, "1.0.0", 1)], wanted, builder())
    assert ("1.0.0", False, 1) == (chosen.version.value, chosen.is_new, chosen.bundle.manifest.release_counter)


def test_a_version_with_other_content_is_refused() -> None:
    """The hint names a version that is free."""
    with pytest.raises(ConflictError, match=r"version 1.0.0 exists with other content") as caught:
        choose_release([known(DOUBLE, "1.0.0", 1), known(TRIPLE, "1.3.0", 2)], given("1.0.0"), builder(TRIPLE))
    assert "--version 1.3.1" in caught.value.hint


class Service:
    """The targets of one service, as far as signing needs them; it lies when `served` is set."""

    def __init__(self, workspace: Workspace) -> None:
        self.root = workspace.operator.image_root
        self.current = workspace.server.first_targets
        self.served: bytes | None = None

    def targets(self) -> bytes:
        return self.served or self.current

    def put_targets(self, signed: bytes) -> TargetsAccepted:
        accepted = accept_targets(self.current, signed, self.root, NOW)
        self.current = signed
        return TargetsAccepted(version=accepted.version, released=tuple(r.path for r in accepted.added))

    def recover_targets(self, signed: bytes) -> TargetsRecovered:
        newest = newest_targets(self.current, signed, self.root)
        if newest is None:
            raise ConflictError("the service has newer targets")
        return TargetsRecovered(version=newest.version, missing=())


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return create_workspace(tmp_path / "fleet", now=NOW)


@pytest.fixture
def service(workspace: Workspace) -> Service:
    return Service(workspace)


@pytest.fixture
def repository(service: Service, workspace: Workspace) -> ImageRepository:
    return ImageRepository(service, workspace.operator)


def release(raw: bytes, workspace: Workspace, version: str, counter: int) -> bytes:
    bundle = builder()(Version.parse(version), counter)
    return add_release(raw, bundle.manifest, bundle.manifest_bytes, workspace.operator.targets_signer, NOW)


def test_releases_are_read_from_the_signed_list(
    repository: ImageRepository, service: Service, workspace: Workspace
) -> None:
    """What the service signed over to us is where versions, counters and digests come from."""
    repository.put(release(repository.fetch(), workspace, "1.0.0", 1))
    repository.put(release(repository.fetch(), workspace, "1.1.0", 2))
    assert [known(DOUBLE, "1.0.0", 1), known(DOUBLE, "1.1.0", 2)] == releases_of(service.current, "m")
    assert [] == releases_of(service.current, "other")


def test_a_list_of_a_stranger_is_not_signed_over(repository: ImageRepository, service: Service) -> None:
    """Targets under another key are refused before the operator's key is used."""
    service.served = first_targets(generate_signer(), NOW)
    with pytest.raises(ProtocolError, match="not signed by this fleet's operator"):
        repository.fetch()


def test_an_older_list_is_not_signed_over(repository: ImageRepository, service: Service, workspace: Workspace) -> None:
    """A service that shows yesterday's list would have retired releases come back."""
    old = service.current
    repository.put(release(repository.fetch(), workspace, "1.0.0", 1))
    service.served = old
    with pytest.raises(RefusedError, match="targets version 1, this operator has seen 2"):
        repository.fetch()


def test_what_was_seen_survives_the_command(
    repository: ImageRepository, service: Service, workspace: Workspace
) -> None:
    """The next command on this machine knows what this one saw."""
    old = service.current
    repository.put(release(repository.fetch(), workspace, "1.0.0", 1))
    service.served = old
    with pytest.raises(RefusedError):
        ImageRepository(service, workspace.operator).fetch()


def test_a_lost_race_is_run_again(repository: ImageRepository, service: Service, workspace: Workspace) -> None:
    """When another operator's release comes first, ours is made again on top of it."""
    rivals = iter(["1.0.0", "1.0.1"])

    def attempt() -> TargetsAccepted:
        raw = repository.fetch()
        counter = len(releases_of(raw, "m")) + 1
        signed = release(raw, workspace, f"2.0.{counter}", counter)
        if (rival := next(rivals, None)) is not None:
            service.put_targets(release(service.current, workspace, rival, counter))
        return repository.put(signed)

    assert 4 == until_first(attempt).version
    assert ["1.0.0", "1.0.1", "2.0.3"] == [str(r.version) for r in releases_of(service.current, "m")]


def test_a_race_that_is_always_lost_ends(repository: ImageRepository, workspace: Workspace) -> None:
    """After a few attempts the conflict is the operator's to see."""
    stale = release(repository.fetch(), workspace, "1.0.0", 1)
    repository.put(stale)
    with pytest.raises(OvertakenError, match="expected targets version 3"):
        until_first(lambda: repository.put(stale))


def test_a_list_that_came_first_is_no_end_of_a_recovery(
    repository: ImageRepository, service: Service, workspace: Workspace
) -> None:
    """Whoever gives back a lost release while another is signed has only to look again."""
    repository.put(release(repository.fetch(), workspace, "1.0.0", 1))
    service.put_targets(release(service.current, workspace, "1.1.0", 2))
    said: list[str] = []

    def attempt() -> bytes:
        if not said:
            said.append("recover")
            repository.recover()
        return repository.fetch()

    assert service.current == until_first(attempt)


def test_a_floor_is_kept(repository: ImageRepository, service: Service, workspace: Workspace) -> None:
    """A list without the floor that this machine signed is refused, though its version is newer."""
    repository.put(release(repository.fetch(), workspace, "1.0.0", 1))
    repository.put(release(repository.fetch(), workspace, "1.1.0", 2))
    before = service.current
    repository.put(raise_floor(repository.fetch(), "m", 2, workspace.operator.targets_signer, NOW))
    forked = release(release(before, workspace, "1.2.0", 3), workspace, "1.3.0", 4)
    service.served = forked
    with pytest.raises(RefusedError, match="lower the floor of m from 2 to 0"):
        repository.fetch()
