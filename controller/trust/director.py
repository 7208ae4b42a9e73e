"""The director: signs for each device the one document that it obeys."""

from datetime import datetime, timedelta
from functools import lru_cache

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.api.serialization.json import JSONSerializer

from controller.errors import NotFoundError, RefusedError
from protocol import limits
from protocol.assignment import Assignment, build_targets, parse_metadata, target_path

ASSIGNMENT_VALID = timedelta(days=7)


def sign_assignment(
    assignment: Assignment, targets_raw: bytes, *, version: int, now: datetime, signer: CryptoSigner
) -> bytes:
    """Return the signed document that binds `assignment` to the manifests of the image repository's `targets_raw`.

    Raises:
        NotFoundError: a release is not in `targets_raw`.
        RefusedError: the document is larger than a device takes.
    """
    entries = _entries(targets_raw)
    for release in assignment.releases:
        if release.target_path not in entries:
            raise NotFoundError(
                f"{release.model} {release.version} is not in the signed targets", hint="push the release first"
            )
    expires = now.replace(microsecond=0) + ASSIGNMENT_VALID
    metadata = Metadata(build_targets(assignment, entries, version=version, expires=expires))
    metadata.sign(signer)
    raw = metadata.to_bytes(JSONSerializer(compact=True))
    if len(raw) > limits.MAX_DIRECTOR_BYTES:
        raise RefusedError(
            f"the document of device {assignment.device_id} would have {len(raw):,} bytes, "
            f"expected at most {limits.MAX_DIRECTOR_BYTES:,}",
            hint="undeploy models that the device no longer needs",
        )
    return raw


def is_released(targets_raw: bytes, model: str, version: str) -> bool:
    """Return whether the image repository's `targets_raw` name a release."""
    return target_path(model, version) in _entries(targets_raw)


@lru_cache(maxsize=2)
def _entries(targets_raw: bytes) -> dict[str, TargetFile]:
    # One list of releases serves the documents of a whole fleet: parsing it is most of the work.
    signed = parse_metadata(targets_raw, "targets").signed
    if not isinstance(signed, Targets):
        raise TypeError(f"expected targets metadata, got {signed.type}")
    return signed.targets
