"""The service as a process, with a real broker and devices that speak by script over MQTT."""

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import httpx
import msgspec
import pytest

from controller.api.schema import Info, InviteRequest, RolloutRequest
from controller.broker import BrokerProcess, start_broker
from controller.client import FleetClient
from controller.delivery.mqtt import MqttLink
from controller.errors import ControllerError
from controller.listeners import bind
from controller.service import without_credentials
from controller.trust import image
from controller.workspace import Workspace, create_workspace
from protocol.assignment import VerifiedAssignment, parse_metadata, verify_assignment
from protocol.chunks import ChunkIndex, Offer
from protocol.codec import sha256
from protocol.compression import decompress
from protocol.enrollment import EnrollRequest, EnrollResponse, Invite
from protocol.identifiers import Digest
from protocol.manifest import Manifest
from protocol.messages import Ack, Reason, Want, open_ack
from tests.controller.service.fleet import HAPPY, Bundle, ScriptedDevice, bundle, signing_request

DEADLINE_S = 60.0
SERVE = """
import sys, logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from controller.service import serve
from controller.store.lock import one_service
from controller.workspace import ServerHome
logging.basicConfig(level=logging.WARNING)
with one_service(Path(sys.argv[1])):
    serve(ServerHome(Path(sys.argv[1])), now=lambda: datetime.now(UTC), mqtt_url=sys.argv[2], telemetry_interval_s=5)
"""


class Running:
    """A service process and the operator who uses it."""

    def __init__(self, workspace: Workspace, mqtt_url: str) -> None:
        self.workspace = workspace
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error::ResourceWarning", "-c", SERVE, str(workspace.server.path), mqtt_url],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()
        assert self.first_line.startswith("ready: "), self.first_line
        self.endpoints = json.loads((workspace.server.path / "endpoints.json").read_text())
        self.client = FleetClient(self.endpoints["api_url"], workspace.operator.api_token)

    def publish(self, release: Bundle) -> Manifest:
        """Upload and sign a release, as the operator does."""
        for data in release.files:
            self.client.put_file(sha256(data), data)
        signer = self.workspace.operator.targets_signer
        signed = image.add_release(
            self.client.targets(), release.manifest, release.manifest.to_bytes(), signer, datetime.now(UTC)
        )
        self.client.put_targets(signed)
        return release.manifest

    def kill(self) -> None:
        """End it at whatever instruction it is."""
        self.end(signal.SIGKILL)

    def end(self, number: signal.Signals) -> int:
        """Send a signal, and return the exit code."""
        self.client.close()
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


class MqttDevice(ScriptedDevice):
    """A scripted device with a real connection, which takes what is retained as a real one does."""

    def __init__(self, enrolled: EnrollResponse, device: ScriptedDevice, workspace: Workspace) -> None:
        super().__init__(enrolled.device_id, device.key)
        self.topics = workspace.server.topics
        self.root = parse_metadata(enrolled.director_root.encode(), "root").signed
        self.received: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self.link = MqttLink(enrolled.mqtt_url, f"dev-{self.id}", on_message=self._on_message)
        self.link.subscribe(self.topics.director(self.id))
        self.link.subscribe(self.topics.ack(self.id))
        self.link.start()

    def _on_message(self, topic: str, payload: bytes, _retained: bool) -> None:
        with self._changed:
            self.received[topic] = payload
            self._changed.notify_all()

    def until(self, condition):  # type: ignore[no-untyped-def]
        """Wait until `condition` returns something, and return that."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition() or None, DEADLINE_S), sorted(self.received)
            return condition()

    def say(self, uplink, payload: bytes) -> None:  # type: ignore[no-untyped-def]
        """Publish on one of the device's topics."""
        self.until(lambda: self.link.is_connected)
        self.link.publish(self.topics.up(self.id, uplink), payload, retain=uplink == "liveness")

    def assigned(self, model: str, version: str | None, above: int = 0) -> VerifiedAssignment:
        """Wait for a valid document that assigns this release."""

        def current() -> VerifiedAssignment | None:
            raw = self.received.get(self.topics.director(self.id))
            if raw is None:
                return None
            found = verify_assignment(raw, root=self.root, device_id=self.id, version_floor=1, now=datetime.now(UTC))
            versions = {r.model: r.version for r in found.assignment.releases}
            return found if versions.get(model) == version and found.version > above else None

        return self.until(current)  # type: ignore[no-any-return]

    def get(self, topic: str) -> bytes:
        """Return what is retained under `topic`."""
        self.received.pop(topic, None)
        self.link.subscribe(topic)
        found: bytes = self.until(lambda: self.received.get(topic))
        self.link.unsubscribe(topic)
        return found

    def fetch(self, digest: Digest) -> bytes:
        """Return a file by its offer, index and chunks."""
        offer = Offer.from_bytes(self.get(self.topics.offer(digest)))
        blob = offer.sources[0].blob
        index = ChunkIndex.from_bytes(self.get(self.topics.chunk_index(blob)), blob)
        encoded = b"".join(self.get(self.topics.chunk(blob, n)) for n in range(len(index.chunks)))
        return encoded if index.encoding == "identity" else decompress(encoded, limit_bytes=offer.size, what="file")

    def until_acknowledged(self, receipts: int, telemetry: int = 0) -> None:
        """Wait for the acknowledgement of everything that was said."""

        def is_done() -> bool:
            raw = self.received.get(self.topics.ack(self.id))
            ack = open_ack(raw, self.id, self.root) if raw else Ack(device_id=self.id, stream="")
            return ack.stream == self.stream and ack.receipts >= receipts and ack.telemetry >= telemetry

        self.until(is_done)

    def deployment(self, found: VerifiedAssignment, model: str) -> str:
        """Return the deployment that brings a model."""
        return next(r.deployment_id for r in found.assignment.releases if r.model == model)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with start_broker("auto", host="127.0.0.1", port=0, directory=tmp_path / "broker") as started:
        yield started


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return create_workspace(tmp_path / "fleet", now=datetime.now(UTC), api_port=0, enroll_port=0)


