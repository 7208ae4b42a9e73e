"""The link over mutual TLS, on a mosquitto that lets in only what the fleet's own CA vouches for."""

import getpass
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from agent.errors import LinkError
from agent.identity import AUTHORITY, CERTIFICATE, KEY
from agent.inbox import Inbox
from agent.mqtt import Endpoint, Link, LinkDown, LinkEvent, LinkUp, Message
from controller.broker import find_mosquitto
from controller.trust.authority import Authority, create_authority
from protocol.identifiers import parse_device_id

NOW = datetime.now(UTC)
DEVICE = parse_device_id("press-3")
DEADLINE_S = 20.0


class Broker(NamedTuple):
    """A broker with mutual TLS, and the authority that it trusts."""

    authority: Authority
    port: int


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A mosquitto that takes the name of a client from its certificate."""
    folder = tmp_path_factory.mktemp("tls")
    authority = create_authority(NOW)
    pair = authority.issue_listener_certificate("127.0.0.1", NOW)
    for name, data in (
        ("ca.pem", authority.pair.certificate_pem),
        ("l.pem", pair.certificate_pem),
        ("l.key", pair.key_pem),
    ):
        (folder / name).write_bytes(data)
    (folder / "acl").write_text(f"pattern readwrite fleet/v1/dev/%u/#\nuser {DEVICE}\ntopic readwrite plant/open\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "conf").write_text(
        f"listener {port} 127.0.0.1\ncafile {folder}/ca.pem\ncertfile {folder}/l.pem\nkeyfile {folder}/l.key\n"
        f"require_certificate true\nuse_identity_as_username true\nacl_file {folder}/acl\n"
        f"user {getpass.getuser()}\n"
    )
    program = find_mosquitto()
    assert program is not None
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(folder / "conf")], stdout=log, stderr=log)
    end = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.02)
    yield Broker(authority, port)
    process.terminate()
    process.wait()


def identity(folder: Path, authority: Authority, trusted: Authority) -> Path:
    """Write the identity of a device that `authority` vouches for and that trusts `trusted`."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ignored")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, None)
    certificate = authority.issue_device_certificate(csr.public_bytes(Encoding.PEM).decode(), DEVICE, NOW)
    (folder / KEY).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / CERTIFICATE).write_text(certificate.pem)
    (folder / AUTHORITY).write_bytes(trusted.pair.certificate_pem)
    return folder


def first_events(broker: Broker, folder: Path, count: int) -> list[LinkEvent]:
    """Return the first events of a link that uses the identity in `folder`."""
    inbox: Inbox[LinkEvent] = Inbox(16)
    endpoint = Endpoint(url=f"mqtts://127.0.0.1:{broker.port}", client_id=DEVICE, identity_folder=folder)
    topic = f"fleet/v1/dev/{DEVICE}/down/ack"
    link = Link(endpoint, lambda: (f"fleet/v1/dev/{DEVICE}/up/liveness", b"death"), inbox.put, random.Random(1))
    link.subscribe({topic: 100})
    link.start()
    events = []
    for _ in range(count):
        event = inbox.take(DEADLINE_S)
        assert event is not None
        events.append(event)
        if isinstance(event, LinkUp):
            link.resubscribe()
            assert link.publish(topic, b"hello", retain=False)
    inbox.close()
    link.close()
    return events


@pytest.mark.needs("mosquitto")
def test_device_and_broker_prove_themselves_to_each_other(broker: Broker, tmp_path: Path) -> None:
    """With the fleet's certificates the link comes up, and the broker knows the device by its certificate."""
    events = first_events(broker, identity(tmp_path, broker.authority, broker.authority), 2)
    assert [LinkUp(), Message(topic=f"fleet/v1/dev/{DEVICE}/down/ack", payload=b"hello")] == events


@pytest.mark.needs("mosquitto")
def test_topics_of_a_binding_need_the_leave_of_the_broker(
    broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A topic that the access control names is heard; of another nothing comes, and the log says what was refused."""
    endpoint = Endpoint(
        url=f"mqtts://127.0.0.1:{broker.port}",
        client_id=DEVICE,
        identity_folder=identity(tmp_path, broker.authority, broker.authority),
    )
    inbox: Inbox[LinkEvent] = Inbox(16)
    link = Link(endpoint, lambda: (f"fleet/v1/dev/{DEVICE}/up/liveness", b"death"), inbox.put, random.Random(1))
    link.start()
    assert LinkUp() == inbox.take(DEADLINE_S)
    link.subscribe({"plant/closed": 100, "plant/open": 100})
    for topic in ("plant/closed", "plant/closed", "plant/open"):
        assert link.publish_in_turn(topic, b"reading")
    assert Message(topic="plant/open", payload=b"reading") == inbox.take(DEADLINE_S)
    link.close((f"fleet/v1/dev/{DEVICE}/up/liveness", b"farewell"))
    told = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert ["the broker refused a message: Not authorized. See what it allows to this device"] == told


@pytest.mark.needs("mosquitto")
def test_broker_of_another_fleet_is_not_believed(broker: Broker, tmp_path: Path) -> None:
    """A broker whose certificate the fleet's CA did not sign never hears from the device."""
    (event,) = first_events(broker, identity(tmp_path, broker.authority, create_authority(NOW)), 1)
    assert isinstance(event, LinkDown)
    assert "certificate verify failed" in event.reason


@pytest.mark.needs("mosquitto")
def test_device_of_another_fleet_is_not_let_in(broker: Broker, tmp_path: Path) -> None:
    """A device that another CA vouches for does not come up, and says so."""
    (event,) = first_events(broker, identity(tmp_path, create_authority(NOW), broker.authority), 1)
    assert isinstance(event, LinkDown)


def test_identity_without_certificates_cannot_use_tls(tmp_path: Path) -> None:
    """A damaged identity is a reason, not a crash of the network thread."""
    (event,) = first_events(Broker(create_authority(NOW), 1), tmp_path, 1)
    assert isinstance(event, LinkDown)
    assert "No such file" in event.reason


@pytest.mark.parametrize("url", ["", "mqtt://", "http://x", "mqtt://h:99999", "mqtt://h:x", "mqtt://[::1", "localhost"])
def test_address_that_is_none_is_refused(url: str, tmp_path: Path) -> None:
    """A broker's address that makes no sense is named at the start."""
    endpoint = Endpoint(url=url, client_id=DEVICE, identity_folder=tmp_path)
    with pytest.raises(LinkError, match="expected"):
        Link(endpoint, lambda: ("t", b""), lambda _: None, random.Random(1))
