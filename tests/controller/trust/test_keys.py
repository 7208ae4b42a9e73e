"""Keys on disk."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from controller.errors import WorkspaceError
from controller.trust.keys import generate_signer, load_signer, save_signer


def test_a_key_is_saved_for_its_owner_alone(tmp_path):
    """Mode 0600, the same key afterwards, and never over another one."""
    signer, path = generate_signer(), tmp_path / "key.pem"
    save_signer(path, signer)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert signer.public_key == load_signer(path).public_key
    with pytest.raises(FileExistsError):
        save_signer(path, generate_signer())
    assert signer.public_key == load_signer(path).public_key


def test_a_missing_key_says_what_to_do(tmp_path):
    """The message names the file, the hint the backup."""
    with pytest.raises(WorkspaceError, match=r"cannot read the key .*: No such file") as caught:
        load_signer(tmp_path / "key.pem")
    assert "backup" in caught.value.hint


def test_a_key_without_end_is_not_read_whole():
    """A device in the place of a key is refused at the bound."""
    with pytest.raises(WorkspaceError, match="expected at most 65,536 bytes in /dev/zero, got more"):
        load_signer(Path("/dev/zero"))


@pytest.mark.parametrize("kind", ["garbage", "empty", "another curve", "encrypted"])
def test_what_is_no_ed25519_key_is_refused(tmp_path, kind):
    """A damaged file, a key of another kind and an encrypted key are told apart from a good one."""
    key, path = Ed25519PrivateKey.generate(), tmp_path / "key.pem"
    pem = {
        "garbage": b"-----BEGIN PRIVATE KEY-----\nxxxx\n-----END PRIVATE KEY-----\n",
        "empty": b"",
        "another curve": ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        "encrypted": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
    }[kind]
    path.write_bytes(pem)
    with pytest.raises(WorkspaceError, match="expected an "):
        load_signer(path)
