"""The fleet's certificate authority, tried by real TLS handshakes."""

import hashlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.errors import WorkspaceError
from controller.trust.authority import Authority, KeyPair, create_authority, hash_invite_token, new_invite_token
from protocol.errors import LimitExceededError, MalformedError, ProtocolError, SignatureError

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    """One authority for all tests here."""
    return create_authority(NOW)


def request_for(key, name: str = "whoever") -> str:
    """Return a certificate request in PEM."""
    digest = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    request = request.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return request.sign(key, digest).public_bytes(Encoding.PEM).decode()


def device_pair(authority: Authority, name: str, now: datetime = NOW) -> KeyPair:
    """Return the files of an enrolled device."""
    key = Ed25519PrivateKey.generate()
    pem = authority.issue_device_certificate(request_for(key), name, now).pem
    return KeyPair(pem.encode(), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def load(context: ssl.SSLContext, pair: KeyPair, folder: Path) -> ssl.SSLContext:
    folder.mkdir()
    (folder / "pem").write_bytes(pair.certificate_pem)
    (folder / "key").write_bytes(pair.key_pem)
    context.load_cert_chain(folder / "pem", folder / "key")
    return context


def handshake(ca: Authority, listener: KeyPair, device: KeyPair, host: str, tmp_path: Path) -> str:
    """Shake hands in memory, both sides strict, and return the device's name as the listener sees it."""
    ca_pem = ca.pair.certificate_pem.decode()
    server = load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), listener, tmp_path / "listener")
    server.verify_mode = ssl.CERT_REQUIRED
    client = load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), device, tmp_path / "device")
    for context in (server, client):
        context.load_verify_locations(cadata=ca_pem)
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 asks by default
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # the last flight of 1.3 needs no answer: 1.2 tells both
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    accepted = server.wrap_bio(to_server, to_client, server_side=True)
    opened = client.wrap_bio(to_client, to_server, server_hostname=host)
    done: set[ssl.SSLObject] = set()
    for _ in range(10):
        for side in (opened, accepted):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
    assert {opened, accepted} == done
    return dict(pair[0] for pair in accepted.getpeercert()["subject"])["commonName"]


@pytest.mark.parametrize("host", ["fleet.example", "localhost", "127.0.0.1"])
def test_a_device_and_the_listener_know_each_other(authority, tmp_path, host):
    """Mutual TLS works under the fleet's host name and on the machine itself."""
    listener = authority.issue_listener_certificate("fleet.example", NOW)
    assert "press-7" == handshake(authority, listener, device_pair(authority, "press-7"), host, tmp_path)


def test_a_listener_may_have_an_address_for_a_name(authority, tmp_path):
    """An IPv6 address is a name of its own kind in a certificate."""
    listener = authority.issue_listener_certificate("fd00::7", NOW)
    assert "press-7" == handshake(authority, listener, device_pair(authority, "press-7"), "fd00::7", tmp_path)


def test_another_host_is_not_the_listener(authority, tmp_path):
    """A device does not talk to a name that the certificate lacks."""
    listener = authority.issue_listener_certificate("fleet.example", NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(authority, listener, device_pair(authority, "press-7"), "evil.example", tmp_path)


def test_another_fleet_is_not_ours(authority, tmp_path):
    """Neither a listener nor a device of another authority is believed."""
    other = create_authority(NOW)
    ours, theirs = (ca.issue_listener_certificate("localhost", NOW) for ca in (authority, other))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority, theirs, device_pair(authority, "press-7"), "localhost", tmp_path)
    (tmp_path / "again").mkdir()
    with pytest.raises(ssl.SSLError):
        handshake(authority, ours, device_pair(other, "press-7"), "localhost", tmp_path / "again")


def test_a_device_certificate_is_no_listener(authority, tmp_path):
    """A device cannot pose as the fleet, nor the listener as a device."""
    device = device_pair(authority, "localhost")
    listener = authority.issue_listener_certificate("localhost", NOW)
    for number, (as_listener, as_device) in enumerate([(device, device), (listener, listener)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(ssl.SSLError):
            handshake(authority, as_listener, as_device, "localhost", folder)


def test_the_certificate_says_what_the_service_decided(authority):
    """Name, use and term are the service's; the request's name and its wish to be an authority are ignored."""
    key = Ed25519PrivateKey.generate()
    issued = authority.issue_device_certificate(request_for(key, "admin"), "press-7", NOW)
    certificate = x509.load_pem_x509_certificate(issued.pem.encode())
    assert key.public_key() == issued.public_key == certificate.public_key()
    assert "CN=press-7" == certificate.subject.rfc4514_string()
    extensions = certificate.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert [ExtendedKeyUsageOID.CLIENT_AUTH] == list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert (NOW + timedelta(days=365)).replace(microsecond=0) == certificate.not_valid_after_utc
    assert certificate.not_valid_before_utc < NOW


def test_a_request_proves_that_its_sender_has_the_key(authority):
    """A request with somebody else's public key, or a changed one, is refused."""
    pem = request_for(Ed25519PrivateKey.generate())
    der = x509.load_pem_x509_csr(pem.encode()).public_bytes(Encoding.DER)
    forged = ssl.DER_cert_to_PEM_cert(der[:-1] + bytes([der[-1] ^ 1])).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    with pytest.raises(SignatureError, match="not signed by the key that it names"):
        authority.issue_device_certificate(forged, "press-7", NOW)


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(public_exponent=65_537, key_size=2_048)],
    ids=["P-256", "RSA"],
)
def test_devices_have_ed25519_keys(authority, key):
    """Reports are signed with Ed25519: another key would be of no use."""
    with pytest.raises(MalformedError, match="over an Ed25519 key"):
        authority.issue_device_certificate(request_for(key), "press-7", NOW)


@pytest.mark.parametrize(
    "pem",
    ["", "hello", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "\ud800", "\0" * 9],
    ids=["empty", "text", "hollow", "surrogate", "zeros"],
)
def test_what_is_no_request_is_malformed(authority, pem):
    """The enrolment listener takes input of anybody who reaches it."""
    with pytest.raises(ProtocolError):
        authority.issue_device_certificate(pem, "press-7", NOW)


def test_an_endless_request_is_not_parsed(authority):
    """The size is looked at first."""
    with pytest.raises(LimitExceededError, match="at most 16,384 bytes"):
        authority.issue_device_certificate("-" * 20_000, "press-7", NOW)


def test_an_authority_is_read_back(authority):
    """Its files give the same authority; files that do not belong together give an error."""
    again = Authority.load(*authority.pair)
    der = ssl.PEM_cert_to_DER_cert(authority.pair.certificate_pem.decode())
    assert hashlib.sha256(der).hexdigest() == again.fingerprint == authority.fingerprint
    with pytest.raises(WorkspaceError, match="do not belong together"):
        Authority.load(authority.pair.certificate_pem, create_authority(NOW).pair.key_pem)
    with pytest.raises(WorkspaceError, match="cannot be read"):
        Authority.load(b"", b"")


def test_only_the_hash_of_a_token_is_kept():
    """A token has 256 random bits and is known again by its hash."""
    (token, kept), (other, _) = new_invite_token(), new_invite_token()
    assert token != other
    assert 43 == len(token)
    assert hash_invite_token(token) == kept != hash_invite_token(other)
    assert token not in kept
    assert hash_invite_token("\ud800")
