"""What a device says and what it is told besides signed metadata.

Births, receipts, telemetry and acks travel in a signed envelope (`protocol.dsse`) under the type beside each class.
Times are Unix milliseconds by the device's own clock; `session` counts the agent's starts.
"""

import itertools
from typing import ClassVar, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.signer import Signer
from tuf.api.metadata import Root, Targets

from protocol import dsse, limits
from protocol.admission import Capacity
from protocol.codec import Count, decode, encode
from protocol.errors import LimitExceededError, MalformedError, WrongDeviceError
from protocol.identifiers import DeviceId, Digest, Version, parse_device_id, parse_digest, parse_model_name
from protocol.lifecycle import DeploymentState
from protocol.sketch import SketchData

_TYPE = "application/vnd.wasmfleet.{}.v1+json"
LIVENESS_TYPE = _TYPE.format("liveness")
RECEIPTS_TYPE = _TYPE.format("receipts")
TELEMETRY_TYPE = _TYPE.format("telemetry")
ACK_TYPE = _TYPE.format("ack")
MAX_STREAM_CHARS = 64


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why: a stable code to count by, and a sentence to read."""

    code: str
    message: str

    @classmethod
    def of(cls, code: str, message: str) -> "Reason":
        """Return a reason whose message is cut to what the protocol allows."""
        return cls(code=code, message=message[: limits.MAX_REASON_CHARS])

    def __post_init__(self) -> None:
        if not 1 <= len(self.code) <= 63 or len(self.message) > limits.MAX_REASON_CHARS:
            raise LimitExceededError("reason: code or message too long")


class SlotReport(msgspec.Struct, frozen=True, kw_only=True):
    """Which releases of one model a device holds."""

    model: str
    active: str | None = None
    previous: str | None = None
    candidate: str | None = None

    def __post_init__(self) -> None:
        parse_model_name(self.model)
        for version in (self.active, self.previous, self.candidate):
            if version is not None:
                Version.parse(version)


class Liveness(msgspec.Struct, frozen=True, kw_only=True):
    """Birth (`online`), or death (`offline`), signed when the agent connects and sent by Last Will.

    Two deaths of one session are the same; a death of another session than that of the last birth says nothing.
    """

    device_id: str
    session: Count
    online: bool
    at_ms: Count
    protocol_versions: tuple[Count, ...] = (1,)
    agent_version: str = ""
    capacity: Capacity | None = None
    slots: tuple[SlotReport, ...] = ()
    director_version: Count = 0
    stream: str = ""
    """That of the reports. Sessions compare within one stream alone: with its memory a device loses their count."""
    problems: dict[str, Reason] = {}
    """What the device cannot do now, by what is concerned: `memory`, or `model/` and its name."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a download is, over all files of the release, in encoded bytes."""

    done_bytes: Count
    total_bytes: Count


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """A device's record of one transition of one deployment."""

    seq: Count
    deployment_id: str
    model: str
    version: str
    state: DeploymentState
    at_ms: Count
    session: Count
    progress: Progress | None = None
    reason: Reason | None = None
    measures: dict[str, Count] = {}
    """Durations of phases and the like; the unit ends the name: `download_ms`, `swap_us`."""

    def __post_init__(self) -> None:
        parse_model_name(self.model)
        Version.parse(self.version)
        if not 1 <= len(self.deployment_id) <= 64 or self.seq < 1 or len(self.measures) > 32:
            raise MalformedError("receipt: bad deployment_id, seq or measures")


class ReceiptBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Receipts in order of `seq`. `stream` is drawn anew when a device lost its memory."""

    payload_type: ClassVar[str] = RECEIPTS_TYPE
    device_id: str
    stream: str
    receipts: tuple[Receipt, ...]
    after: Count | None = None
    """The receipt before the first one: what has a number in between was dropped, and will never come."""
    acknowledged: Count | None = None
    """Up to where everything was acknowledged: a controller that has less was restored from a backup."""


class TrapCount(msgspec.Struct, frozen=True, kw_only=True):
    """How often a release went wrong in one way in one of its layers. An empty `layer` is one that has no name."""

    kind: str
    layer: str
    count: Count

    def __post_init__(self) -> None:
        if not 1 <= len(self.kind) <= 63 or len(self.layer) > limits.MAX_LAYER_CHARS:
            raise MalformedError("telemetry: expected a trap's kind and layer within their lengths")


class ModelUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What one release did in one interval."""

    model: str
    version: str
    inferences: Count
    errors: dict[str, Count]
    latency: SketchData
    memory_peak_bytes: Count
    traps: tuple[TrapCount, ...] = ()
    """Those of the `errors` that happened at some place in the module, by kind and layer; and answers with NaN."""


class DeviceUsage(msgspec.Struct, frozen=True, kw_only=True):
    """How the device fared in one interval."""

    cpu_permille: Count
    memory_used_bytes: Count
    memory_total_bytes: Count
    agent_memory_bytes: Count
    uptime_s: Count


class TelemetryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One interval of one device."""

    seq: Count
    session: Count
    from_ms: Count
    to_ms: Count
    device: DeviceUsage
    models: tuple[ModelUsage, ...] = ()

    def __post_init__(self) -> None:
        if self.seq < 1 or len(self.models) > 2 * limits.MAX_MODELS_PER_DEVICE:
            raise MalformedError("telemetry: bad seq or too many models")
        for usage in self.models:
            parse_model_name(usage.model)
            Version.parse(usage.version)
            if len(usage.errors) > 64:
                raise MalformedError(f"telemetry: expected at most 64 kinds of error, got {len(usage.errors)}")
            places = {(trap.kind, trap.layer) for trap in usage.traps}
            if len(usage.traps) > limits.MAX_TRAPS_PER_USAGE or len(places) != len(usage.traps):
                raise MalformedError(
                    f"telemetry: expected at most {limits.MAX_TRAPS_PER_USAGE} traps, each kind and layer once"
                )
        if len({(usage.model, usage.version) for usage in self.models}) != len(self.models):
            raise MalformedError("telemetry: expected each release once in a record")


class TelemetryBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Telemetry in order of `seq`."""

    payload_type: ClassVar[str] = TELEMETRY_TYPE
    device_id: str
    stream: str
    records: tuple[TelemetryRecord, ...]
    after: Count | None = None
    acknowledged: Count | None = None
    """As in ReceiptBatch."""


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """The controller has stored everything of the device's `stream` up to these numbers; the device may forget it."""

    device_id: str
    stream: str
    receipts: Count = 0
    telemetry: Count = 0

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Ack":
        """Parse the payload of an ack; raises ProtocolError."""
        return decode(raw, cls, limit_bytes=limits.MAX_ACK_BYTES, what="ack")

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of the ack."""
        return encode(self)


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """A retained message did not come: publish it again, once for all who miss it.

    `kind` says what is missed: the image metadata, the director document of this device, the offer of the file
    `digest`, or of the blob `digest` its `chunks`, or its index when `chunks` is empty.
    """

    kind: Literal["metadata", "director", "offer", "blob"]
    digest: Digest | None = None
    chunks: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        if self.kind in ("offer", "blob"):
            parse_digest(self.digest or "")
        if len(self.chunks) > limits.MAX_WANTED_CHUNKS:
            raise LimitExceededError(f"want: expected at most {limits.MAX_WANTED_CHUNKS} chunks")

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Want":
        """Parse a want; raises ProtocolError."""
        return decode(raw, cls, limit_bytes=limits.MAX_WANT_BYTES, what="want")

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of the want."""
        return encode(self)


def seal_ack(ack: Ack, director: Signer) -> bytes:
    """Return an ack as it goes on the wire, signed with the director's key."""
    return dsse.seal_by(ack.to_bytes(), ACK_TYPE, director)