@contextmanager
def running(workspace: Workspace, mqtt_url: str) -> Iterator[Running]:
    service = Running(workspace, mqtt_url)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.kill()


def enroll(service: Running, name: str) -> tuple[EnrollResponse, ScriptedDevice]:
    """Take in a device over HTTPS."""
    invite = Invite.parse(service.client.invite(InviteRequest(device_id=name)).invite)
    plain = ScriptedDevice(name)
    ca = service.workspace.server.ca_pem.decode()
    assert invite.ca_sha256 == sha256(ssl.PEM_cert_to_DER_cert(ca))
    body = msgspec.json.encode(EnrollRequest(token=invite.token, csr_pem=signing_request(plain.key)))
    with httpx.Client(verify=ssl.create_default_context(cadata=ca)) as client:
        return EnrollResponse.from_bytes(client.post(f"{invite.url}/v1/enroll", content=body).content), plain


@contextmanager
def enrolled(service: Running, name: str) -> Iterator[MqttDevice]:
    """Take in a device, connect it to the broker, and have it born."""
    answer, plain = enroll(service, name)
    device = MqttDevice(answer, plain, service.workspace)
    try:
        device.say("liveness", device.liveness())
        yield device
    finally:
        device.link.close()


def until(condition) -> None:  # type: ignore[no-untyped-def]
    pause = threading.Event()
    for _ in range(int(DEADLINE_S / 0.05)):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("it did not happen in time")


def is_connected(info: Info) -> bool:
    return info.is_mqtt_connected


@pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=pytest.mark.needs("mosquitto")), "embedded"])
def test_the_main_job_from_push_to_commit(
    workspace: Workspace, tmp_path: Path, kind: Literal["mosquitto", "embedded"]
) -> None:
    """Enrol, push, publish, verify, fetch, report, acknowledge; then a failure, and a removal."""
    with start_broker(kind, host="127.0.0.1", port=0, directory=tmp_path / "broker") as broker:
        run_the_main_job(workspace, broker)


