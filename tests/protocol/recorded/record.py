"""Records one of every message as version 0.1.0 wrote it: `python -m tests.protocol.recorded.record DIRECTORY`.

The recording in `v1/` was made once and stays: every later version must understand it. To record what a later version
writes, give another directory. Keys are derived from their names, so the same version records the same bytes; only the
certificates differ from run to run, because ECDSA is random.
"""

import struct
import sys
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.runtime.module import assemble
from controller.trust import authority, director, image
from protocol import messages
from protocol.assignment import AgentConfig, AssignedRelease, Assignment, Removal
from protocol.chunks import cut
from protocol.codec import encode, sha256
from protocol.enrollment import EnrollRequest, EnrollResponse, Invite
from protocol.manifest import Contract, FileRef, Manifest, Provenance, SelfTest, Variant
from protocol.messages import Ack, Liveness, Progress, Reason, Receipt, ReceiptBatch, SlotReport, Want
from protocol.sketch import LatencySketch
from protocol.tensors import ModelSpec
from protocol.topics import Topics
from protocol.wasm import custom_section
from tests.protocol.fleet import DEVICE, DIRECTOR, IMAGE, NOW, capacity, key, sign, signer

NOW_MS = int(NOW.timestamp() * 1000)
TOPICS = Topics()
STREAM = "6fd9c2b1a07e4d35"
DEPLOYMENT = "8c1f3e0a7b52"


def record(folder: Path) -> None:
    """Write the whole recording below `folder`, which holds `module.wat`."""
    module = assemble((folder / "module.wat").read_text())
    vectors = b"".join(struct.pack("<ff", x, 2 * x + 1) for x in (-1.5, 0.0, 3.25, 1000.0))
    releases = [_manifest(module, vectors, f"1.{n}.0", n + 1) for n in (0, 1)]
    broker = {**_repository(releases), **_files(module, vectors, releases[1].to_bytes()), **_device(releases)}
    for topic, payload in broker.items():
        _write(folder / "broker" / topic, payload)
    _write(folder / "device" / "death", messages.seal_liveness(liveness(is_online=False), key("device")))
    for want in (
        Want(kind="metadata"),
        Want(kind="director"),
        Want(kind="offer", digest=sha256(module)),
        Want(kind="blob", digest=cut(module).blob),
    ):
        _write(folder / "device" / f"want-{want.kind}", want.to_bytes())
    for name, payload in _enrollment().items():
        _write(folder / "enrollment" / name, payload)


def _write(path: Path, payload: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)


def _manifest(module: bytes, vectors: bytes, version: str, counter: int) -> Manifest:
    spec = ModelSpec.from_bytes(custom_section(module, "fleet.model") or b"")
    return Manifest(
        model="double",
        version=version,
        release_counter=counter,
        inputs=spec.inputs,
        outputs=spec.outputs,
        variants=(Variant(file=FileRef.of(module), contract=Contract(memory_bytes=65_536)),),
        self_test=SelfTest(file=FileRef.of(vectors), count=4),
        provenance=Provenance(source=FileRef.of(module), source_name="module.wat", tool="wasmfleet 0.1.0"),
    )


def _repository(releases: list[Manifest]) -> dict[str, bytes]:
    """Both TUF domains: an image root whose root keys were replaced once, and three versions of the targets."""
    first, second = (IMAGE.root(1), IMAGE.root(2, root_keys=("image root 4", "image root 5", "image root 6")))
    for root in (first, second):
        root.consistent_snapshot = True
    roots = [sign(first, *IMAGE.root_keys), sign(second, *IMAGE.root_keys[:2], "image root 4", "image root 5")]
    targets = image.first_targets(signer("image targets"), NOW)
    for release in releases:
        targets = image.add_release(targets, release, release.to_bytes(), signer("image targets"), NOW)
    targets = image.raise_floor(targets, "double", 2, signer("image targets"), NOW)
    snapshot = image.sign_snapshot(targets, 3, signer("image snapshot"), NOW)
    timestamp = image.sign_timestamp(snapshot, 7, signer("image timestamp"), NOW)
    director_root = sign(DIRECTOR.root(1), *DIRECTOR.root_keys)
    return {
        TOPICS.timestamp: timestamp,
        TOPICS.metadata: image.build_metadata_set([*roots, snapshot, targets], [director_root]),
        TOPICS.director(DEVICE): director.sign_assignment(
            assignment(), targets, version=5, now=NOW, signer=signer("director targets")
        ),
    }


def assignment() -> Assignment:
    """Return what the director wants of the device."""
    return Assignment(
        device_id=DEVICE,
        issued_at_ms=NOW_MS,
        releases=(AssignedRelease(model="double", version="1.1.0", deployment_id=DEPLOYMENT),),
        removals=(Removal(model="triple", version="0.9.0", deployment_id="2b90d41c66aa"),),
        canceled=("f00a15b3c9d8",),
        config=AgentConfig(telemetry_interval_s=60, soak_ms=5_000, max_boot_attempts=3),
    )


