"""The signing keys of every role: Ed25519, one file each, readable by its owner alone."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from agent import durable
from controller.errors import WorkspaceError
from controller.reading import read_file, why_unread
from protocol.errors import LimitExceededError

_MAX_KEY_BYTES = 65_536


def generate_signer() -> CryptoSigner:
    """Return a signer with a new key."""
    return CryptoSigner.generate_ed25519()


def save_signer(path: Path, signer: CryptoSigner) -> None:
    """Write the private key as PKCS #8 in PEM, mode 0600, durably; raises FileExistsError."""
    durable.create(path, signer.private_bytes)


def load_signer(path: Path) -> CryptoSigner:
    """Return the signer whose private key is at `path`; raises WorkspaceError."""
    try:
        key = load_pem_private_key(read_file(path, _MAX_KEY_BYTES), None)
    except (OSError, LimitExceededError) as error:
        raise WorkspaceError(
            why_unread(f"the key {path}", error),
            hint="copy it back from your backup; a lost key cannot be made anew",
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise WorkspaceError(
            f"expected an unencrypted private key in PEM at {path}: {error}", hint="copy it back from your backup"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise WorkspaceError(
            f"expected an Ed25519 key at {path}, got another kind", hint="copy it back from your backup"
        )
    return CryptoSigner(key)
