"""Joining a fleet over a real TLS listener: whom the device believes, what it tells, what it leaves on its disk."""

import json
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from agent.cli import main
from agent.enroll import enroll
from agent.errors import EnrollmentError, IdentityError
from agent.identity import load_identity, save_identity
from controller.trust.authority import create_authority
from protocol.codec import encode
from protocol.enrollment import EnrollRequest, EnrollResponse, Invite
from protocol.errors import MalformedError
from protocol.identifiers import parse_device_id
from tests.agent.disk import mounted
from tests.agent.signing import DEVICE, Signing

NOW = datetime.now(UTC)
SIGNING = Signing()
TOKEN = "a-single-use-token"
LOCKED_KEY = SIGNING.device_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


class Listener:
    """The device-facing listener of a fleet, which can lie."""

    def __init__(self, folder: Path) -> None:
        self.authority = create_authority(NOW)
        self.ca_pem = self.authority.pair.certificate_pem.decode()
        self.requests: list[EnrollRequest] = []
        self.status = 200
        self.alter: Callable[[EnrollResponse], EnrollResponse | bytes] = lambda response: response
        pair = self.authority.issue_listener_certificate("127.0.0.1", NOW)
        (folder / "listener.pem").write_bytes(pair.certificate_pem)
        (folder / "listener.key").write_bytes(pair.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "listener.pem", folder / "listener.key")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def invite(self) -> Invite:
        url = f"https://127.0.0.1:{self._server.server_address[1]}"
        return Invite(url=url, ca_sha256=self.authority.fingerprint, token=TOKEN)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: EnrollRequest) -> EnrollResponse | bytes:
        certificate = self.authority.issue_device_certificate(request.csr_pem, DEVICE, NOW)
        response = EnrollResponse(
            device_id=DEVICE,
            certificate_pem=certificate.pem,
            ca_pem=self.ca_pem,
            mqtt_url="mqtt://127.0.0.1:1883",
            topic_prefix="fleet",
            image_root=SIGNING.image_roots[0].decode(),
            director_root=SIGNING.director_roots[0].decode(),
        )
        return self.alter(response)


def _handler(listener: Listener) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200 if self.path == "/v1/ca" else 404, listener.ca_pem.encode())

        def do_POST(self) -> None:
            request = EnrollRequest.from_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            listener.requests.append(request)
            if listener.status != 200:
                self._send(
                    listener.status, json.dumps({"detail": "the invite is used", "hint": "make a new one"}).encode()
                )
                return
            answer = listener.answer(request)
            self._send(200, answer if isinstance(answer, bytes) else encode(answer))

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    """A running listener."""
    listener = Listener(tmp_path)
    yield listener
    listener.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder that does not exist yet."""
    return tmp_path / "state"


def test_device_joins_with_a_key_of_its_own(listener: Listener, state: Path) -> None:
    """The identity is complete, private, and the key never left the device."""
    enrollment = enroll(str(listener.invite), state)
    identity = load_identity(state)
    assert (DEVICE, DEVICE) == (enrollment.device_id, identity.device_id)
    assert SIGNING.image_roots[0] == identity.image_root
    assert SIGNING.director_roots[0] == identity.director_root
    (request,) = listener.requests
    assert TOKEN == request.token
    assert "PRIVATE" not in request.csr_pem
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in identity.folder.iterdir()}
    assert {0o600} == set(modes.values())
    assert 0o700 == stat.S_IMODE(identity.folder.stat().st_mode)


def test_enrolling_twice_changes_nothing(listener: Listener, state: Path) -> None:
    """A device that is enrolled says so, and does not even ask the controller."""
    enroll(str(listener.invite), state)
    before = {p.name: p.read_bytes() for p in (state / "identity").iterdir()}
    with pytest.raises(IdentityError, match=f"enrolled already, as {DEVICE}"):
        enroll(str(listener.invite), state)
    assert before == {p.name: p.read_bytes() for p in (state / "identity").iterdir()}
    assert 1 == len(listener.requests)


def test_used_token_gives_the_controllers_own_words(listener: Listener, state: Path) -> None:
    """What the controller says reaches the person at the device, and nothing is left behind."""
    listener.status = 403
    with pytest.raises(EnrollmentError, match="the controller refused: the invite is used; make a new one"):
        enroll(str(listener.invite), state)
    assert not (state / "identity").exists()


def test_controller_of_another_fleet_never_sees_the_token(listener: Listener, state: Path) -> None:
    """The fingerprint in the invite decides: nothing secret is sent to anybody else."""
    other = create_authority(NOW)
    invite = msgspec.structs.replace(listener.invite, ca_sha256=other.fingerprint)
    with pytest.raises(EnrollmentError, match="not the controller that made this invite"):
        enroll(str(invite), state)
    assert [] == listener.requests


def test_man_in_the_middle_that_shows_the_right_ca_is_noticed(listener: Listener, state: Path) -> None:
    """Anybody can show the fleet's CA certificate; only its own listener can speak for it."""
    other = create_authority(NOW)
    listener.ca_pem = other.pair.certificate_pem.decode()
    invite = msgspec.structs.replace(listener.invite, ca_sha256=other.fingerprint)
    with pytest.raises(EnrollmentError, match="could not prove"):
        enroll(str(invite), state)
    assert [] == listener.requests


def test_controller_that_is_not_there(state: Path, listener: Listener) -> None:
    """The message names the address and what to look at."""
    invite = msgspec.structs.replace(listener.invite, url="https://127.0.0.1:1")
    with pytest.raises(EnrollmentError, match="Is `fleetctl serve` running"):
        enroll(str(invite), state)


