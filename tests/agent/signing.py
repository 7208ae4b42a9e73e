"""A fleet's signed documents for tests, made as the controller makes them, or wrongly when a test asks for it."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from agent.identity import (
    AUTHORITY,
    CERTIFICATE,
    DIRECTOR_ROOT,
    ENROLLMENT,
    IMAGE_ROOT,
    KEY,
    Enrollment,
    save_identity,
)
from agent.runtime import Caps, assemble, load_model, record_vectors
from controller.trust.director import sign_assignment
from controller.trust.image import (
    add_release,
    build_metadata_set,
    first_targets,
    raise_floor,
    sign_snapshot,
    sign_timestamp,
)
from controller.trust.keys import generate_signer
from controller.trust.roots import sign_director_root, sign_image_root
from protocol.assignment import AgentConfig, AssignedRelease, Assignment, Removal
from protocol.codec import encode
from protocol.identifiers import DeviceId, parse_device_id
from protocol.manifest import Contract, FileRef, Manifest, Provenance, SelfTest, Variant
from protocol.messages import Ack, seal_ack
from protocol.tensors import TensorSpec

DEVICE = parse_device_id("line-3-press")
X = TensorSpec(name="x", datatype="FP32", shape=(1,))
Y = TensorSpec(name="y", datatype="FP32", shape=(1,))
QUICK = AgentConfig(soak_ms=100, telemetry_interval_s=1)


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest and the files that it names."""

    manifest: Manifest
    files: tuple[bytes, ...]

    @property
    def raw(self) -> bytes:
        """The manifest as it is published."""
        return self.manifest.to_bytes()