def _files(*files: bytes) -> dict[str, bytes]:
    retained = {}
    for data in files:
        # Small chunks, so that the recording has files of several.
        blob = cut(data, 256)
        retained[TOPICS.offer(blob.index.digest)] = blob.offer.to_bytes()
        retained[TOPICS.chunk_index(blob.blob)] = blob.index.to_bytes()
        for number in range(len(blob.index.chunks)):
            retained[TOPICS.chunk(blob.blob, number)] = blob.chunk(number)
    return retained


def liveness(*, is_online: bool) -> Liveness:
    """Return the birth or the death of the device."""
    if not is_online:
        return Liveness(device_id=DEVICE, session=12, stream=STREAM, online=False, at_ms=NOW_MS)
    return Liveness(
        device_id=DEVICE,
        session=12,
        stream=STREAM,
        online=True,
        at_ms=NOW_MS,
        agent_version="0.1.0",
        capacity=capacity(cpu_features=("asimddp", "fp16")),
        slots=(SlotReport(model="double", active="1.0.0", candidate="1.1.0"),),
        director_version=4,
    )


def _device(releases: list[Manifest]) -> dict[str, bytes]:
    """What the device says while it installs release 1.1.0, and what it is told."""
    secret = key("device")
    return {
        TOPICS.up(DEVICE, "liveness"): messages.seal_liveness(liveness(is_online=True), secret),
        TOPICS.up(DEVICE, "receipts"): messages.seal_batch(receipts(), secret),
        TOPICS.up(DEVICE, "telemetry"): messages.seal_batch(telemetry(), secret),
        TOPICS.up(DEVICE, "want"): Want(
            kind="blob", digest=cut(releases[1].to_bytes(), 256).blob, chunks=(0, 2)
        ).to_bytes(),
        TOPICS.ack(DEVICE): messages.seal_ack(ack(), signer("director targets")),
    }


def ack() -> Ack:
    """Return what the controller has stored of the device's reports."""
    return Ack(device_id=DEVICE, stream=STREAM, receipts=40, telemetry=17)


def receipts() -> ReceiptBatch:
    """Return what the device reports of one deployment."""
    told: list[tuple[str, dict[str, object]]] = [
        ("retrieved", {}),
        ("downloading", {"progress": Progress(done_bytes=256, total_bytes=1_068)}),
        ("downloaded", {"measures": {"download_ms": 84}}),
        ("verifying", {}),
        ("installing", {"measures": {"verify_ms": 2}}),
        ("testing", {"measures": {"compile_ms": 31}}),
        ("activated", {"measures": {"swap_us": 14}}),
        ("rolled_back", {"reason": Reason.of("trap", "wasm trap: integer divide by zero in double.infer")}),
    ]
    entries = tuple(
        Receipt(
            seq=41 + number,
            deployment_id=DEPLOYMENT,
            model="double",
            version="1.1.0",
            state=state,  # type: ignore[arg-type]
            at_ms=NOW_MS + 100 * number,
            session=12,
            **more,  # type: ignore[arg-type]
        )
        for number, (state, more) in enumerate(told)
    )
    return ReceiptBatch(device_id=DEVICE, stream=STREAM, receipts=entries)


def telemetry() -> messages.TelemetryBatch:
    """Return what the device reports of one minute."""
    sketch = LatencySketch()
    for latency_us in (104, 110, 97, 350):
        sketch.record(latency_us)
    usage = messages.ModelUsage(
        model="double",
        version="1.0.0",
        inferences=4,
        errors={"bad_input": 1},
        latency=sketch.data(),
        memory_peak_bytes=65_536,
    )
    device = messages.DeviceUsage(
        cpu_permille=34,
        memory_used_bytes=412_090_368,
        memory_total_bytes=1_073_741_824,
        agent_memory_bytes=48_234_496,
        uptime_s=86_512,
    )
    entry = messages.TelemetryRecord(
        seq=18, session=12, from_ms=NOW_MS - 60_000, to_ms=NOW_MS, device=device, models=(usage,)
    )
    return messages.TelemetryBatch(device_id=DEVICE, stream=STREAM, records=(entry,))


def _enrollment() -> dict[str, bytes]:
    fleet_ca = authority.create_authority(NOW)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ignored")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key("device"), None)
    csr_pem = request.public_bytes(Encoding.PEM).decode()
    certificate = fleet_ca.issue_device_certificate(csr_pem, DEVICE, NOW + timedelta(hours=1))
    token = "cmVjb3JkZWQgdG9rZW4sIG5vdCBhIHNlY3JldA"
    first_root = IMAGE.root(1)
    first_root.consistent_snapshot = True
    response = EnrollResponse(
        device_id=DEVICE,
        certificate_pem=certificate.pem,
        ca_pem=fleet_ca.pair.certificate_pem.decode(),
        mqtt_url="mqtts://10.20.0.5:8883",
        topic_prefix=TOPICS.prefix,
        image_root=sign(first_root, *IMAGE.root_keys).decode(),
        director_root=sign(DIRECTOR.root(1), *DIRECTOR.root_keys).decode(),
    )
    invite = Invite(url="https://10.20.0.5:8471", ca_sha256=fleet_ca.fingerprint, token=token)
    return {
        "invite": str(invite).encode(),
        "request": encode(EnrollRequest(token=token, csr_pem=csr_pem)),
        "response": encode(response),
    }


if __name__ == "__main__":
    record(Path(sys.argv[1]))