def open_ack(raw: bytes, device: DeviceId, root: Root) -> Ack:
    """Return the ack that the director of `root` signed for `device`; raises ProtocolError."""
    payload = dsse.unseal_by(raw, ACK_TYPE, root, Targets.type, limit_bytes=limits.MAX_ACK_BYTES)
    ack = Ack.from_bytes(payload)
    _check_device(ack.device_id, device)
    return ack


def seal_liveness(liveness: Liveness, key: Ed25519PrivateKey) -> bytes:
    """Return a birth or death as it goes on the wire."""
    return dsse.seal(encode(liveness), LIVENESS_TYPE, key)


def open_liveness(raw: bytes, device: DeviceId, key: Ed25519PublicKey) -> Liveness:
    """Return the birth or death that `device` signed; raises ProtocolError."""
    limit = limits.MAX_LIVENESS_BYTES
    payload = dsse.unseal(raw, LIVENESS_TYPE, key, limit_bytes=limit)
    liveness = decode(payload, Liveness, limit_bytes=limit, what="liveness message")
    _check_device(liveness.device_id, device)
    if len(liveness.stream) > MAX_STREAM_CHARS:
        raise MalformedError(f"liveness message: expected a stream of at most {MAX_STREAM_CHARS} characters")
    if len(liveness.problems) > 2 * limits.MAX_MODELS_PER_DEVICE or any(len(what) > 80 for what in liveness.problems):
        raise MalformedError("liveness message: too many problems, or one with too long a name")
    return liveness


def seal_batch(batch: ReceiptBatch | TelemetryBatch, key: Ed25519PrivateKey) -> bytes:
    """Return a batch as it goes on the wire."""
    return dsse.seal(encode(batch), batch.payload_type, key)


def open_receipts(raw: bytes, device: DeviceId, key: Ed25519PublicKey) -> ReceiptBatch:
    """Return the receipts that `device` signed; raises ProtocolError."""
    payload = dsse.unseal(raw, RECEIPTS_TYPE, key, limit_bytes=limits.MAX_REPORT_BYTES)
    batch = decode(payload, ReceiptBatch, limit_bytes=limits.MAX_REPORT_BYTES, what="receipt batch")
    _check_device(batch.device_id, device)
    _check_order([r.seq for r in batch.receipts], batch.after, batch.stream)
    return batch


def open_telemetry(raw: bytes, device: DeviceId, key: Ed25519PublicKey) -> TelemetryBatch:
    """Return the telemetry that `device` signed; raises ProtocolError."""
    payload = dsse.unseal(raw, TELEMETRY_TYPE, key, limit_bytes=limits.MAX_REPORT_BYTES)
    batch = decode(payload, TelemetryBatch, limit_bytes=limits.MAX_REPORT_BYTES, what="telemetry batch")
    _check_device(batch.device_id, device)
    _check_order([r.seq for r in batch.records], batch.after, batch.stream)
    return batch


def _check_device(named: str, expected: DeviceId) -> None:
    if parse_device_id(named) != expected:
        raise WrongDeviceError(f"expected a message of device {expected}, got one of {named}")


def _check_order(numbers: list[int], after: int | None, stream: str) -> None:
    if not 1 <= len(stream) <= MAX_STREAM_CHARS:
        raise MalformedError(f"report: expected a stream of 1 to {MAX_STREAM_CHARS} characters")
    if not numbers or len(numbers) > limits.MAX_RECEIPTS_PER_BATCH:
        raise LimitExceededError(f"report: expected 1 to {limits.MAX_RECEIPTS_PER_BATCH} entries, got {len(numbers)}")
    if any(b <= a for a, b in itertools.pairwise(numbers)):
        raise MalformedError("report: sequence numbers do not rise")
    if after is not None and after >= numbers[0]:
        raise MalformedError(f"report: expected `after` below the first number, {numbers[0]}, got {after}")
