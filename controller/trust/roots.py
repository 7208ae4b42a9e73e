"""The first root of each domain: which keys speak for which role.

Two of three root keys are needed to change anything here, so that one may be lost, and one stolen.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from controller.errors import WorkspaceError
from protocol.assignment import parse_metadata

ROOT_KEYS = 3
ROOT_THRESHOLD = 2
ROOT_VALID = timedelta(days=365)


def sign_image_root(
    root_signers: Sequence[CryptoSigner],
    *,
    targets: CryptoSigner,
    snapshot: CryptoSigner,
    timestamp: CryptoSigner,
    now: datetime,
) -> bytes:
    """Return the first root of the image repository: the operator signs targets, the server all that follows."""
    return _sign_root(root_signers, {Targets.type: targets, Snapshot.type: snapshot, Timestamp.type: timestamp}, now)


def sign_director_root(root_signers: Sequence[CryptoSigner], *, director: CryptoSigner, now: datetime) -> bytes:
    """Return the first root of the director: one key signs every device's document.

    A TUF root must name keys for snapshot and timestamp; this domain has no such files, and they get the same key.
    """
    return _sign_root(root_signers, dict.fromkeys((Targets.type, Snapshot.type, Timestamp.type), director), now)


def check_signers(root_raw: bytes, signers: Mapping[str, tuple[str, CryptoSigner]]) -> None:
    """Make sure that a root lets each key speak for its role: `signers` gives for a role the key's file and the key.

    Raises:
        WorkspaceError: a key is not one that the root names; no device would believe what it signs.
    """
    root = parse_metadata(root_raw, "root").signed
    if not isinstance(root, Root):
        raise TypeError(f"expected a root, got {root.type}")
    for role, (file, signer) in signers.items():
        if signer.public_key.keyid not in root.roles[role].keyids:
            raise WorkspaceError(
                f"keys/{file} is not the key that version {root.version} of the root names",
                hint="copy this fleet's own key back from a backup: devices believe no other",
            )


def _sign_root(root_signers: Sequence[CryptoSigner], roles: dict[str, CryptoSigner], now: datetime) -> bytes:
    root = Root(version=1, expires=now.replace(microsecond=0) + ROOT_VALID, consistent_snapshot=True)
    for signer in root_signers:
        root.add_key(signer.public_key, Root.type)
    root.roles[Root.type].threshold = ROOT_THRESHOLD
    for role, signer in roles.items():
        root.add_key(signer.public_key, role)
    metadata = Metadata(root)
    for signer in root_signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(JSONSerializer(compact=True))
