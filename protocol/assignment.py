"""The director's document: what one device must run, and the order in which a device decides to believe it.

It is a TUF `Targets` under the director's own root, one for each device. Its `targets` bind the digest of every
manifest; its field `x-wasmfleet` (signed with the rest) names the device and says what each release is for.
"""

from datetime import datetime
from typing import Any, TypeVar

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets
from tuf.api.serialization import DeserializationError

from protocol import limits
from protocol.codec import Count
from protocol.errors import (
    ExpiredError,
    LimitExceededError,
    MalformedError,
    RollbackError,
    SignatureError,
    WrongDeviceError,
)
from protocol.identifiers import DeviceId, Digest, Version, parse_device_id, parse_digest, parse_model_name

S = TypeVar("S", bound=msgspec.Struct)

EXTENSION = "x-wasmfleet"
"""The signed extension field in the director's documents and in the image repository's targets."""


class AssignedRelease(msgspec.Struct, frozen=True, kw_only=True):
    """One release that the device must run, and the deployment that brought it."""

    model: str
    version: str
    deployment_id: str
    activation_group: str | None = None
    """Releases of one group become active together; reserved, null in this version."""
    is_open: bool = False
    """When this was signed, the director had not heard how the deployment ended."""

    def __post_init__(self) -> None:
        parse_model_name(self.model)
        Version.parse(self.version)
        _check_deployment(self.deployment_id)

    @property
    def target_path(self) -> str:
        """The name of the release's manifest in both TUF domains."""
        return target_path(self.model, self.version)


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the device must remove, and the deployment that says so."""

    model: str
    version: str
    deployment_id: str
    is_open: bool = False
    """As in AssignedRelease."""

    def __post_init__(self) -> None:
        parse_model_name(self.model)
        Version.parse(self.version)
        _check_deployment(self.deployment_id)


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator sets on a device; an agent ignores fields that it does not know."""

    telemetry_interval_s: int = 60
    soak_ms: int = 5_000
    """How long a new release must serve without a fault of its own before it is committed."""
    max_boot_attempts: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.telemetry_interval_s <= 86_400 or not 0 <= self.soak_ms <= 86_400_000:
            raise MalformedError("agent config: telemetry_interval_s or soak_ms out of range")
        if not 1 <= self.max_boot_attempts <= 100:
            raise MalformedError(
                f"agent config: expected max_boot_attempts from 1 to 100, got {self.max_boot_attempts}"
            )


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `x-wasmfleet`: the whole desired state of one device."""

    device_id: str
    issued_at_ms: Count
    releases: tuple[AssignedRelease, ...] = ()
    removals: tuple[Removal, ...] = ()
    canceled: tuple[str, ...] = ()
    """Deployments that the device must give up if it has not activated them."""
    config: AgentConfig = AgentConfig()

    def __post_init__(self) -> None:
        parse_device_id(self.device_id)
        if len(self.releases) > limits.MAX_MODELS_PER_DEVICE:
            raise LimitExceededError(
                f"assignment: expected at most {limits.MAX_MODELS_PER_DEVICE} models, got {len(self.releases)}"
            )
        models = [r.model for r in self.releases] + [r.model for r in self.removals]
        if len(set(models)) != len(models):
            raise MalformedError("assignment: a model is named twice")


class VerifiedAssignment(msgspec.Struct, frozen=True, kw_only=True):
    """A director document that passed every check but the comparison with the image repository."""

    version: int
    assignment: Assignment
    digests: dict[str, Digest]
    """The director's digest of each release's manifest, by target path."""


class ReleaseClaim(msgspec.Struct, frozen=True, kw_only=True):
    """What the image repository signs about a release (a target's `custom`)."""

    model: str
    version: str
    release_counter: Count


def target_path(model: str, version: str) -> str:
    """Return the name of a release's manifest in both TUF domains."""
    return f"models/{model}/{version}.json"


def build_targets(
    assignment: Assignment, manifests: dict[str, TargetFile], *, version: int, expires: datetime
) -> Targets:
    """Return the director document to sign; `manifests` holds the image repository's entry of each release."""
    targets = Targets(
        version=version,
        expires=expires,
        unrecognized_fields={EXTENSION: msgspec.to_builtins(assignment)},
    )
    for release in assignment.releases:
        path = release.target_path
        entry = manifests[path]
        targets.targets[path] = TargetFile(entry.length, {"sha256": entry.hashes["sha256"]}, path)
    return targets


def verify_assignment(
    raw: bytes, *, root: Root, device_id: DeviceId, version_floor: int, now: datetime
) -> VerifiedAssignment:
    """Return what `raw` tells this device to run.

    The order is that of the Uptane Standard 2.1.0, section 5.4.4.5 (Targets metadata), with the device binding
    before everything: size, type, device, signature, version, expiry.

    Raises:
        LimitExceededError, MalformedError: it is not such a document.
        WrongDeviceError: it binds another device.
        SignatureError: the director's root does not vouch for it.
        RollbackError: its version is below `version_floor`.
        ExpiredError: it ended before `now`, or was issued when the director's root had ended.
    """
    if len(raw) > limits.MAX_DIRECTOR_BYTES:
        raise LimitExceededError(
            f"expected a director document of at most {limits.MAX_DIRECTOR_BYTES:,} bytes, got {len(raw):,}"
        )
    metadata = parse_metadata(raw, "director document")
    signed = metadata.signed
    if not isinstance(signed, Targets):
        raise MalformedError(f"expected a director document of type targets, got {signed.type!r}")
    assignment = extension(signed, Assignment)
    if assignment.device_id != device_id:
        raise WrongDeviceError(f"the assignment is for device {assignment.device_id!r}, this is {device_id!r}")
    try:
        root.verify_delegate(Targets.type, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError, RecursionError) as error:
        raise SignatureError(f"the assignment is not signed by this fleet's director: {error}") from error
    if signed.version < version_floor:
        raise RollbackError(f"the assignment has version {signed.version}, already accepted {version_floor}")
    _check_issue_time(assignment, signed, root)
    if signed.is_expired(now):
        raise ExpiredError(f"the assignment ended at {signed.expires:%Y-%m-%d %H:%M:%SZ}")
    digests = {}
    for release in assignment.releases:
        entry = signed.targets.get(release.target_path)
        if entry is None:
            raise MalformedError(f"the assignment has no digest of {release.target_path}")
        digests[release.target_path] = parse_digest(entry.hashes.get("sha256", ""))
    return VerifiedAssignment(version=signed.version, assignment=assignment, digests=digests)


def _check_issue_time(assignment: Assignment, signed: Targets, root: Root) -> None:
    """Bound the time that a document claims: a device without a clock of its own lives by it."""
    issued_s = assignment.issued_at_ms / 1000
    if issued_s >= signed.expires.timestamp():
        raise MalformedError(f"the assignment was issued after its own end, {signed.expires:%Y-%m-%d %H:%M:%SZ}")
    if issued_s >= root.expires.timestamp():
        raise ExpiredError(
            f"the assignment was issued after the director's root had ended, at {root.expires:%Y-%m-%d %H:%M:%SZ}: "
            "publish a new root, or set the controller's clock"
        )


def parse_metadata(raw: bytes, what: str) -> Metadata[Any]:
    """Return `raw` as TUF metadata whose signatures are not yet checked; raises MalformedError."""
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(raw)
    except (DeserializationError, RecursionError) as error:
        raise MalformedError(f"not a valid {what}: {error}") from error
    if metadata.signed.version > limits.MAX_INTEGER:
        raise MalformedError(f"not a valid {what}: expected a version of at most {limits.MAX_INTEGER}")
    return metadata


def _check_deployment(deployment_id: str) -> None:
    if not 1 <= len(deployment_id) <= 64:
        raise MalformedError("assignment: expected a deployment_id of 1 to 64 characters")


def extension(targets: Targets, kind: type[S]) -> S:
    """Return the `x-wasmfleet` field of `targets` as a `kind`; raises MalformedError."""
    try:
        return msgspec.convert(targets.unrecognized_fields.get(EXTENSION), kind)
    except msgspec.ValidationError as error:
        raise MalformedError(f"{EXTENSION}: {error}") from error
