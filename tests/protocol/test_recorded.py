"""What version 0.1.0 said is still understood: a device works from its broker, a controller from its device.

What the device does here is the acceptance of docs/PROTOCOL.md, written out once more in the order given there.
"""

import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from agent.runtime.instance import Caps, load_model
from agent.runtime.selftest import run_self_test
from protocol.admission import select_variant
from protocol.assignment import verify_assignment
from protocol.chunks import ChunkIndex, Offer
from protocol.codec import Count, encode, sha256
from protocol.compression import decompress
from protocol.enrollment import EnrollRequest, EnrollResponse, Invite
from protocol.errors import MalformedError
from protocol.identifiers import Digest, parse_device_id
from protocol.manifest import FileRef, Manifest
from protocol.messages import TrapCount, Want, open_ack, open_liveness, open_receipts, open_telemetry
from protocol.repository import MetadataSet, check_floor, walk_roots
from protocol.sketch import SketchData
from protocol.tensors import ModelSpec
from protocol.topics import Topics
from protocol.wasm import custom_section
from tests.protocol.fleet import DEVICE, NOW, capacity, key
from tests.protocol.recorded import record

RECORDINGS = sorted(path for path in Path(record.__file__).parent.iterdir() if (path / "broker").is_dir())
TOPICS = Topics()


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.name)
def recording(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def retained(recording: Path) -> Callable[[str], bytes]:
    """What a subscription to a topic delivers."""
    return lambda topic: (recording / "broker" / topic).read_bytes()


def newest(names: dict[str, str], kind: str) -> bytes:
    """Return the file of a kind with the highest version."""
    name = max((n for n in names if n.endswith(f".{kind}.json")), key=lambda n: int(n.split(".")[0]))
    return names[name].encode()


def verified_targets(retained: Callable[[str], bytes], images: dict[str, str], root: Root) -> Targets:
    """Follow timestamp → snapshot → targets, each signed by its role and named by the one before."""
    timestamp_raw = retained(TOPICS.timestamp)
    timestamp = Metadata[Timestamp].from_bytes(timestamp_raw)
    root.verify_delegate(Timestamp.type, timestamp.signed_bytes, timestamp.signatures)
    version = timestamp.signed.snapshot_meta.version
    snapshot_raw = images[f"{version}.snapshot.json"].encode()
    timestamp.signed.snapshot_meta.verify_length_and_hashes(snapshot_raw)
    snapshot = Metadata[Snapshot].from_bytes(snapshot_raw)
    root.verify_delegate(Snapshot.type, snapshot.signed_bytes, snapshot.signatures)
    entry = snapshot.signed.meta["targets.json"]
    targets_raw = images[f"{entry.version}.targets.json"].encode()
    entry.verify_length_and_hashes(targets_raw)
    targets = Metadata[Targets].from_bytes(targets_raw)
    root.verify_delegate(Targets.type, targets.signed_bytes, targets.signatures)
    assert not any(each.signed.is_expired(NOW) for each in (timestamp, snapshot, targets))
    return targets.signed


def fetch(retained: Callable[[str], bytes], file: FileRef) -> bytes:
    """Get one file: its offer, the blob's index, every chunk."""
    offer = Offer.from_bytes(retained(TOPICS.offer(file.digest)))
    source = next(s for s in offer.sources if s.kind == "full")
    index = ChunkIndex.from_bytes(retained(TOPICS.chunk_index(source.blob)), source.blob)
    assert (file.digest, file.size) == (index.digest, index.size)
    encoded = b""
    for number in range(len(index.chunks)):
        chunk = retained(TOPICS.chunk(source.blob, number))
        index.check(number, chunk)
        encoded += chunk
    data = encoded if index.encoding == "identity" else decompress(encoded, limit_bytes=file.size, what="file")
    assert file == FileRef.of(data)
    return data


def test_a_device_installs_the_recorded_release(recording: Path, retained: Callable[[str], bytes]) -> None:
    """From its enrolment and the retained messages alone, a device verifies, fetches, tests and runs the model."""
    enrolled = EnrollResponse.from_bytes((recording / "enrollment" / "response").read_bytes())
    device = parse_device_id(enrolled.device_id)
    metadata = MetadataSet.from_bytes(retained(TOPICS.metadata))
    image_root = walk_roots(enrolled.image_root.encode(), metadata.image).signed
    assert 2 == image_root.version
    targets = verified_targets(retained, metadata.image, image_root)

    director_root = walk_roots(enrolled.director_root.encode(), metadata.director).signed
    verified = verify_assignment(
        retained(TOPICS.director(device)), root=director_root, device_id=device, version_floor=5, now=NOW
    )
    assert record.assignment() == verified.assignment
    (path, digest), *others = verified.digests.items()
    assert [] == others
    entry = targets.targets[path]
    assert digest == entry.hashes["sha256"]

    manifest_file = FileRef(digest=Digest(digest), size=entry.length)
    manifest = Manifest.from_bytes(fetch(retained, manifest_file))
    check_floor(targets, manifest, path)
    variant = select_variant(manifest, capacity())
    module, vectors = fetch(retained, variant.file), fetch(retained, manifest.self_test.file)
    contract = variant.contract
    caps = Caps(memory_bytes=contract.memory_bytes, stack_kib=contract.stack_kib, deadline_ms=contract.deadline_ms)
    model = load_model(module, manifest.inputs, manifest.outputs, caps, stateful=manifest.stateful)
    run_self_test(model, manifest.self_test, vectors)
    assert [struct.pack("<f", 7.0)] == model.infer([struct.pack("<f", 3.0)])
    model.close()


def test_a_controller_understands_the_recorded_device(recording: Path, retained: Callable[[str], bytes]) -> None:
    """Birth, death, receipts, telemetry and wants say what they said when they were recorded."""
    public = key("device").public_key()
    assert record.liveness(is_online=True) == open_liveness(retained(TOPICS.up(DEVICE, "liveness")), DEVICE, public)
    death = (recording / "device" / "death").read_bytes()
    assert record.liveness(is_online=False) == open_liveness(death, DEVICE, public)
    assert record.receipts() == open_receipts(retained(TOPICS.up(DEVICE, "receipts")), DEVICE, public)
    assert record.telemetry() == open_telemetry(retained(TOPICS.up(DEVICE, "telemetry")), DEVICE, public)
    assert (0, 2) == Want.from_bytes(retained(TOPICS.up(DEVICE, "want"))).chunks
    for kind in ("metadata", "director", "offer", "blob"):
        assert kind == Want.from_bytes((recording / "device" / f"want-{kind}").read_bytes()).kind


def test_a_birth_without_a_stream_is_understood() -> None:
    """The field came later; without it the stream is empty."""
    raw = (Path(record.__file__).parent / "v1" / "device" / "birth-without-stream").read_bytes()
    expected = msgspec.structs.replace(record.liveness(is_online=True), stream="")
    assert expected == open_liveness(raw, DEVICE, key("device").public_key())


def test_telemetry_with_traps_is_understood() -> None:
    """The field came later; without it there are none, and a controller that does not know it reads the rest."""
    raw = (Path(record.__file__).parent / "v1" / "device" / "telemetry-with-traps").read_bytes()
    usage = open_telemetry(raw, DEVICE, key("device").public_key()).records[0].models[0]
    assert (TrapCount(kind="unreachable", layer="conv1", count=2),) == usage.traps
    assert msgspec.structs.replace(usage, traps=()) == record.telemetry().records[0].models[0]

    class OldUsage(msgspec.Struct, frozen=True, kw_only=True):
        """`ModelUsage` as version 0.1.0 had it."""

        model: str
        version: str
        inferences: Count
        errors: dict[str, Count]
        latency: SketchData
        memory_peak_bytes: Count

    old = msgspec.json.decode(encode(usage), type=OldUsage)
    assert ("double", 4, {"bad_input": 1}) == (old.model, old.inferences, old.errors)


def test_a_device_understands_its_ack(recording: Path, retained: Callable[[str], bytes]) -> None:
    """What the controller has stored, and says so under the director's key, may be forgotten."""
    enrolled = EnrollResponse.from_bytes((recording / "enrollment" / "response").read_bytes())
    root = walk_roots(enrolled.director_root.encode(), {}).signed
    assert record.ack() == open_ack(retained(TOPICS.ack(DEVICE)), DEVICE, root)


def test_an_ack_from_before_acks_were_signed_is_refused() -> None:
    """Whoever reaches the broker could have written it."""
    folder = Path(record.__file__).parent / "v1"
    enrolled = EnrollResponse.from_bytes((folder / "enrollment" / "response").read_bytes())
    root = walk_roots(enrolled.director_root.encode(), {}).signed
    with pytest.raises(MalformedError):
        open_ack((folder / "device" / "ack-unsigned").read_bytes(), DEVICE, root)


def test_enrolment_is_understood(recording: Path) -> None:
    """An invite that was printed, and a request that was sent, still work."""
    folder = recording / "enrollment"
    invite = Invite.parse((folder / "invite").read_text())
    request = EnrollRequest.from_bytes((folder / "request").read_bytes())
    assert invite.token == request.token
    assert request.csr_pem.startswith("-----BEGIN CERTIFICATE REQUEST-----")


def test_every_recorded_topic_is_one_of_ours(recording: Path) -> None:
    """The recorded broker holds nothing that no message of the protocol would be found under."""
    root = recording / "broker"
    for path in root.rglob("*"):
        if path.is_file():
            parts = path.relative_to(root).as_posix().split("/")
            assert ["fleet", "v1"] == parts[:2]
            assert parts[2] in ("tuf", "offer", "blob", "dev")


def test_files_have_the_names_of_their_content(recording: Path) -> None:
    """A blob's topic is the SHA-256 of its index."""
    for index in (recording / "broker").rglob("index"):
        assert index.parent.name == sha256(index.read_bytes())


def test_the_recorded_module_describes_itself(recording: Path, retained: Callable[[str], bytes]) -> None:
    """The `fleet.model` section of a recorded module parses."""
    for offer_file in (recording / "broker").rglob("offer/*"):
        offer = Offer.from_bytes(offer_file.read_bytes())
        data = fetch(retained, FileRef(digest=offer.digest, size=offer.size))
        if data.startswith(b"\0asm"):
            assert "double" == ModelSpec.from_bytes(custom_section(data, "fleet.model") or b"").name
            return
    raise AssertionError("expected a module in the recording")