@pytest.mark.parametrize("text", ["", "wf1.", "wf1.%%%", "wf2.abc", "hello", "wf1." + "A" * 3000])
def test_damaged_invite(text: str, state: Path) -> None:
    """A line that was not copied whole is named as such."""
    with pytest.raises(MalformedError, match="invite"):
        enroll(text, state)


def _another_key(response: EnrollResponse) -> EnrollResponse:
    other = create_authority(NOW).issue_listener_certificate("x", NOW)
    return msgspec.structs.replace(response, certificate_pem=other.certificate_pem.decode())


BAD_ANSWERS: dict[str, Callable[[EnrollResponse], EnrollResponse | bytes]] = {
    "not JSON": lambda _: b"<html>",
    "too large": lambda _: b"x" * 100_000,
    "another key": _another_key,
    "another CA": lambda r: msgspec.structs.replace(r, ca_pem=create_authority(NOW).pair.certificate_pem.decode()),
    "no CA": lambda r: msgspec.structs.replace(r, ca_pem="-"),
    "no certificate": lambda r: msgspec.structs.replace(r, certificate_pem="-"),
    "bad device id": lambda r: msgspec.structs.replace(r, device_id="../../etc"),
    "bad prefix": lambda r: msgspec.structs.replace(r, topic_prefix="#"),
    "bad root": lambda r: msgspec.structs.replace(r, image_root="{}"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_answer_that_makes_no_sense_leaves_nothing_behind(listener: Listener, state: Path, name: str) -> None:
    """Everything is checked before anything is written."""
    listener.alter = BAD_ANSWERS[name]
    with pytest.raises(EnrollmentError, match="answer is not valid"):
        enroll(str(listener.invite), state)
    assert not (state / "identity").exists()


def test_identity_is_written_whole_or_not_at_all(state: Path) -> None:
    """A file that cannot be written leaves no identity and no draft."""
    with pytest.raises(OSError, match="ile name too long"):
        save_identity(state, {"device.key": b"key", "x" * 300: b""})
    assert [] == list(state.iterdir())


@pytest.mark.parametrize("name", ["device.key", "enrollment.json", "image_root.json"])
def test_damaged_identity_is_named(state: Path, name: str) -> None:
    """The daemon does not start on half an identity, and says what to do."""
    SIGNING.enroll(state, "mqtt://127.0.0.1:1883")
    (state / "identity" / name).unlink()
    with pytest.raises(IdentityError, match="is damaged"):
        load_identity(state)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("enrollment.json", b"[" * 100_000),
        ("enrollment.json", b"\xff"),
        ("device.key", b""),
        ("device.key", LOCKED_KEY),
    ],
)
def test_identity_that_holds_something_else_is_named_too(state: Path, name: str, content: bytes) -> None:
    """Whatever the files hold, it is no traceback."""
    SIGNING.enroll(state, "mqtt://127.0.0.1:1883")
    (state / "identity" / name).write_bytes(content)
    with pytest.raises(IdentityError, match="is damaged"):
        load_identity(state)


def test_device_id_comes_from_the_enrolment(state: Path) -> None:
    """A name that is no identifier does not reach a topic."""
    SIGNING.enroll(state, "mqtt://127.0.0.1:1883")
    path = state / "identity/enrollment.json"
    path.write_text(path.read_text().replace(DEVICE, "a/b"))
    with pytest.raises(IdentityError, match="device id"):
        load_identity(state)
    assert parse_device_id(DEVICE) == DEVICE


def test_command_enrolls_and_says_what_comes_next(
    listener: Listener, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line to paste, one line of answer; the second time the exit status says so."""
    assert 0 == main(["enroll", str(listener.invite), "--state", str(state)])
    assert f"Enrolled as {DEVICE}. Start the agent with: fleet-agent run --state {state}" in capsys.readouterr().out
    assert 3 == main(["enroll", str(listener.invite), "--state", str(state)])
    assert "enrolled already" in capsys.readouterr().err


@pytest.mark.needs("tmpfs")
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_invite_is_not_spent_where_no_identity_can_be_kept(listener: Listener, tmp_path: Path, trouble: str) -> None:
    """Without room, or where nothing may be written, nobody is asked; afterwards the same invite works."""
    with mounted(tmp_path / "disk", 1 << 20) as disk:
        if trouble == "full":
            disk.fill(free_bytes=8192)
        else:
            disk.remount("ro")
        with pytest.raises(EnrollmentError, match="the invite is not spent"):
            enroll(str(listener.invite), disk.folder)
        assert [] == listener.requests
        if trouble == "full":
            disk.free()
        else:
            disk.remount("rw")
        assert [] == list(disk.folder.iterdir())
        assert DEVICE == enroll(str(listener.invite), disk.folder).device_id


@pytest.mark.needs("tmpfs")
def test_identity_that_cannot_be_kept_after_all_is_explained(listener: Listener, tmp_path: Path) -> None:
    """The disk fails between the question and the answer: the invite is spent, and the message says what to do."""
    with mounted(tmp_path / "disk", 1 << 20) as disk:

        def alter(response: EnrollResponse) -> EnrollResponse:
            for reserve in disk.folder.glob(".identity-*/reserve"):
                reserve.write_bytes(b"")  # somebody takes even what was reserved
            disk.fill()
            return response

        listener.alter = alter
        with pytest.raises(EnrollmentError, match=f"fleetctl devices invite {DEVICE} --replace"):
            enroll(str(listener.invite), disk.folder)
        assert not (disk.folder / "identity").exists()
