"""A fleet's keys and documents for tests: signs on demand, and signs wrongly when a test asks for it.

Independent of the controller on purpose: what the protocol accepts is tested against documents made by other code.
"""

import hashlib
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from protocol.admission import Capacity
from protocol.assignment import EXTENSION, AssignedRelease, Assignment, build_targets
from protocol.codec import sha256
from protocol.identifiers import parse_device_id
from protocol.manifest import Contract, FileRef, Manifest, Provenance, SelfTest, Variant
from protocol.tensors import TensorSpec

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
DEVICE = parse_device_id("line-3-press")
ROLES = ("targets", "snapshot", "timestamp")


def key(name: str) -> Ed25519PrivateKey:
    """Return the same throw-away key for the same name, so that recordings can be made again."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"wasmfleet test key {name}".encode()).digest())


def signer(name: str) -> Signer:
    """Return the TUF signer of the key `name`."""
    return CryptoSigner(key(name))


def manifest(model: str = "double", version: str = "1.0.0", counter: int = 1, module: bytes = b"\0asm") -> Manifest:
    """Return the manifest of a model that takes one number and gives one."""
    vectors = bytes(16)
    return Manifest(
        model=model,
        version=version,
        release_counter=counter,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(1,)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(1,)),),
        variants=(Variant(file=FileRef.of(module), contract=Contract(memory_bytes=65_536)),),
        self_test=SelfTest(file=FileRef.of(vectors), count=2),
        provenance=Provenance(source=FileRef.of(b"source"), source_name="double.wat", tool="wasmfleet 0.1.0"),
    )


def capacity(**changes: object) -> Capacity:
    """Return what a small ARM board offers, with `changes`."""
    values: dict[str, object] = {
        "arch": "aarch64",
        "cpus": 4,
        "memory_bytes": 1 << 30,
        "features": ("simd128", "relaxed_simd"),
        "runtime": "wasmtime/50.0.1",
        "max_model_memory_bytes": 128 << 20,
        "max_stack_kib": 1024,
        "max_deadline_ms": 10_000,
        "disk_quota_bytes": 512 << 20,
        **changes,
    }
    return Capacity(**values)  # type: ignore[arg-type]


class Domain:
    """One TUF domain: a root with three offline keys, of which two sign, and a key for each other role."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root_keys = tuple(f"{name} root {n}" for n in (1, 2, 3))

    def root(self, version: int = 1, root_keys: tuple[str, ...] | None = None, targets: str | None = None) -> Root:
        """Return an unsigned root that trusts `root_keys`, and the key `targets` for the role of that name."""
        root = Root(version=version, expires=NOW + timedelta(days=365), consistent_snapshot=False)
        for root_key in root_keys or self.root_keys:
            root.add_key(signer(root_key).public_key, "root")
        root.roles["root"].threshold = 2
        for role in ROLES:
            used = targets if role == "targets" and targets else f"{self.name} {role}"
            root.add_key(signer(used).public_key, role)
        return root

    def signed_root(self, root: Root, by: tuple[str, ...] | None = None) -> bytes:
        """Return `root` with the signatures of `by`, as it is stored and sent."""
        return sign(root, *(by or self.root_keys[:2]))


def sign(signed: Root | Targets | Snapshot | Timestamp, *keys: str) -> bytes:
    """Return `signed` with one signature for each of `keys`."""
    metadata = Metadata(signed)
    for name in keys:
        metadata.sign(signer(name), append=True)
    return metadata.to_bytes()


IMAGE = Domain("image")
DIRECTOR = Domain("director")


def image_targets(*manifests: Manifest, floors: dict[str, int] | None = None, version: int = 1) -> Targets:
    """Return the image repository's targets for these releases."""
    targets = Targets(version=version, expires=NOW + timedelta(days=365))
    for each in manifests:
        path = f"models/{each.model}/{each.version}.json"
        raw = each.to_bytes()
        targets.targets[path] = TargetFile(
            len(raw),
            {"sha256": sha256(raw)},
            path,
            {"custom": {"model": each.model, "version": each.version, "release_counter": each.release_counter}},
        )
    targets.unrecognized_fields[EXTENSION] = {"min_release_counter": floors or {}}
    return targets


def snapshot(targets_raw: bytes, version: int = 1) -> Snapshot:
    """Return the snapshot that names these targets."""
    meta = MetaFile(1, len(targets_raw), {"sha256": sha256(targets_raw)})
    return Snapshot(version=version, expires=NOW + timedelta(days=7), meta={"targets.json": meta})


def timestamp(snapshot_raw: bytes, version: int = 1) -> Timestamp:
    """Return the timestamp that names this snapshot."""
    meta = MetaFile(1, len(snapshot_raw), {"sha256": sha256(snapshot_raw)})
    return Timestamp(version=version, expires=NOW + timedelta(days=1), snapshot_meta=meta)


def assignment(*releases: Manifest, device: str = DEVICE, **fields: object) -> Assignment:
    """Return the desired state of `device`: these releases."""
    assigned = tuple(
        AssignedRelease(model=r.model, version=r.version, deployment_id=f"d{n}") for n, r in enumerate(releases)
    )
    issued_at_ms = int(NOW.timestamp() * 1000)
    return Assignment(device_id=device, issued_at_ms=issued_at_ms, releases=assigned, **fields)  # type: ignore[arg-type]


def director_targets(*releases: Manifest, version: int = 1, device: str = DEVICE) -> Targets:
    """Return the unsigned director document that assigns these releases."""
    return build_targets(
        assignment(*releases, device=device),
        dict(image_targets(*releases).targets),
        version=version,
        expires=NOW + timedelta(days=7),
    )