def run_the_main_job(workspace: Workspace, broker: BrokerProcess) -> None:
    with running(workspace, broker.url) as service, enrolled(service, "press-1") as device:
        release = bundle(module=os.urandom(200_000))
        manifest = service.publish(release)
        until(lambda: service.client.device("press-1").liveness == "online")
        rollout = service.client.start_rollout(RolloutRequest(model="double", version="1.0.0"))
        told = device.assigned("double", "1.0.0")
        assert (5, sha256(release.files[-1])) == (
            told.assignment.config.telemetry_interval_s,
            told.digests["models/double/1.0.0.json"],
        )
        for data in release.files:
            assert data == device.fetch(sha256(data))
        device.say("receipts", device.report(device.deployment(told, "double"), manifest, HAPPY))
        device.say("telemetry", device.telemetry(device.record((manifest, [100, 200]))))
        device.until_acknowledged(len(HAPPY), 1)
        assert "finished" == service.client.rollout(rollout.id).state
        broken = service.publish(bundle(version="1.1.0", counter=2))
        second = service.client.start_rollout(RolloutRequest(model="double", version="1.1.0"))
        told = device.assigned("double", "1.1.0")
        reason = Reason.of("self_test_failed", "vector 0 differs")
        device.say("receipts", device.report(device.deployment(told, "double"), broken, (*HAPPY[:6], "failed"), reason))
        back = device.assigned("double", "1.0.0", above=told.version)
        assert rollout.deployments[0].id == device.deployment(back, "double")
        (failed,) = service.client.rollout(second.id).deployments
        assert ("failed", reason) == (failed.state, failed.reason)
        service.client.start_rollout(RolloutRequest(model="double", version=None))
        told = device.assigned("double", None, above=back.version)
        (removal,) = told.assignment.removals
        device.say("receipts", device.report(removal.deployment_id, manifest, ("retrieved", "removed")))
        until(lambda: service.client.device("press-1").models[0].installed is None)


def test_a_killed_service_goes_on_where_it_was(workspace: Workspace, broker: BrokerProcess) -> None:
    """SIGKILL right after the rollout was started, and again in its middle: nothing is lost, nothing is repeated."""
    release = bundle(module=os.urandom(3_000_000))
    with running(workspace, broker.url) as service, enrolled(service, "press-1") as device:
        manifest = service.publish(release)
        rollout = service.client.start_rollout(RolloutRequest(model="double", version="1.0.0"))
        service.kill()
        with running(workspace, broker.url) as second:
            told = device.assigned("double", "1.0.0")
            for data in release.files:
                assert data == device.fetch(sha256(data))
            deployment = device.deployment(told, "double")
            device.say("receipts", device.report(deployment, manifest, HAPPY[:4]))
            device.until_acknowledged(4)
            second.kill()
        # What a device says while the service is down waits on the broker.
        device.say("receipts", device.report(deployment, manifest, HAPPY[4:]))
        with running(workspace, broker.url) as third:
            device.until_acknowledged(len(HAPPY))
            shown = third.client.rollout(rollout.id)
            assert ("finished", {"succeeded": 1}) == (shown.state, shown.counts)
            assert 0 == third.end(signal.SIGTERM)


def test_a_broker_that_comes_late_or_forgets_gets_everything(workspace: Workspace, tmp_path: Path) -> None:
    """The API works without it; a broker that lost its memory is filled again."""
    with start_broker("auto", host="127.0.0.1", port=0, directory=tmp_path / "first") as first:
        url, port = first.url, int(first.url.rpartition(":")[2])
        with running(workspace, url) as service, enrolled(service, "press-1"):
            until(lambda: is_connected(service.client.info()))
        service_key = workspace
    with running(service_key, url) as service:
        info = service.client.info()
        assert (False, True) == (info.is_mqtt_connected, any("no connection" in w for w in info.warnings))
        release = bundle()
        service.publish(release)
        service.client.start_rollout(RolloutRequest(model="double", version="1.0.0"))
        for number in range(2):
            with start_broker("auto", host="127.0.0.1", port=port, directory=tmp_path / f"again-{number}"):
                until(lambda: is_connected(service.client.info()))
                reader = MqttReader(url, workspace)
                try:
                    reader.until_complete("press-1", release)
                finally:
                    reader.link.close()
            until(lambda: not is_connected(service.client.info()))
        assert 0 == service.end(signal.SIGTERM)


class MqttReader:
    """Somebody who reads what is retained."""

    def __init__(self, url: str, workspace: Workspace) -> None:
        self.topics = workspace.server.topics
        self.received: dict[str, bytes] = {}
        self.link = MqttLink(url, "reader", on_message=self._on_message)
        self.link.start()

    def _on_message(self, topic: str, payload: bytes, _retained: bool) -> None:
        self.received[topic] = payload

    def until_complete(self, device: str, release: Bundle) -> None:
        """Wait for the metadata, the document of a device, and the offers of all files."""
        wanted = [self.topics.metadata, self.topics.timestamp, self.topics.director(device)]  # type: ignore[arg-type]
        wanted += [self.topics.offer(sha256(data)) for data in release.files]
        for topic in wanted:
            self.link.subscribe(topic)
        until(lambda: all(topic in self.received for topic in wanted))


