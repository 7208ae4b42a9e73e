"""Who this device is: its key, its certificate, the fleet's CA and the first root of each trust domain.

The folder `identity` appears whole or not at all. The key never leaves it.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from agent import durable
from agent.errors import IdentityError
from protocol.errors import ProtocolError
from protocol.identifiers import DeviceId, parse_device_id
from protocol.topics import Topics

KEY: Final = "device.key"
CERTIFICATE: Final = "device.pem"
AUTHORITY: Final = "ca.pem"
ENROLLMENT: Final = "enrollment.json"
IMAGE_ROOT: Final = "image_root.json"
DIRECTOR_ROOT: Final = "director_root.json"
RESERVE_BYTES: Final = 256 * 1024
"""More than any identity takes: the answer to an enrolment is bounded."""
_RESERVE: Final = "reserve"
_Save = Callable[[dict[str, bytes]], None]


class Enrollment(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller said when the device joined."""

    device_id: str
    mqtt_url: str
    topic_prefix: str


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of the identity folder that the daemon uses."""

    folder: Path
    device_id: DeviceId
    key: Ed25519PrivateKey
    mqtt_url: str
    topics: Topics
    image_root: bytes
    director_root: bytes

    def derive_key(self, purpose: str) -> bytes:
        """Return a secret for one purpose on this device; it says nothing about the device's key."""
        derivation = HKDF(hashes.SHA256(), length=32, salt=None, info=purpose.encode())
        return derivation.derive(self.key.private_bytes_raw())


def identity_folder(state_dir: Path) -> Path:
    """Return where the identity lies."""
    return state_dir / "identity"


def load_identity(state_dir: Path) -> Identity:
    """Return this device's identity; raises IdentityError when it is not enrolled or something is damaged."""
    folder = identity_folder(state_dir)
    if not folder.is_dir():
        raise IdentityError(
            f"this device is not enrolled ({folder} does not exist): run `fleetctl devices invite` on the operator's "
            f"machine and paste the line that it prints, `fleet-agent enroll <invite>`, here"
        )
    try:
        enrollment = msgspec.json.decode((folder / ENROLLMENT).read_bytes(), type=Enrollment)
        key = load_pem_private_key((folder / KEY).read_bytes(), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError(f"{folder / KEY}: expected an Ed25519 key")
        return Identity(
            folder=folder,
            device_id=parse_device_id(enrollment.device_id),
            key=key,
            mqtt_url=enrollment.mqtt_url,
            topics=Topics(enrollment.topic_prefix),
            image_root=(folder / IMAGE_ROOT).read_bytes(),
            director_root=(folder / DIRECTOR_ROOT).read_bytes(),
        )
    except (OSError, ValueError, TypeError, RecursionError, UnsupportedAlgorithm, ProtocolError) as error:
        raise IdentityError(f"the identity in {folder} is damaged ({error}): move it away and enrol again") from error


def save_identity(state_dir: Path, files: dict[str, bytes]) -> None:
    """Write the identity folder, all of it or nothing; raises IdentityError when there is one already, or OSError."""
    with reserve_identity(state_dir) as save:
        save(files)


@contextmanager
def reserve_identity(state_dir: Path) -> Iterator[_Save]:
    """Make sure that an identity can be kept, before somebody is asked for one; yields what keeps it.

    Raises:
        IdentityError: there is one already; it was not changed.
        OSError: the folder cannot be written, or has no room.
    """
    folder = identity_folder(state_dir)
    draft = state_dir / f".identity-{os.getpid()}"

    def save(files: dict[str, bytes]) -> None:
        (draft / _RESERVE).unlink()
        for name, content in files.items():
            durable.create(draft / name, content)
        if folder.exists():
            raise IdentityError(f"this device is enrolled already; {folder} was not changed")
        draft.rename(folder)
        durable.sync_folder(state_dir)

    if folder.exists():
        raise IdentityError(f"this device is enrolled already; {folder} was not changed")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(mode=0o700, parents=True)
        durable.create(draft / _RESERVE, bytes(RESERVE_BYTES))
        yield save
    finally:
        shutil.rmtree(draft, ignore_errors=True)