def scale_wat(factor: float, *, padding_bytes: int = 0, infer: str = "") -> str:
    """Return a model that multiplies one number; `padding_bytes` of incompressible data make it as large as wanted."""
    state = 12345
    padding = []
    for _ in range(padding_bytes):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        padding.append(f"\\{(state >> 16) & 0xFF:02x}")
    pages = 1 + -(-padding_bytes // 65_536)
    data = f'(data (i32.const 65536) "{"".join(padding)}")' if padding else ""
    body = infer or (
        f"(f32.store (i32.const 64) (f32.mul (f32.const {factor}) (f32.load (i32.const 0)))) (i32.const 0)"
    )
    return f"""(module (memory (export "memory") {pages} {pages}) {data}
      (func (export "fleet_input") (param i32) (result i32) (i32.const 0))
      (func (export "fleet_output") (param i32) (result i32) (i32.const 64))
      (func $layer (export "fleet_infer") (result i32) {body}))"""


def bundle(
    version: str = "1.0.0",
    counter: int = 1,
    *,
    model: str = "scale",
    factor: float = 2.0,
    padding_bytes: int = 0,
    wasm: bytes | None = None,
    output: TensorSpec = Y,
    vectors: bytes | None = None,
    memory_bytes: int | None = None,
    deadline_ms: int = 1_000,
    stack_kib: int = 64,
) -> Bundle:
    """Return a release of a model that multiplies by `factor`, or of `wasm`."""
    module = wasm or assemble(scale_wat(factor, padding_bytes=padding_bytes))
    memory = memory_bytes or 65_536 * (1 + -(-padding_bytes // 65_536))
    if vectors is None:
        loaded = load_model(module, (X,), (Y,), Caps(memory_bytes=memory, stack_kib=stack_kib))
        vectors = record_vectors(loaded, seed=1, count=2)
        loaded.close()
    contract = Contract(memory_bytes=memory, stack_kib=stack_kib, deadline_ms=deadline_ms)
    manifest = Manifest(
        model=model,
        version=version,
        release_counter=counter,
        inputs=(X,),
        outputs=(output,),
        variants=(Variant(file=FileRef.of(module), contract=contract),),
        self_test=SelfTest(file=FileRef.of(vectors), count=len(vectors) // (X.size_bytes + output.size_bytes)),
        provenance=Provenance(source=FileRef.of(module), source_name="scale.wat", tool="test"),
    )
    return Bundle(manifest=manifest, files=(module, vectors))


class Signing:
    """The keys of a fleet, and the documents that are in force."""

    def __init__(self, now: datetime | None = None, device: DeviceId = DEVICE) -> None:
        self.device = device
        self.now = now or datetime.fromtimestamp(time.time(), UTC)
        self.image_root_keys = [generate_signer() for _ in range(3)]
        self.director_root_keys = [generate_signer() for _ in range(3)]
        self.targets_key, self.snapshot_key, self.timestamp_key, self.director_key = (
            generate_signer() for _ in range(4)
        )
        self.image_roots = [
            sign_image_root(
                self.image_root_keys,
                targets=self.targets_key,
                snapshot=self.snapshot_key,
                timestamp=self.timestamp_key,
                now=self.now,
            )
        ]
        self.director_roots = [sign_director_root(self.director_root_keys, director=self.director_key, now=self.now)]
        self.targets = first_targets(self.targets_key, self.now)
        self.metadata_version = 0
        self.director_version = 0
        self.device_key = Ed25519PrivateKey.generate()
        self.sign_state()

    def sign_state(self) -> None:
        """Sign snapshot and timestamp anew."""
        self.metadata_version += 1
        self.snapshot = sign_snapshot(self.targets, self.metadata_version, self.snapshot_key, self.now)
        self.timestamp = sign_timestamp(self.snapshot, self.metadata_version, self.timestamp_key, self.now)

    @property
    def metadata(self) -> bytes:
        """The message for the metadata topic."""
        return build_metadata_set([*self.image_roots, self.snapshot, self.targets], self.director_roots)

    def release(self, *bundles: Bundle) -> None:
        """Add releases to the image repository."""
        for each in bundles:
            self.targets = add_release(self.targets, each.manifest, each.raw, self.targets_key, self.now)
        self.sign_state()

    def retire(self, model: str, floor: int) -> None:
        """Raise the floor of a model."""
        self.targets = raise_floor(self.targets, model, floor, self.targets_key, self.now)
        self.sign_state()

    def assignment(self, *bundles: Bundle, device: str = "", **fields: object) -> Assignment:
        """Return the assignment of these releases; deployment ids follow from model and version."""
        releases = tuple(
            AssignedRelease(
                model=b.manifest.model,
                version=b.manifest.version,
                deployment_id=f"deploy-{b.manifest.model}-{b.manifest.version}",
            )
            for b in bundles
        )
        values: dict[str, object] = {"config": QUICK, "releases": releases, **fields}
        return Assignment(device_id=device or self.device, issued_at_ms=int(self.now.timestamp() * 1000), **values)  # type: ignore[arg-type]

    def direct(
        self, assignment: Assignment, *, signer: CryptoSigner | None = None, version: int | None = None
    ) -> bytes:
        """Sign an assignment as the director's next document."""
        self.director_version = version or self.director_version + 1
        return sign_assignment(
            assignment, self.targets, version=self.director_version, now=self.now, signer=signer or self.director_key
        )

    def assign(self, *bundles: Bundle, **fields: object) -> bytes:
        """Sign the assignment of these releases as the director's next document."""
        return self.direct(self.assignment(*bundles, **fields))

    def acknowledge(self, ack: Ack) -> bytes:
        """Sign an ack as the director."""
        return seal_ack(ack, self.director_key)

    def rotate_director(self) -> None:
        """Replace the director's key by another one, in a new root."""
        self.director_key = generate_signer()
        self.director_roots.append(self._next_root(self.director_roots[-1], self.director_root_keys, self.director_key))

    def _next_root(self, raw: bytes, root_keys: list[CryptoSigner], key: CryptoSigner) -> bytes:
        metadata = Metadata[Root].from_bytes(raw)
        root = metadata.signed
        root.version += 1
        for role in ("targets", "snapshot", "timestamp"):
            for old in list(root.roles[role].keyids):
                root.revoke_key(old, role)
            root.add_key(key.public_key, role)
        metadata.signatures.clear()
        for signer in root_keys:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def later(self, **delta: float) -> None:
        """Let time pass at the fleet's signing machines."""
        self.now += timedelta(**delta)

    def enroll(self, state_dir: Path, mqtt_url: str, prefix: str = "fleet") -> None:
        """Write the identity that an enrolment would write."""
        enrollment = Enrollment(device_id=self.device, mqtt_url=mqtt_url, topic_prefix=prefix)
        key = self.device_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        state_dir.mkdir(parents=True, exist_ok=True)
        save_identity(
            state_dir,
            {
                KEY: key,
                CERTIFICATE: b"",
                AUTHORITY: b"",
                IMAGE_ROOT: self.image_roots[0],
                DIRECTOR_ROOT: self.director_roots[0],
                ENROLLMENT: encode(enrollment),
            },
        )


def removal(model: str, version: str) -> Removal:
    """Return the order to remove a model."""
    return Removal(model=model, version=version, deployment_id=f"remove-{model}")
