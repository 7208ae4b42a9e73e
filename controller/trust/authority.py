"""The fleet's own certificate authority: who is a device of this fleet, and which listener is the fleet's.

ECDSA P-256, because every TLS stack speaks it. It signs what the service decides; it copies no name from a request.
"""

import hashlib
import ipaddress
import secrets
from datetime import datetime, timedelta
from typing import NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.errors import WorkspaceError
from protocol import limits
from protocol.codec import sha256
from protocol.errors import LimitExceededError, MalformedError, SignatureError
from protocol.identifiers import DeviceId, Digest

AUTHORITY_VALID = timedelta(days=3650)
LISTENER_VALID = timedelta(days=365)
DEVICE_VALID = timedelta(days=365)
_CLOCK_SKEW = timedelta(hours=1)
"""Certificates begin this much in the past, for devices whose clock is late."""

PublicKey = ec.EllipticCurvePublicKey | Ed25519PublicKey


class KeyPair(NamedTuple):
    """A certificate and its private key, both in PEM."""

    certificate_pem: bytes
    key_pem: bytes


class DeviceCertificate(NamedTuple):
    """A device's certificate in PEM, and the key that it vouches for."""

    pem: str
    public_key: Ed25519PublicKey


class Authority:
    """The certificate and the private key of the fleet's authority."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def load(cls, certificate_pem: bytes, key_pem: bytes) -> Self:
        """Return the authority of these files; raises WorkspaceError."""
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            key = load_pem_private_key(key_pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise WorkspaceError(
                f"the fleet's CA cannot be read: {error}", hint="copy it back from a backup"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise WorkspaceError("ca.pem and ca.key do not belong together", hint="copy both back from one backup")
        return cls(certificate, key)

    @property
    def pair(self) -> KeyPair:
        """The files of the authority."""
        return _pair(self._certificate, self._key)

    @property
    def fingerprint(self) -> Digest:
        """The SHA-256 of the certificate in DER, as an invite carries it."""
        return sha256(self._certificate.public_bytes(Encoding.DER))

    def issue_listener_certificate(self, host: str, now: datetime) -> KeyPair:
        """Return a new key and certificate for the device-facing listener at `host`, and on this machine."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = {"localhost": x509.DNSName("localhost"), "127.0.0.1": _alternative_name("127.0.0.1")}
        names[host] = _alternative_name(host)
        builder = self._leaf(host, key.public_key(), now, LISTENER_VALID)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(list(names.values())), critical=False)
        return _pair(builder.sign(self._key, hashes.SHA256()), key)

    def end_of_listener(self, pair: KeyPair) -> datetime | None:
        """Return when a listener's certificate ends; None when it is unreadable, not ours, or not of its key."""
        try:
            certificate = x509.load_pem_x509_certificate(pair.certificate_pem)
            certificate.verify_directly_issued_by(self._certificate)
            key = load_pem_private_key(pair.key_pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
            return None
        return certificate.not_valid_after_utc if key.public_key() == certificate.public_key() else None

    def issue_device_certificate(self, csr_pem: str, device_id: DeviceId, now: datetime) -> DeviceCertificate:
        """Return a certificate that says: the key of this request is the key of `device_id`.

        The request's subject and extensions are ignored: the name is the controller's to give.

        Raises:
            LimitExceededError, MalformedError: not a PKCS #10 request over an Ed25519 key.
            SignatureError: the sender does not hold the private key.
        """
        if len(csr_pem) > limits.MAX_ENROLL_BYTES:
            raise LimitExceededError(
                f"expected a certificate request of at most {limits.MAX_ENROLL_BYTES:,} bytes, got {len(csr_pem):,}"
            )
        try:
            request = x509.load_pem_x509_csr(csr_pem.encode())
            key = request.public_key()
            is_signed = request.is_signature_valid
        except (ValueError, UnsupportedAlgorithm) as error:
            raise MalformedError("expected a certificate request (PKCS #10) in PEM over an Ed25519 key") from error
        if not isinstance(key, Ed25519PublicKey):
            raise MalformedError("expected a certificate request over an Ed25519 key, got another kind of key")
        if not is_signed:
            raise SignatureError("the certificate request is not signed by the key that it names")
        builder = self._leaf(device_id, key, now, DEVICE_VALID)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return DeviceCertificate(certificate.public_bytes(Encoding.PEM).decode(), key)

    def _leaf(self, name: str, key: PublicKey, now: datetime, valid: timedelta) -> x509.CertificateBuilder:
        authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            _builder(_name(name), self._certificate.subject, key, now, valid)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(authority_key, critical=False)
        )


def create_authority(now: datetime) -> Authority:
    """Return a new authority, good for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name("wasmfleet CA")
    certificate = (
        _builder(subject, subject, key.public_key(), now, AUTHORITY_VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def new_invite_token() -> tuple[str, str]:
    """Return a random token of 256 bits for an invite, and the hash by which the service knows it again."""
    token = secrets.token_urlsafe(32)
    return token, hash_invite_token(token)


def hash_invite_token(token: str) -> str:
    """Return what is stored of a token. A random one of 256 bits needs neither salt nor a slow hash."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, now: datetime, valid: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + valid)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
