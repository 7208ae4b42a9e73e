"""A fleet for tests of the service: releases made of any bytes, an operator who signs, devices that speak by script."""

import itertools
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from controller.api.schema import InviteRequest, Rollout, RolloutRequest
from controller.commands import devices as device_commands
from controller.commands import releases as release_commands
from controller.commands import rollouts as rollout_commands
from controller.core import Core, Trust, World
from controller.delivery.link import Outgoing
from controller.delivery.publisher import Publisher
from controller.delivery.wants import Wants
from controller.errors import BrokerError
from controller.first_start import prepare
from controller.reports.ingest import Ingest, Message
from controller.store.audit import Actor
from controller.store.engine import Store
from controller.store.files import FileStore
from controller.store.metadata import newest
from controller.trust import image
from controller.workspace import Workspace, create_workspace
from protocol.admission import Capacity
from protocol.enrollment import EnrollRequest
from protocol.identifiers import DeviceId, parse_device_id
from protocol.lifecycle import DeploymentState
from protocol.manifest import Contract, FileRef, Manifest, Provenance, SelfTest, Variant
from protocol.messages import (
    DeviceUsage,
    Liveness,
    ModelUsage,
    Progress,
    Reason,
    Receipt,
    ReceiptBatch,
    SlotReport,
    TelemetryBatch,
    TelemetryRecord,
    TrapCount,
    seal_batch,
    seal_liveness,
)
from protocol.sketch import LatencySketch
from protocol.tensors import TensorSpec
from protocol.topics import Uplink

START = datetime(2026, 1, 15, 12, tzinfo=UTC)
OPERATOR = Actor(name="operator", request_id="test")
HAPPY: tuple[DeploymentState, ...] = (
    "retrieved",
    "downloading",
    "downloaded",
    "verifying",
    "installing",
    "testing",
    "activated",
    "committing",
    "succeeded",
)
CAPACITY = Capacity(
    arch="aarch64",
    cpus=4,
    memory_bytes=1 << 30,
    features=("simd128",),
    runtime="wasmtime/50.0.1",
    max_model_memory_bytes=64 << 20,
    max_stack_kib=256,
    max_deadline_ms=2_000,
    disk_quota_bytes=64 << 20,
)


class Clock:
    """A clock that a test turns."""

    def __init__(self, at: datetime = START) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at

    def advance(self, **by: float) -> None:
        """Let time pass."""
        self.at += timedelta(**by)


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """A release and its files."""

    manifest: Manifest
    files: tuple[bytes, ...]


def bundle(
    model: str = "double",
    version: str = "1.0.0",
    counter: int = 1,
    *,
    module: bytes = b"\0asm module",
    memory_bytes: int = 65_536,
) -> Bundle:
    """Return a release whose module may be any bytes: the service never runs it."""
    module += f" {model} {version}".encode()
    vectors = bytes(8)
    manifest = Manifest(
        model=model,
        version=version,
        release_counter=counter,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(1,)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(1,)),),
        variants=(Variant(file=FileRef.of(module), contract=Contract(memory_bytes=memory_bytes)),),
        self_test=SelfTest(file=FileRef.of(vectors), count=1),
        provenance=Provenance(source=FileRef.of(b"source"), source_name="double.wat", tool="wasmfleet 0.1.0"),
    )
    return Bundle(manifest=manifest, files=(module, vectors, manifest.to_bytes()))