def test_hostile_messages_from_the_broker_change_nothing(workspace: Workspace, broker: BrokerProcess) -> None:
    """On every uplink, and on the service's own marker; afterwards a genuine report still counts."""
    with running(workspace, broker.url) as service, enrolled(service, "press-1") as device:
        manifest = service.publish(bundle())
        rollout = service.client.start_rollout(RolloutRequest(model="double", version="1.0.0"))
        told = device.assigned("double", "1.0.0")
        topics = device.topics
        impostor = ScriptedDevice("press-1")
        for uplink in ("liveness", "receipts", "telemetry", "want"):
            topic = topics.up(device.id, uplink)  # type: ignore[arg-type]
            for payload in (b"", b"{}", b"\xff" * 1_000, b"[" * 50_000, os.urandom(300_000)):
                device.link.publish(topic, payload)
        device.link.publish(topics.up(device.id, "receipts"), impostor.report("r", manifest, HAPPY))
        device.link.publish(topics.memory_marker, b"not a marker")
        device.link.publish(f"{topics.prefix}/v1/dev/UPPER/up/liveness", b"{}")
        device.link.publish(f"{topics.prefix}/v1/dev/press-1/up/else", b"{}")
        device.say("receipts", device.report(device.deployment(told, "double"), manifest, HAPPY))
        device.until_acknowledged(len(HAPPY))
        assert {"succeeded": 1} == service.client.rollout(rollout.id).counts


def test_a_want_is_answered_over_the_broker(workspace: Workspace, broker: BrokerProcess) -> None:
    """A retained message that was deleted comes again."""
    with running(workspace, broker.url) as service, enrolled(service, "press-1") as device:
        release = bundle()
        service.publish(release)
        service.client.start_rollout(RolloutRequest(model="double", version="1.0.0"))
        device.assigned("double", "1.0.0")
        digest = sha256(release.files[0])
        topic = device.topics.offer(digest)
        before = device.get(topic)
        device.link.publish(topic, b"", retain=True)
        device.say("want", Want(kind="offer", digest=digest).to_bytes())
        assert before == device.get(topic)


def test_a_second_service_on_the_same_workspace_is_refused(workspace: Workspace) -> None:
    """And leaves the first one alone."""
    nowhere = "mqtt://127.0.0.1:9"
    with running(workspace, nowhere) as service:
        command = [sys.executable, "-c", SERVE, str(workspace.server.path), nowhere]
        second = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert second.returncode != 0
        assert "another service runs on" in second.stderr
        assert is_connected(service.client.info()) is False
        assert (workspace.server.path / "endpoints.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(workspace: Workspace, number: signal.Signals) -> None:
    """Also while somebody follows a rollout; the file with its addresses goes with it."""
    with running(workspace, "mqtt://127.0.0.1:9") as service:
        assert service.endpoints == {
            "api_url": service.client.api_url,
            "enroll_url": service.client.info().enroll_url,
            "mqtt_url": "mqtt://127.0.0.1:9",
        }
        service.publish(bundle())
        enroll(service, "press-1")
        rollout = service.client.start_rollout(RolloutRequest(model="double", version="1.0.0"))
        url = f"{service.client.api_url}/v1/rollouts/{rollout.id}/events"
        headers = {"Authorization": f"Bearer {workspace.operator.api_token}"}
        with httpx.stream("GET", url, headers=headers, timeout=DEADLINE_S) as followed:
            lines = followed.iter_lines()
            assert "event: rollout" == next(lines)
            assert 0 == service.end(number)
            assert list(lines)  # the stream ends, it does not break
        assert not (workspace.server.path / "endpoints.json").exists()
        with pytest.raises(httpx.HTTPError):
            httpx.get(service.endpoints["api_url"])


def test_a_port_in_use_is_said_with_what_to_do() -> None:
    """Before anything is started."""
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ControllerError, match=f"cannot listen on 127.0.0.1, port {port}") as caught:
            bind("127.0.0.1", port)
        assert "0 takes any free one" in caught.value.hint
    with pytest.raises(ControllerError, match="cannot listen on no-such-host"):
        bind("no-such-host.invalid", 0)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://me:secret@host:1883", "mqtt://host:1883"),
        ("wss://me:s%40cret@host/mqtt", "wss://host/mqtt"),
        ("mqtt://host", "mqtt://host"),
    ],
)
def test_the_password_of_the_broker_stays_in_the_service(url: str, expected: str) -> None:
    """Devices and screens get the address alone."""
    assert expected == without_credentials(url)
