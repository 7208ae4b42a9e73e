"""TLS and WebSocket, on mosquitto, with certificates of the fleet's own authority."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from controller.broker import find_mosquitto
from controller.trust.authority import Authority, create_authority
from tests.contracts.conftest import wait_until
from tests.ports import free_ports

pytestmark = pytest.mark.needs("mosquitto")
# When the handshake of TLS or WebSocket fails, paho leaves the socket to the garbage collector.
leaves_a_socket = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = """
allow_anonymous true
user root
per_listener_settings false
listener {mqtts} 127.0.0.1
cafile {folder}/ca.pem
certfile {folder}/listener.pem
keyfile {folder}/listener.key
require_certificate true
listener {ws} 127.0.0.1
protocol websockets
"""


class Secure(NamedTuple):
    """A broker with TLS and WebSocket listeners."""

    mqtts: int
    ws: int
    authority: Authority
    folder: Path


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """Mosquitto as an operator would run it in the field."""
    folder, authority = tmp_path_factory.mktemp("secure"), create_authority(datetime.now(UTC))
    listener = authority.issue_listener_certificate("127.0.0.1", datetime.now(UTC))
    (folder / "ca.pem").write_bytes(authority.pair.certificate_pem)
    (folder / "listener.pem").write_bytes(listener.certificate_pem)
    (folder / "listener.key").write_bytes(listener.key_pem)
    mqtts, ws = free_ports(2)
    (folder / "mosquitto.conf").write_text(CONFIG.format(mqtts=mqtts, ws=ws, folder=folder))
    program = find_mosquitto()
    assert program
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", folder / "mosquitto.conf"], stdout=log, stderr=log)
    yield Secure(mqtts, ws, authority, folder)
    process.terminate()
    process.wait(20)


def controller_tls(secure: Secure, authority: Authority, folder: Path) -> ssl.SSLContext:
    """Return the context of a controller that trusts `authority` and has a certificate of the fleet."""
    key = Ed25519PrivateKey.generate()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None)
    pem = request.public_bytes(Encoding.PEM).decode()
    issued = secure.authority.issue_device_certificate(pem, "controller", datetime.now(UTC))
    (folder / "pem").write_text(issued.pem)
    (folder / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.create_default_context(cadata=authority.pair.certificate_pem.decode())
    context.load_cert_chain(folder / "pem", folder / "key")
    return context


def test_mutual_tls(secure, make_link, prefix, tmp_path):
    """Over mqtts:// the link and the broker know each other, and large messages pass."""
    tls = controller_tls(secure, secure.authority, tmp_path)
    link, recorder = make_link(f"mqtts://127.0.0.1:{secure.mqtts}", tls=tls)
    link.subscribe(f"{prefix}/a")
    link.start()
    recorder.wait_for("up")
    for size in (1, 200_000):
        link.publish(f"{prefix}/a", b"x" * size)
        assert [size] == [len(m.payload) for m in recorder.receive()]


def test_websocket(secure, make_link, prefix):
    """Over ws:// everything is as over TCP."""
    link, recorder = make_link(f"ws://127.0.0.1:{secure.ws}/mqtt")
    link.subscribe(f"{prefix}/a")
    link.start()
    recorder.wait_for("up")
    for size in (1, 5_000):  # mosquitto 2.0 reads 40 kB/s from a WebSocket
        link.publish(f"{prefix}/a", b"x" * size)
        assert [size] == [len(m.payload) for m in recorder.receive()]


@leaves_a_socket
def test_a_broker_of_another_authority_is_not_spoken_to(secure, make_link, tmp_path, caplog):
    """The link goes on trying, and the log says why it cannot."""
    tls = controller_tls(secure, create_authority(datetime.now(UTC)), tmp_path)
    link, _ = make_link(f"mqtts://127.0.0.1:{secure.mqtts}", tls=tls)
    link.start()
    wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text, "the reason in the log")
    assert not link.is_connected


@leaves_a_socket
@pytest.mark.parametrize("scheme", ["mqtt", "ws", "mqtts"])
def test_a_server_that_speaks_something_else_is_survived(make_link, version, scheme, caplog):
    """A port that answers with nonsense gives a log line and another try, not a dead thread."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk_nonsense() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1_000)
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" * 20)

        thread = threading.Thread(target=talk_nonsense)
        thread.start()
        try:
            link, _ = make_link(f"{scheme}://127.0.0.1:{server.getsockname()[1]}")
            link.start()
            wait_until(lambda: "cannot reach the broker" in caplog.text, "the failure in the log")
            assert not link.is_connected
            link.close()
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert "unexpected error" not in caplog.text
