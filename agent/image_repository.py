"""The image repository as this device trusts it: The Update Framework's client over a set of files in memory.

Owns the folder of trusted metadata. Every file there is synced before it counts. What the client accepts is compared
once more with floors from the agent's database, so that losing the folder does not reset the protection against
rollback. Floors belong to the keys of a role: a root that replaces the keys also heals versions that a thief raised.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Targets

from agent import durable, faults
from agent.tuf_client import FetcherInterface, Updater
from protocol import limits
from protocol.assignment import parse_metadata
from protocol.codec import sha256
from protocol.errors import ExpiredError, MalformedError, ProtocolError, RollbackError, SignatureError, TrustError

_BASE: Final = "set:"
_ROLES: Final = ("timestamp", "snapshot", "targets")


class IncompleteError(TrustError):
    """The timestamp and the metadata set on the broker are not of one state (yet)."""

    code = "incomplete"


class ImageRepository:
    """The trusted metadata on this device's disk."""

    def __init__(self, folder: Path, bootstrap: bytes) -> None:
        self._folder = folder
        self._bootstrap = bootstrap
        folder.mkdir(parents=True, exist_ok=True)
        self.targets: Targets | None = self._load_targets()
        """What was last accepted, also before this start."""
        self.expires: datetime | None = None
        """When the first part of what this process accepted ends."""

    def refresh(
        self, files: Mapping[str, str], timestamp: bytes, floors: Mapping[str, int], now: datetime
    ) -> dict[str, int]:
        """Accept `files` and `timestamp` as the newest state, and return the floors that follow from it.

        Raises:
            IncompleteError: a file that the timestamp leads to is not there.
            SignatureError, RollbackError, ExpiredError, MalformedError: they must not be believed.
            OSError: the disk.
        """
        faults.reach("trust.before_persist")
        try:
            updater = _Updater(self._folder, self._bootstrap, _SetFetcher(files, timestamp), now)
            updater.refresh()
        except (RepositoryError, DownloadError, ValueError, RecursionError) as error:
            raise _translated(error) from error
        faults.reach("trust.after_persist")
        versions, expires = self._versions()
        for role, version in versions.items():
            if version < floors.get(role, 0):
                raise RollbackError(f"{role.partition('@')[0]} has version {version}, already accepted {floors[role]}")
        self.targets, self.expires = self._load_targets(), expires
        return versions

    def check_expiry(self, now: datetime) -> None:
        """Raise ExpiredError when what was accepted is too old to bring anything new."""
        if self.expires is not None and self.expires <= now:
            raise ExpiredError(
                f"image repository: its metadata ended at {self.expires:%Y-%m-%d %H:%M:%SZ}; the controller has to "
                "sign anew, or this clock is wrong"
            )

    def _versions(self) -> tuple[dict[str, int], datetime]:
        """Return the version of every role, and when the first of them ends."""
        root: Metadata[Root] = parse_metadata((self._folder / "root.json").read_bytes(), "root")
        versions, expires = {"root": root.signed.version}, root.signed.expires
        for role in _ROLES:
            signed = parse_metadata((self._folder / f"{role}.json").read_bytes(), role).signed
            versions[floor_name(role, root.signed, role)] = signed.version
            expires = min(expires, signed.expires)
        return versions, expires

    def _load_targets(self) -> Targets | None:
        try:
            signed = parse_metadata((self._folder / "targets.json").read_bytes(), "targets").signed
        except (OSError, ProtocolError):
            return None
        return signed if isinstance(signed, Targets) else None


def floor_name(name: str, root: Root, role: str) -> str:
    """Return the name under which the version floor `name` is kept while `root` gives `role` these keys."""
    return f"{name}@{sha256(' '.join(sorted(root.roles[role].keyids)).encode())[:16]}"


class _SetFetcher(FetcherInterface):
    """Serves the files of one metadata set; what is not there is definitely absent."""

    def __init__(self, files: Mapping[str, str], timestamp: bytes) -> None:
        self._files = files
        self._timestamp = timestamp

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(_BASE).lstrip("/")
        if name == "timestamp.json":
            return iter((self._timestamp,))
        text = self._files.get(name)
        if text is None:
            raise DownloadHTTPError(f"{name} is not in the metadata set", 404)
        return iter((text.encode(),))


class _Updater(Updater):
    """The client with a trusted time, and files that survive a loss of power.

    Both need private parts of the client; its exact version is pinned, and tests fail when these parts change.
    """

    def __init__(self, folder: Path, bootstrap: bytes, fetcher: FetcherInterface, now: datetime) -> None:
        super().__init__(str(folder), _BASE, fetcher=fetcher, bootstrap=bootstrap)
        self.config.timestamp_max_length = limits.MAX_TIMESTAMP_BYTES
        self._trusted_set.reference_time = now

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        if not path.exists() or path.read_bytes() != data:
            durable.replace(path, data)


def _translated(error: Exception) -> TrustError | MalformedError:
    if isinstance(error, ExpiredMetadataError):
        return ExpiredError(f"image repository: {error}; the controller has to sign anew, or this clock is wrong")
    if isinstance(error, BadVersionNumberError):
        return RollbackError(f"image repository: {error}")
    if isinstance(error, UnsignedMetadataError):
        return SignatureError(f"image repository: {error}")
    if isinstance(error, DownloadError):
        return IncompleteError(f"image repository: {error}")
    return MalformedError(f"image repository: {error}")
