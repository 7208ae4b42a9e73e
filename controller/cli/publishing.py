"""Making a release: which one a file becomes, its files handed over, its signature put in force."""

from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec

from controller.bundling.bundle import Bundle
from controller.bundling.naming import Choice, next_version
from controller.cli.repository import KnownRelease, open_repository, releases_of, until_first
from controller.client import FleetClient
from controller.errors import ConflictError, NotFoundError
from controller.trust.image import add_release
from controller.workspace import OperatorHome
from protocol.identifiers import Version

Build = Callable[[Version, int], Bundle]
"""Makes the bundle of a version with a release_counter."""


class ChosenRelease(msgspec.Struct, frozen=True, kw_only=True):
    """The release that a file becomes, or is already."""

    version: Choice
    bundle: Bundle
    is_new: bool
    is_lost: bool = False
    """It was signed, but the service has lost its files."""
    newest: Version | None = None
    """The highest version of the model so far."""


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """What was handed over; files that the service had already are not sent again."""

    files: int
    files_sent: int
    bytes_sent: int


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """A release that is in force; for one that existed nothing was uploaded or signed."""

    chosen: ChosenRelease
    upload: Upload | None = None
    targets_version: int | None = None


def choose_release(known: Sequence[KnownRelease], wanted: Choice | None, build: Build) -> ChosenRelease:
    """Return which release the file becomes, among the `known` ones of its model.

    The same content under the version asked for, or as the latest when none was, is that release and no new one.
    Raises ConflictError when the version asked for has other content.
    """
    latest = max(known, key=lambda release: release.version, default=None)
    newest = latest.version if latest else None
    candidate = latest if wanted is None else next((r for r in known if str(r.version) == wanted.value), None)
    if candidate is not None:
        same = build(candidate.version, candidate.release_counter)
        if same.digest == candidate.digest:
            origin = "the latest has the same content" if wanted is None else wanted.origin
            version = Choice(value=str(candidate.version), origin=origin)
            return ChosenRelease(version=version, bundle=same, is_new=False, newest=newest)
    free = next_version([release.version for release in known])
    if wanted is not None and candidate is not None:
        raise ConflictError(
            f"version {wanted.value} exists with other content, and a release never changes",
            hint=f"push it with --version {free.value}; test data and the spec belong to the content too",
        )
    version = wanted or free
    counter = max((release.release_counter for release in known), default=0) + 1
    bundle = build(Version.parse(version.value), counter)
    return ChosenRelease(version=version, bundle=bundle, is_new=True, newest=newest)


def upload(client: FleetClient, bundle: Bundle) -> Upload:
    """Hand over those files of the bundle that the service does not have."""
    missing = [(digest, data) for digest, data in bundle.files.items() if not client.has_file(digest)]
    for digest, data in missing:
        client.put_file(digest, data)
    sent = sum(len(data) for _, data in missing)
    return Upload(files=len(bundle.files), files_sent=len(missing), bytes_sent=sent)


class Publisher:
    """Uploads and signs releases; when another release came first, the next number is taken."""

    def __init__(self, client: FleetClient, operator: OperatorHome) -> None:
        self._client = client
        self._operator = operator

    def choose(self, model: str, wanted: Choice | None, build: Build) -> ChosenRelease:
        """Return which release the file becomes now; changes nothing."""
        with open_repository(self._client, self._operator) as repository:
            return self._choose(repository.fetch(), model, wanted, build)

    def publish(self, model: str, wanted: Choice | None, build: Build, *, now: datetime) -> Publication:
        """Put the release in force; raises ConflictError when its version was taken by other content meanwhile."""
        return until_first(lambda: self._publish_once(model, wanted, build, now))

    def _publish_once(self, model: str, wanted: Choice | None, build: Build, now: datetime) -> Publication:
        with open_repository(self._client, self._operator) as repository:
            targets_raw = repository.fetch()
            chosen = self._choose(targets_raw, model, wanted, build)
            if not chosen.is_new and not chosen.is_lost:
                return Publication(chosen=chosen)
            bundle = chosen.bundle
            uploaded = upload(self._client, bundle)
            if chosen.is_lost:
                return Publication(chosen=chosen, upload=uploaded, targets_version=repository.recover().version)
            signer = self._operator.targets_signer
            signed = add_release(targets_raw, bundle.manifest, bundle.manifest_bytes, signer, now)
            return Publication(chosen=chosen, upload=uploaded, targets_version=repository.put(signed).version)

    def _choose(self, targets_raw: bytes, model: str, wanted: Choice | None, build: Build) -> ChosenRelease:
        chosen = choose_release(releases_of(targets_raw, model), wanted, build)
        is_lost = not chosen.is_new and not self._is_known(model, chosen.version.value)
        return msgspec.structs.replace(chosen, is_lost=is_lost)

    def _is_known(self, model: str, version: str) -> bool:
        try:
            self._client.release(model, version)
        except NotFoundError:
            return False
        return True
