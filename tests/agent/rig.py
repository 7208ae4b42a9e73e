"""A real `fleet-agent run` process against a real broker, with a test in the controller's place."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from agent.client import AgentNotRunningError, LocalClient
from protocol.chunks import Blob, cut
from protocol.errors import ProtocolError
from protocol.identifiers import Digest
from protocol.messages import (
    Ack,
    Liveness,
    Receipt,
    TelemetryRecord,
    Want,
    open_liveness,
    open_receipts,
    open_telemetry,
)
from protocol.topics import Topics
from tests.agent.signing import Bundle, Signing

DEADLINE_S = 30.0
CHUNK_BYTES = 4096


class Backend:
    """Publishes for one device, hears it, answers what it wants, acknowledges what it reports."""

    def __init__(self, url: str, signing: Signing, prefix: str = "fleet") -> None:
        self.signing = signing
        self.topics = Topics(prefix)
        self.chunk_bytes = CHUNK_BYTES
        self.receipts: list[Receipt] = []
        self.telemetry: list[TelemetryRecord] = []
        self.liveness: list[Liveness] = []
        self.wants: list[Want] = []
        self.errors: list[ProtocolError] = []
        self.is_answering = True
        self.is_acknowledging = True
        self._seen: set[tuple[str, str, int]] = set()
        self._retained: dict[str, bytes] = {}
        self._blobs: dict[Digest, Blob] = {}
        self._changed = threading.Condition()
        host, _, port = url.removeprefix("mqtt://").partition(":")
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=f"backend-{random.randrange(1 << 48)}")
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *_: client.subscribe(self.topics.all_uplinks, 1)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect(host, int(port))
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, retain: bool = True) -> None:
        if retain:
            self._retained[topic] = payload
        self._client.publish(topic, payload, 1, retain).wait_for_publish(DEADLINE_S)

    def publish_metadata(self) -> None:
        self.publish(self.topics.metadata, self.signing.metadata)
        self.publish(self.topics.timestamp, self.signing.timestamp)

    def publish_files(self, *bundles: Bundle) -> None:
        for data in (file for b in bundles for file in (b.raw, *b.files)):
            blob = self.add_blob(cut(data, self.chunk_bytes))
            self.publish(self.topics.offer(blob.index.digest), blob.offer.to_bytes())
            self.publish(self.topics.chunk_index(blob.blob), blob.index.to_bytes())
            for number in range(len(blob.index.chunks)):
                self.publish(self.topics.chunk(blob.blob, number), blob.chunk(number))

    def add_blob(self, blob: Blob) -> Blob:
        self._blobs[blob.index.digest] = self._blobs[blob.blob] = blob
        return blob

    def release(self, *bundles: Bundle) -> None:
        """Release, publish files and metadata, and assign the newest of each model."""
        self.signing.release(*bundles)
        self.publish_files(*bundles)
        self.publish_metadata()

    def assign(self, *bundles: Bundle, **fields: object) -> None:
        self.direct(self.signing.assign(*bundles, **fields))

    def direct(self, raw: bytes) -> None:
        self.publish(self.topics.director(self.signing.device), raw)

    def states(self, deployment_id: str) -> list[str]:
        found: list[str] = []
        for receipt in list(self.receipts):
            if receipt.deployment_id == deployment_id and (not found or found[-1] != receipt.state):
                found.append(receipt.state)
        return found

    def wait(self, what: str, condition: Callable[[], Any]) -> Any:
        """Wait until `condition` is true of what was heard."""
        with self._changed:
            if not self._changed.wait_for(condition, DEADLINE_S):
                heard = [(r.deployment_id, r.state, r.reason) for r in self.receipts]
                raise AssertionError(f"{what}: not within {DEADLINE_S} s; {heard} {self.wants} {self.errors}")
            return condition()

    def wait_end(self, bundle: Bundle, state: str = "succeeded") -> Receipt:
        """Wait for the end of a deployment of `bundle` and return its receipt."""
        deployment_id = f"deploy-{bundle.manifest.model}-{bundle.manifest.version}"
        ends = {"succeeded", "failed", "rejected", "rolled_back", "canceled", "superseded", "already_installed", state}

        def ended() -> Receipt | None:
            found = (r for r in self.receipts if r.deployment_id == deployment_id and r.state in ends)
            return next(found, None)

        receipt: Receipt = self.wait(f"{deployment_id} {state}", ended)
        assert state == receipt.state, receipt
        return receipt

    def _on_message(self, _: Client, __: object, message: MQTTMessage) -> None:
        device, uplink = self.topics.parse_up(message.topic)
        key, raw = self.signing.device_key.public_key(), bytes(message.payload)
        with self._changed:
            try:
                if uplink == "liveness":
                    self.liveness.append(open_liveness(raw, device, key))
                elif uplink == "want":
                    self._on_want(Want.from_bytes(raw))
                else:
                    self._on_report(uplink, raw)
            except ProtocolError as error:
                self.errors.append(error)
            self._changed.notify_all()

    def _on_report(self, uplink: str, raw: bytes) -> None:
        key = self.signing.device_key.public_key()
        if uplink == "receipts":
            batch = open_receipts(raw, self.signing.device, key)
            self.receipts += [r for r in batch.receipts if self._is_new(batch.stream, "receipts", r.seq)]
        else:
            records = open_telemetry(raw, self.signing.device, key)
            self.telemetry += [r for r in records.records if self._is_new(records.stream, "telemetry", r.seq)]
            batch = records  # type: ignore[assignment] # only its stream is used below
        if self.is_acknowledging:
            ack = Ack(
                device_id=self.signing.device,
                stream=batch.stream,
                receipts=max((r.seq for r in self.receipts), default=0),
                telemetry=max((r.seq for r in self.telemetry), default=0),
            )
            self._client.publish(self.topics.ack(self.signing.device), self.signing.acknowledge(ack), 1, True)

    def _is_new(self, stream: str, outbox: str, seq: int) -> bool:
        key = (stream, outbox, seq)
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new

    def _on_want(self, want: Want) -> None:
        self.wants.append(want)
        if not self.is_answering:
            return
        if want.kind == "metadata":
            self._client.publish(self.topics.metadata, self.signing.metadata, 1, True)
            self._client.publish(self.topics.timestamp, self.signing.timestamp, 1, True)
        elif want.kind == "director" and (raw := self._retained.get(self.topics.director(self.signing.device))):
            self._client.publish(self.topics.director(self.signing.device), raw, 1, True)
        elif want.digest and (blob := self._blobs.get(want.digest)):
            if want.kind == "offer":
                self._client.publish(self.topics.offer(want.digest), blob.offer.to_bytes(), 1, True)
            elif not want.chunks:
                self._client.publish(self.topics.chunk_index(blob.blob), blob.index.to_bytes(), 1, True)
            for number in want.chunks:
                self._client.publish(self.topics.chunk(blob.blob, number), blob.chunk(number), 1, True)


class Agent:
    """One `fleet-agent run` process."""

    def __init__(self, state_dir: Path, log_dir: Path | None = None) -> None:
        self.state_dir = state_dir
        self._log = (log_dir or state_dir) / "stderr.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, fault: str = "", file_bytes: int | None = None) -> None:
        """Start it; `fault` is where it dies, `file_bytes` the largest file that the system lets it write."""
        argv = [sys.executable, "-c", _LAUNCH, str(file_bytes or -1), "run", "--state", str(self.state_dir)]
        env = {**os.environ, "FLEET_FAULT": fault}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process

    def wait_killed(self) -> None:
        """Wait until the fault point killed it."""
        assert -signal.SIGKILL == self.process.wait(DEADLINE_S), self.log()

    def is_killed(self) -> bool:
        return self.process.poll() == -signal.SIGKILL

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def stop(self) -> int:
        """Ask it to end, and return its exit status."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.terminate()
        return self._process.wait(DEADLINE_S)

    def client(self) -> LocalClient:
        return LocalClient(self.state_dir / "agent.sock")

    def status(self) -> dict[str, Any]:
        with self.client() as client:
            return client.status()

    def infer(self, value: float = 1.0, model: str = "scale") -> tuple[str, float]:
        """Return the version that answered, and what it said."""
        with self.client() as client:
            answer = client.infer(model, {"x": [value]})
        return answer.version, answer.outputs["y"].values[0]

    def wait_serving(self) -> None:
        def is_up() -> bool:
            try:
                self.status()
            except AgentNotRunningError:
                return False
            return True

        wait_for("the local API answers", is_up, self.log)

    def log(self) -> str:
        return self._log.read_text()[-3000:]


# Sets the limit in the child, after the fork and before the agent: a preexec_fn is not safe with threads.
_LAUNCH = """
import resource, sys
from agent.cli import main
limit = int(sys.argv[1])
if limit > 0:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
raise SystemExit(main(sys.argv[2:]))
"""


def wait_for(what: str, condition: Callable[[], Any], detail: Callable[[], str] = str) -> None:
    """Wait until `condition` holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {DEADLINE_S} s\n{detail()}")
        time.sleep(0.02)