def signing_request(key: Ed25519PrivateKey) -> str:
    """Return a certificate request over `key`."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anything")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, None)
    return request.public_bytes(serialization.Encoding.PEM).decode()


class ScriptedDevice:
    """A device that says what a test tells it to, properly signed and numbered."""

    def __init__(self, device_id: str, key: Ed25519PrivateKey | None = None, *, session: int = 1) -> None:
        self.id: DeviceId = parse_device_id(device_id)
        self.key = key or Ed25519PrivateKey.generate()
        self.session = session
        self.stream = secrets.token_hex(8)
        self._seq = itertools.count(1)
        self._telemetry_seq = itertools.count(1)

    def forget(self) -> None:
        """Lose all memory: a new stream, numbers and sessions from 1."""
        self.session = 1
        self.stream = secrets.token_hex(8)
        self._seq, self._telemetry_seq = itertools.count(1), itertools.count(1)

    def liveness(self, *, online: bool = True, capacity: Capacity | None = CAPACITY, **fields: object) -> bytes:
        """Return a birth or a death."""
        values: dict[str, object] = {
            "session": self.session,
            "stream": self.stream,
            "agent_version": "0.1.0",
            "slots": (),
            "director_version": 0,
            **fields,
        }
        message = Liveness(device_id=self.id, online=online, at_ms=1, capacity=capacity, **values)  # type: ignore[arg-type]
        return seal_liveness(message, self.key)

    def receipt(self, deployment: str, state: DeploymentState, release: Manifest, **fields: object) -> Receipt:
        """Return the next receipt."""
        values: dict[str, object] = {
            "deployment_id": deployment,
            "model": release.model,
            "version": release.version,
            "state": state,
            **fields,
        }
        return Receipt(seq=next(self._seq), at_ms=1, session=self.session, **values)  # type: ignore[arg-type]

    def receipts(self, *receipts: Receipt, acknowledged: int | None = None) -> bytes:
        """Return a batch of receipts."""
        batch = ReceiptBatch(device_id=self.id, stream=self.stream, receipts=receipts, acknowledged=acknowledged)
        return seal_batch(batch, self.key)

    def report(
        self, deployment: str, release: Manifest, states: tuple[DeploymentState, ...], reason: Reason | None = None
    ) -> bytes:
        """Return one receipt for each of `states`; the last one has the reason."""
        return self.receipts(
            *(
                self.receipt(
                    deployment,
                    state,
                    release,
                    reason=reason if state == states[-1] else None,
                    progress=Progress(done_bytes=5, total_bytes=10) if state == "downloading" else None,
                    measures={"swap_us": 12} if state == "activated" else {},
                )
                for state in states
            )
        )

    def record(
        self,
        *releases: tuple[Manifest, list[int]],
        errors: dict[str, int] | None = None,
        traps: tuple[TrapCount, ...] = (),
    ) -> TelemetryRecord:
        """Return the next telemetry record: each release with the latencies of its inferences."""
        return TelemetryRecord(
            seq=next(self._telemetry_seq),
            session=self.session,
            from_ms=1,
            to_ms=2,
            device=DeviceUsage(
                cpu_permille=125, memory_used_bytes=10, memory_total_bytes=20, agent_memory_bytes=5, uptime_s=60
            ),
            models=tuple(_usage(release, latencies, errors or {}, traps) for release, latencies in releases),
        )

    def telemetry(self, *records: TelemetryRecord, after: int | None = None) -> bytes:
        """Return a batch of telemetry."""
        batch = TelemetryBatch(device_id=self.id, stream=self.stream, records=records, after=after)
        return seal_batch(batch, self.key)


def _usage(
    release: Manifest, latencies_us: list[int], errors: dict[str, int], traps: tuple[TrapCount, ...]
) -> ModelUsage:
    sketch = LatencySketch()
    for latency_us in latencies_us:
        sketch.record(latency_us)
    return ModelUsage(
        model=release.model,
        version=release.version,
        inferences=len(latencies_us),
        errors=errors,
        latency=sketch.data(),
        memory_peak_bytes=65_536,
        traps=traps,
    )


def slot(model: str, active: str | None) -> SlotReport:
    """Return what a device says about one model."""
    return SlotReport(model=model, active=active)


class FleetCore:
    """The service without its listeners and its link: commands and ingest, on a real database and real files."""

    def __init__(self, workspace: Workspace, core: Core, clock: Clock) -> None:
        self.workspace = workspace
        self.core = core
        self.clock = clock
        self.wants = Wants(core.counters, clock)
        self.topics = workspace.server.topics
        self.ingest = Ingest(core, self.topics, self.wants.add)

    def upload(self, release: Bundle) -> None:
        """Bring the files of a release."""
        for data in release.files:
            ref = FileRef.of(data)
            with self.core.files.upload(ref.digest) as upload:
                upload.write(data)
                upload.commit()
            release_commands.record_file(self.core, ref.digest, ref.size, OPERATOR)

    def targets(self) -> bytes:
        """Return the targets in force."""
        with self.core.store.read() as session:
            row = newest(session, "image", "targets")
        assert row is not None
        return row.raw

    def signed_with(self, release: Bundle) -> bytes:
        """Return the next targets, with one more release, as the operator signs them."""
        signer = self.workspace.operator.targets_signer
        return image.add_release(self.targets(), release.manifest, release.manifest.to_bytes(), signer, self.core.now())

    def release(self, release: Bundle) -> Manifest:
        """Publish a release."""
        self.upload(release)
        release_commands.accept_targets(self.core, self.signed_with(release), OPERATOR)
        return release.manifest

    def enroll(self, device_id: str, *groups: str, is_born: bool = True) -> ScriptedDevice:
        """Take in a device, and hear its birth."""
        device = ScriptedDevice(device_id)
        asked = InviteRequest(device_id=device_id, groups=groups, is_replacement=True)
        invited = device_commands.invite(self.core, asked, OPERATOR)
        request = EnrollRequest(token=invited.token, csr_pem=signing_request(device.key))
        device_commands.enroll(self.core, self.workspace.server.authority, request, OPERATOR)
        if is_born:
            self.say(device, "liveness", device.liveness())
        return device

    def say(self, device: ScriptedDevice, uplink: Uplink, payload: bytes) -> None:
        """Have the service take one message of a device."""
        self.ingest.store([Message(device=device.id, uplink=uplink, payload=payload)])

    def roll_out(self, model: str, version: str | None, *to: str, **fields: object) -> Rollout:
        """Start a rollout."""
        request = RolloutRequest(model=model, version=version, to=to or ("all",), **fields)  # type: ignore[arg-type]
        return rollout_commands.start(self.core, request, OPERATOR, None)

    def publisher(self, outlet: "Recorder") -> Publisher:
        """Return a publisher that a test drives by `settle`."""
        return Publisher(self.core, self.topics, outlet, self.wants)


class Recorder:
    """An outlet that keeps retained messages as a broker does, echoes what is subscribed, and can break."""

    def __init__(self) -> None:
        self.is_connected = True
        self.retained: dict[str, bytes] = {}
        self.log: list[str] = []
        self.fails_after: int | None = None
        self.refused: frozenset[str] = frozenset()
        """Topics that it takes no message for."""
        self.on_message = lambda _topic, _payload: None
        self._subscribed: set[str] = set()

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Take a message, or break."""
        if self.fails_after is not None:
            if self.fails_after == 0:
                self.is_connected = False
                raise BrokerError("the broker went away")
            self.fails_after -= 1
        if topic in self.refused:
            raise BrokerError("the broker refuses")
        self.log.append(topic)
        if retain:
            self.retained[topic] = payload
        if topic in self._subscribed:
            self.on_message(topic, payload)

    def publish_all(self, messages: Iterable[Outgoing]) -> None:
        """Take messages in order."""
        for message in messages:
            self.publish(*message)

    def subscribe(self, *topics: str) -> None:
        """Deliver what is retained."""
        self._subscribed |= set(topics)
        for topic in topics:
            if topic in self.retained:
                self.on_message(topic, self.retained[topic])

    def unsubscribe(self, *topics: str) -> None:
        """Deliver no more."""
        self._subscribed -= set(topics)


@contextmanager
def open_core(path: Path, clock: Clock | None = None) -> Iterator[FleetCore]:
    """Open a new or existing fleet below `path`."""
    clock = clock or Clock()
    home = path / "fleet"
    workspace = Workspace(home) if home.exists() else create_workspace(home, now=clock(), api_port=0, enroll_port=0)
    server = workspace.server
    store = Store(server.database_url)
    try:
        store.migrate()
        trust = Trust(
            snapshot=server.snapshot_signer,
            timestamp=server.timestamp_signer,
            director=server.director_signer,
            image_root=server.image_root,
            director_root=server.director_root,
        )
        world = World(now=clock, random_hex=secrets.token_hex)
        core = Core(store, FileStore(server.files_path), trust, world=world)
        prepare(core, server, telemetry_interval_s=60)
        yield FleetCore(workspace, core, clock)
    finally:
        store.close()
