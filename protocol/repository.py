"""The image repository's signed metadata: what it adds to The Update Framework, and how it travels.

The timestamp has a topic of its own because it is signed anew every few hours. Everything else (both chains of
roots, the snapshot, the targets) is one compressed set, so that a device sees all of one state or all of another,
and "absent" is definite.
"""

from datetime import datetime

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from protocol import limits
from protocol.assignment import EXTENSION, ReleaseClaim, extension, parse_metadata
from protocol.codec import decode, encode
from protocol.compression import compress, decompress
from protocol.errors import LimitExceededError, MalformedError, RollbackError, SignatureError
from protocol.manifest import Manifest


class ReleaseFloors(msgspec.Struct, frozen=True, kw_only=True):
    """The image targets' `x-wasmfleet`: the lowest release_counter of each model that may be installed."""

    min_release_counter: dict[str, int] = {}


class MetadataSet(msgspec.Struct, frozen=True, kw_only=True):
    """Metadata files by name, exactly as signed: `image` and `director` hold `1.root.json`, `2.targets.json`, …"""

    image: dict[str, str]
    director: dict[str, str]
    schema: int = 1

    @classmethod
    def from_bytes(cls, raw: bytes) -> "MetadataSet":
        """Parse the message on the metadata topic; raises ProtocolError."""
        if len(raw) > limits.MAX_METADATA_SET_BYTES:
            raise LimitExceededError(
                f"expected a metadata set of at most {limits.MAX_METADATA_SET_BYTES:,} bytes, got {len(raw):,}"
            )
        data = decompress(raw, limit_bytes=limits.MAX_METADATA_BYTES, what="metadata set")
        return decode(data, cls, limit_bytes=limits.MAX_METADATA_BYTES, what="metadata set")

    def to_bytes(self) -> bytes:
        """Return the message for the metadata topic."""
        return compress(encode(self))


def walk_roots(trusted: bytes, later: dict[str, str]) -> Metadata[Root]:
    """Return the newest root that a chain from `trusted` reaches through `later` (`<version>.root.json`).

    Source: The Update Framework specification 1.0.33, section 5.3: each root is signed by its predecessor and by
    itself, and versions rise by one. Expiry is not checked: a device that was away for months must be able to
    follow the chain.

    Raises:
        MalformedError, SignatureError, RollbackError: a link of the chain is broken.
    """
    current = _root(trusted)
    while (text := later.get(f"{current.signed.version + 1}.root.json")) is not None:
        candidate = _root(text.encode())
        if candidate.signed.version != current.signed.version + 1:
            raise RollbackError(f"expected root version {current.signed.version + 1}, got {candidate.signed.version}")
        try:
            for signer in (current.signed, candidate.signed):
                signer.verify_delegate(Root.type, candidate.signed_bytes, candidate.signatures)
        except (RepositoryError, ValueError, RecursionError) as error:
            raise SignatureError(f"root version {candidate.signed.version} is not vouched for: {error}") from error
        current = candidate
    return current


def check_floor(targets: Targets, manifest: Manifest, path: str) -> None:
    """Raise unless the image-signed `targets` agree with `manifest` and allow its release_counter.

    Raises:
        MalformedError: the signed targets have no such release, or another one than the manifest.
        RollbackError: the release is below the floor.
    """
    entry = targets.targets.get(path)
    if entry is None:
        raise MalformedError(f"{path} is not in the image repository")
    try:
        claim = msgspec.convert(entry.custom, ReleaseClaim)
    except msgspec.ValidationError as error:
        raise MalformedError(f"{path}: {error}") from error
    wanted = ReleaseClaim(model=manifest.model, version=manifest.version, release_counter=manifest.release_counter)
    if claim != wanted:
        raise MalformedError(f"{path}: the manifest says {wanted}, the signed metadata {claim}")
    floor = floors(targets).min_release_counter.get(manifest.model, 0)
    if manifest.release_counter < floor:
        raise RollbackError(
            f"{manifest.model} {manifest.version} has release counter {manifest.release_counter}, retired below {floor}"
        )


def floors(targets: Targets) -> ReleaseFloors:
    """Return the release floors that `targets` sign; none when they say nothing."""
    if EXTENSION not in targets.unrecognized_fields:
        return ReleaseFloors()
    return extension(targets, ReleaseFloors)


def is_expiring(metadata: Metadata[Targets], now: datetime, days: int) -> bool:
    """Return whether `metadata` ends within `days`."""
    return (metadata.signed.expires - now).days < days


def _root(raw: bytes) -> Metadata[Root]:
    metadata = parse_metadata(raw, "root")
    if not isinstance(metadata.signed, Root):
        raise MalformedError(f"expected metadata of type root, got {metadata.signed.type!r}")
    return metadata
