"""The image repository as the operator sees it: the signed list of releases, verified before anything is added.

A service that lies gets no signature: the list must be signed under the operator's own copy of the root, and take
back nothing that this machine saw before.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import msgspec

from controller.api.schema import TargetsAccepted, TargetsRecovered
from controller.errors import ConflictError, RefusedError
from controller.trust.image import check_continues
from controller.workspace import OperatorHome
from protocol.assignment import ReleaseClaim, parse_metadata
from protocol.identifiers import Digest, Version, parse_digest

T = TypeVar("T")

_ATTEMPTS = 5


class OvertakenError(ConflictError):
    """Another change of the signed list came first: fetch it and make this one again."""

    code = "overtaken"


class KnownRelease(msgspec.Struct, frozen=True, kw_only=True):
    """One release of the signed list; `digest` is that of its manifest."""

    version: Version
    release_counter: int
    digest: Digest


class TargetsService(Protocol):
    """Who keeps the signed list: FleetClient."""

    def targets(self) -> bytes:
        """Return the current list as signed."""

    def put_targets(self, signed: bytes) -> TargetsAccepted:
        """Put a newer list in force; raises ConflictError."""

    def recover_targets(self, signed: bytes) -> TargetsRecovered:
        """Put a list that was in force before in force again; raises ConflictError."""


class ImageRepository:
    """The signed list of releases behind one service, for one operator; `open_repository` makes one."""

    def __init__(self, client: TargetsService, operator: OperatorHome) -> None:
        self._client = client
        self._operator = operator

    def fetch(self) -> bytes:
        """Return the current list as signed; raises ProtocolError or RefusedError when it must not be signed over."""
        raw = self._client.targets()
        seen = self._operator.seen_targets
        check_continues(raw, seen, self._operator.image_root)
        if raw != seen:
            self._operator.remember_targets(raw)
        return raw

    def put(self, signed: bytes) -> TargetsAccepted:
        """Put a newly signed list in force; raises OvertakenError."""
        with _first():
            accepted = self._client.put_targets(signed)
        self._operator.remember_targets(signed)
        return accepted

    def recover(self) -> TargetsRecovered:
        """Give the service the newest list that this operator has seen; raises OvertakenError if it has a newer."""
        seen = self._operator.seen_targets
        if seen is None:
            raise RefusedError(
                f"this operator has no signed list: there is no {self._operator.seen_targets_path}",
                hint="recover on the machine that signed the releases",
            )
        with _first():
            return self._client.recover_targets(seen)


@contextmanager
def _first() -> Iterator[None]:
    """Tell a change that came too late from every other conflict."""
    try:
        yield
    except ConflictError as error:
        raise OvertakenError(str(error), hint=error.hint) from error


@contextmanager
def open_repository(client: TargetsService, operator: OperatorHome) -> Iterator[ImageRepository]:
    """Return the repository, for one command at a time on this machine.

    Between fetching the list and remembering the next one, another command must not see or remember it: it would
    take the service for a liar.
    """
    descriptor = os.open(operator.path / "signing.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield ImageRepository(client, operator)
    finally:
        os.close(descriptor)


def until_first(attempt: Callable[[], T]) -> T:
    """Return what `attempt` returns, made again (a few times) whenever another change came first."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return attempt()
        except OvertakenError:
            continue
    return attempt()


def releases_of(targets_raw: bytes, model: str) -> list[KnownRelease]:
    """Return the releases of `model` in verified targets metadata, in the order in which they were made."""
    entries = parse_metadata(targets_raw, "targets metadata").signed.targets.values()
    claims = ((entry, msgspec.convert(entry.custom, ReleaseClaim)) for entry in entries)
    known = [
        KnownRelease(
            version=Version.parse(claim.version),
            release_counter=claim.release_counter,
            digest=parse_digest(entry.hashes["sha256"]),
        )
        for entry, claim in claims
        if claim.model == model
    ]
    return sorted(known, key=lambda release: release.release_counter)
