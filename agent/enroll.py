"""Joining a fleet: an invite in, an identity on the disk out.

The invite names the fleet's CA by its fingerprint. The CA's certificate is fetched without trust, compared with the
fingerprint, and only then is a verified connection made, on which the token travels. The key is made here.
"""

import http.client
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from agent.errors import EnrollmentError, IdentityError
from agent.identity import (
    AUTHORITY,
    CERTIFICATE,
    DIRECTOR_ROOT,
    ENROLLMENT,
    IMAGE_ROOT,
    KEY,
    Enrollment,
    identity_folder,
    load_identity,
    reserve_identity,
)
from protocol import limits
from protocol.codec import encode, sha256
from protocol.enrollment import EnrollRequest, EnrollResponse, Invite
from protocol.errors import ProtocolError
from protocol.identifiers import Digest, parse_device_id
from protocol.repository import walk_roots
from protocol.topics import Topics

TIMEOUT_S: Final = 30.0
CA_PATH: Final = "/v1/ca"
ENROLL_PATH: Final = "/v1/enroll"


class _Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of an RFC 9457 problem that a person needs."""

    title: str = ""
    detail: str = ""
    hint: str = ""


def enroll(invite_text: str, state_dir: Path) -> Enrollment:
    """Join the fleet that the invite names, and return what this device is there.

    The invite works once, so it is not spent before the answer can be kept.

    Raises:
        MalformedError: the invite is damaged.
        IdentityError: this device is enrolled already; nothing was changed.
        EnrollmentError: the identity cannot be kept, or the controller cannot be reached, is not the one of the
            invite, or refused.
    """
    invite = Invite.parse(invite_text)
    if identity_folder(state_dir).exists():
        known = load_identity(state_dir)
        raise IdentityError(
            f"this device is enrolled already, as {known.device_id} at {known.mqtt_url}; nothing was changed. "
            f"To enrol it anew, move {state_dir} away first"
        )
    response = None
    try:
        with reserve_identity(state_dir) as save:
            ca_pem = _fetch_authority(invite)
            key = Ed25519PrivateKey.generate()
            response = _post_request(invite, ca_pem, key)
            _check(response, key, invite.ca_sha256)
            save(_identity_files(key, response))
    except OSError as error:
        if response is None:
            raise EnrollmentError(
                f"cannot keep an identity in {state_dir}: {error}. Make it writable, with some room; the invite is "
                "not spent"
            ) from error
        raise EnrollmentError(
            f"the controller enrolled this device as {response.device_id}, but its identity could not be kept in "
            f"{state_dir}: {error}. The invite is spent: mend that, then ask for another one, "
            f"`fleetctl devices invite {response.device_id} --replace`"
        ) from error
    return _enrollment(response)


def _enrollment(response: EnrollResponse) -> Enrollment:
    return Enrollment(device_id=response.device_id, mqtt_url=response.mqtt_url, topic_prefix=response.topic_prefix)


def _identity_files(key: Ed25519PrivateKey, response: EnrollResponse) -> dict[str, bytes]:
    return {
        KEY: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        CERTIFICATE: response.certificate_pem.encode(),
        AUTHORITY: response.ca_pem.encode(),
        IMAGE_ROOT: response.image_root.encode(),
        DIRECTOR_ROOT: response.director_root.encode(),
        ENROLLMENT: encode(_enrollment(response)),
    }


def _fetch_authority(invite: Invite) -> str:
    """Return the CA certificate of the invite's fleet; whoever answers, only its fingerprint counts."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    status, body = _exchange(invite.url, context, "GET", CA_PATH, None)
    if status != http.client.OK:
        raise _refused(status, body)
    pem = body.decode("ascii", "replace")
    if _fingerprint(pem) != invite.ca_sha256:
        raise EnrollmentError(
            f"{invite.url} is not the controller that made this invite: expected a CA with fingerprint "
            f"{invite.ca_sha256[:16]}…, got another. Nothing secret was sent; ask for a new invite"
        )
    return pem


def _post_request(invite: Invite, ca_pem: str, key: Ed25519PrivateKey) -> EnrollResponse:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, None)
    request = EnrollRequest(token=invite.token, csr_pem=csr.public_bytes(Encoding.PEM).decode())
    context = ssl.create_default_context(cadata=ca_pem)
    status, body = _exchange(invite.url, context, "POST", ENROLL_PATH, encode(request))
    if status not in (http.client.OK, http.client.CREATED):
        raise _refused(status, body)
    try:
        return EnrollResponse.from_bytes(body)
    except ProtocolError as error:
        raise EnrollmentError(f"the controller's answer is not valid: {error}") from error


def _check(response: EnrollResponse, key: Ed25519PrivateKey, ca_sha256: Digest) -> None:
    """Raise EnrollmentError unless everything in `response` is usable: better now than at the first start."""
    try:
        parse_device_id(response.device_id)
        Topics(response.topic_prefix)
        walk_roots(response.image_root.encode(), {})
        walk_roots(response.director_root.encode(), {})
        certificate = x509.load_pem_x509_certificate(response.certificate_pem.encode())
    except (ProtocolError, ValueError) as error:
        raise EnrollmentError(f"the controller's answer is not valid: {error}") from error
    if certificate.public_key() != key.public_key():
        raise EnrollmentError("the controller's answer is not valid: the certificate is for another key")
    if _fingerprint(response.ca_pem) != ca_sha256:
        raise EnrollmentError("the controller's answer is not valid: it names another CA than the invite")


def _fingerprint(pem: str) -> Digest | None:
    try:
        return sha256(ssl.PEM_cert_to_DER_cert(pem.strip() + "\n"))
    except ValueError:
        return None


def _exchange(url: str, context: ssl.SSLContext, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
    parts = urlsplit(url)
    if not parts.hostname:
        raise EnrollmentError(f"the invite names no host: {url[:80]!r}")
    connection = http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=TIMEOUT_S, context=context)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        content = response.read(limits.MAX_DIRECTOR_BYTES + 1)
    except ssl.SSLCertVerificationError as error:
        raise EnrollmentError(
            f"{url} could not prove that it belongs to the invite's fleet: {error.verify_message}; "
            "see whether this device's clock is right"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise EnrollmentError(
            f"cannot reach the controller at {url}: {error}. Is `fleetctl serve` running, and can this device reach it?"
        ) from error
    finally:
        connection.close()
    return response.status, content


def _refused(status: int, body: bytes) -> EnrollmentError:
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem()
    text = problem.detail or problem.title or f"it answered with status {status}"
    return EnrollmentError(f"the controller refused: {text}" + (f"; {problem.hint}" if problem.hint else ""))
