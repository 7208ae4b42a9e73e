"""How a device joins: an invite that a person pastes, a request over HTTPS, and what comes back.

The invite carries the fingerprint of the fleet's CA, so that the first connection already knows whom to trust.
The device's key is born on the device; the request proves possession by a PKCS #10 signature.
"""

import base64
import binascii

import msgspec

from protocol import limits
from protocol.codec import decode, encode
from protocol.errors import MalformedError
from protocol.identifiers import Digest, parse_digest

_MAGIC = "wf1."


class Invite(msgspec.Struct, frozen=True, kw_only=True):
    """What `fleetctl devices invite` prints and `fleet-agent enroll` takes."""

    url: str
    ca_sha256: Digest
    """The SHA-256 of the CA certificate in DER."""
    token: str

    def __str__(self) -> str:
        return _MAGIC + base64.urlsafe_b64encode(encode(self)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "Invite":
        """Return the invite that `text` spells; raises MalformedError."""
        text = text.strip()
        if not text.startswith(_MAGIC) or len(text) > 2_000:
            raise MalformedError(f"not an invite: expected the text after `enroll`, which starts with {_MAGIC}")
        body = text.removeprefix(_MAGIC)
        try:
            raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        except (binascii.Error, ValueError) as error:
            raise MalformedError("the invite is damaged: copy the whole line again") from error
        invite = decode(raw, cls, limit_bytes=2_000, what="invite")
        parse_digest(invite.ca_sha256)
        if not invite.url.startswith("https://"):
            raise MalformedError(f"expected an invite to an https address, got {invite.url[:80]!r}")
        return invite


class EnrollRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/enroll on the device-facing listener."""

    token: str
    csr_pem: str
    """Over an Ed25519 key; the subject is ignored, the name is the controller's to give."""

    @classmethod
    def from_bytes(cls, raw: bytes) -> "EnrollRequest":
        """Parse a request; raises ProtocolError."""
        return decode(raw, cls, limit_bytes=limits.MAX_ENROLL_BYTES, what="enrolment request")


class EnrollResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a device needs to take part."""

    device_id: str
    certificate_pem: str
    ca_pem: str
    mqtt_url: str
    topic_prefix: str
    image_root: str
    """The first root of each TUF domain, exactly as signed."""
    director_root: str

    @classmethod
    def from_bytes(cls, raw: bytes) -> "EnrollResponse":
        """Parse a response; raises ProtocolError."""
        return decode(raw, cls, limit_bytes=limits.MAX_DIRECTOR_BYTES, what="enrolment response")
