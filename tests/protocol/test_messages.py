"""What devices say: round trips through the envelope, order, whose it is, and numbers out of range."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import dsse, limits
from protocol.codec import decode, encode
from protocol.errors import (
    LimitExceededError,
    MalformedError,
    ProtocolError,
    SignatureError,
    UnknownIdentifierError,
    WrongDeviceError,
)
from protocol.identifiers import parse_device_id
from protocol.lifecycle import DEPLOYMENT
from protocol.messages import (
    LIVENESS_TYPE,
    RECEIPTS_TYPE,
    TELEMETRY_TYPE,
    Ack,
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
    Want,
    open_ack,
    open_liveness,
    open_receipts,
    open_telemetry,
    seal_ack,
    seal_batch,
    seal_liveness,
)
from protocol.sketch import LatencySketch
from tests.protocol.fleet import DEVICE, DIRECTOR, capacity, director_targets, key, sign, signer

SECRET = key("device")
PUBLIC = SECRET.public_key()
OTHER = parse_device_id("other")

counts = st.integers(0, limits.MAX_INTEGER)
short_text = st.text(max_size=20)
receipts = st.builds(
    Receipt,
    seq=st.integers(1, limits.MAX_INTEGER),
    deployment_id=st.text(min_size=1, max_size=64),
    model=st.just("digits"),
    version=st.just("1.2.3-rc.1"),
    state=st.sampled_from(sorted(DEPLOYMENT)),
    at_ms=counts,
    session=counts,
    progress=st.none() | st.builds(Progress, done_bytes=counts, total_bytes=counts),
    reason=st.none() | st.builds(Reason, code=st.just("trap"), message=short_text),
    measures=st.dictionaries(st.sampled_from(["download_ms", "swap_us"]), counts),
)


def receipt(seq: int = 1, **changes: object) -> Receipt:
    """Return one good receipt, with `changes`."""
    values: dict[str, object] = {
        "seq": seq,
        "deployment_id": "d1",
        "model": "digits",
        "version": "1.0.0",
        "state": "verifying",
        "at_ms": 1,
        "session": 1,
        **changes,
    }
    return Receipt(**values)  # type: ignore[arg-type]


def record(seq: int = 1, models: int = 1) -> TelemetryRecord:
    """Return telemetry of one interval and `models` models."""
    sketch = LatencySketch()
    sketch.record(120)
    return TelemetryRecord(
        seq=seq,
        session=3,
        from_ms=1_000,
        to_ms=61_000,
        device=DeviceUsage(
            cpu_permille=125, memory_used_bytes=1, memory_total_bytes=2, agent_memory_bytes=3, uptime_s=4
        ),
        models=tuple(
            ModelUsage(
                model=f"m{n}",
                version="1.0.0",
                inferences=1,
                errors={"trap": 2},
                latency=sketch.data(),
                memory_peak_bytes=65_536,
            )
            for n in range(models)
        ),
    )


def sealed(kind: str, **fields: object) -> bytes:
    """Return an envelope signed by the device, whatever is in it."""
    return dsse.seal(encode(fields), kind, SECRET)


def test_births_round_trip() -> None:
    """A birth says who, what it can, what it runs, and which document it obeys."""
    birth = Liveness(
        device_id=DEVICE,
        session=7,
        online=True,
        at_ms=1,
        agent_version="0.1.0",
        capacity=capacity(),
        slots=(SlotReport(model="digits", active="1.1.0", previous="1.0.0"),),
        director_version=12,
        stream="s" * 64,
    )
    assert birth == open_liveness(seal_liveness(birth, SECRET), DEVICE, PUBLIC)


def test_a_birth_with_an_endless_stream() -> None:
    """A stream has at most 64 characters."""
    birth = Liveness(device_id=DEVICE, session=7, online=True, at_ms=1, stream="s" * 65)
    with pytest.raises(MalformedError):
        open_liveness(seal_liveness(birth, SECRET), DEVICE, PUBLIC)


@pytest.mark.property
@given(st.lists(receipts, min_size=1, max_size=5, unique_by=lambda r: r.seq))
def test_receipts_round_trip(batch: list[Receipt]) -> None:
    """Every receipt of a batch comes back as it was written."""
    sent = ReceiptBatch(device_id=DEVICE, stream="s", receipts=tuple(sorted(batch, key=lambda r: r.seq)))
    assert sent == open_receipts(seal_batch(sent, SECRET), DEVICE, PUBLIC)


def test_telemetry_round_trips() -> None:
    """Telemetry of several intervals and models comes back as it was written."""
    sent = TelemetryBatch(device_id=DEVICE, stream="s", records=(record(1), record(5, models=3)))
    assert sent == open_telemetry(seal_batch(sent, SECRET), DEVICE, PUBLIC)


def test_a_report_of_another_device() -> None:
    """A device cannot speak for another, even with a valid signature of its own."""
    raws = {
        open_liveness: seal_liveness(Liveness(device_id=OTHER, session=1, online=False, at_ms=1), SECRET),
        open_receipts: seal_batch(ReceiptBatch(device_id=OTHER, stream="s", receipts=(receipt(),)), SECRET),
        open_telemetry: seal_batch(TelemetryBatch(device_id=OTHER, stream="s", records=(record(),)), SECRET),
    }
    for parse, raw in raws.items():
        with pytest.raises(WrongDeviceError):
            parse(raw, DEVICE, PUBLIC)
        with pytest.raises(SignatureError):
            parse(raw, OTHER, key("other").public_key())


def test_one_kind_is_not_another() -> None:
    """Receipts sent to the telemetry topic, and so on, are refused by the signed type."""
    raw = seal_batch(ReceiptBatch(device_id=DEVICE, stream="s", receipts=(receipt(),)), SECRET)
    for parse in (open_liveness, open_telemetry):
        with pytest.raises(SignatureError):
            parse(raw, DEVICE, PUBLIC)


@pytest.mark.parametrize("numbers", [(2, 1), (1, 1), (1, 3, 2)])
def test_sequence_numbers_rise(numbers: tuple[int, ...]) -> None:
    """A batch out of order or with a number twice is malformed."""
    batch = ReceiptBatch(device_id=DEVICE, stream="s", receipts=tuple(receipt(n) for n in numbers))
    with pytest.raises(MalformedError, match="do not rise"):
        open_receipts(seal_batch(batch, SECRET), DEVICE, PUBLIC)
    telemetry = TelemetryBatch(device_id=DEVICE, stream="s", records=tuple(record(n) for n in numbers))
    with pytest.raises(MalformedError, match="do not rise"):
        open_telemetry(seal_batch(telemetry, SECRET), DEVICE, PUBLIC)


@pytest.mark.parametrize("after", [3, 4])
def test_what_a_batch_follows_is_before_it(after: int) -> None:
    """A batch does not follow itself; one that follows a gap is fine."""
    batch = ReceiptBatch(device_id=DEVICE, stream="s", receipts=(receipt(3),), after=after)
    with pytest.raises(MalformedError, match="below the first number, 3"):
        open_receipts(seal_batch(batch, SECRET), DEVICE, PUBLIC)
    telemetry = TelemetryBatch(device_id=DEVICE, stream="s", records=(record(3),), after=after)
    with pytest.raises(MalformedError, match="below the first number, 3"):
        open_telemetry(seal_batch(telemetry, SECRET), DEVICE, PUBLIC)
    allowed = TelemetryBatch(device_id=DEVICE, stream="s", records=(record(3),), after=0)
    assert allowed == open_telemetry(seal_batch(allowed, SECRET), DEVICE, PUBLIC)


@pytest.mark.parametrize("count", [0, limits.MAX_RECEIPTS_PER_BATCH + 1])
def test_the_number_of_receipts(count: int) -> None:
    """An empty batch, and one entry too many, are refused."""
    batch = ReceiptBatch(device_id=DEVICE, stream="s", receipts=tuple(receipt(n + 1) for n in range(count)))
    with pytest.raises(LimitExceededError, match="1 to 200 entries"):
        open_receipts(seal_batch(batch, SECRET), DEVICE, PUBLIC)


@pytest.mark.parametrize("stream", ["", "x" * 65])
def test_the_name_of_a_stream(stream: str) -> None:
    """A stream has a name of 1 to 64 characters."""
    batch = ReceiptBatch(device_id=DEVICE, stream=stream, receipts=(receipt(),))
    with pytest.raises(MalformedError, match="stream"):
        open_receipts(seal_batch(batch, SECRET), DEVICE, PUBLIC)


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": 0}, {"seq": -1}, {"seq": 1 << 53}, {"seq": 1.0}, {"seq": None}, {"deployment_id": ""},
        {"deployment_id": "x" * 65}, {"model": "../x"}, {"version": "one"}, {"state": "done"}, {"at_ms": -1},
        {"at_ms": 1 << 63}, {"session": 10**30}, {"progress": {"done_bytes": -1, "total_bytes": 1}}, {"progress": {}},
        {"reason": {"code": "", "message": "m"}}, {"reason": {"code": "c" * 64, "message": "m"}},
        {"reason": {"code": "c", "message": "m" * 501}}, {"measures": {"x": -1}}, {"measures": {"x": 1.5}},
        {"measures": {f"m{n}": n for n in range(33)}}, {"measures": []},
    ],
)  # fmt: skip
def test_bad_receipts(changes: dict[str, object]) -> None:
    """Each field of a receipt has a domain, and is refused outside of it although the signature is good."""
    entry = {**json.loads(encode(receipt())), **changes}
    with pytest.raises(ProtocolError):
        open_receipts(sealed(RECEIPTS_TYPE, device_id=DEVICE, stream="s", receipts=[entry]), DEVICE, PUBLIC)


@pytest.mark.parametrize(
    "changes",
    [
        {"inferences": -1}, {"inferences": 1 << 60}, {"errors": {"trap": -1}},
        {"errors": {f"e{n}": 1 for n in range(65)}}, {"model": "A"}, {"version": ""},
        {"memory_peak_bytes": -1}, {"latency": None},
        {"latency": {"count": 5, "sum_us": 1, "max_us": 1, "buckets": []}},
    ],
)  # fmt: skip
def test_bad_telemetry(changes: dict[str, object]) -> None:
    """Counts below zero or beyond what a database holds never reach it."""
    entry = json.loads(encode(record()))
    entry["models"][0].update(changes)
    with pytest.raises(ProtocolError):
        open_telemetry(sealed(TELEMETRY_TYPE, device_id=DEVICE, stream="s", records=[entry]), DEVICE, PUBLIC)


@pytest.mark.parametrize(
    "traps",
    [
        [("", "conv1")],
        [("k" * 64, "conv1")],
        [("trap", "l" * 97)],
        [("trap", "conv1"), ("trap", "conv1")],
        [("trap", str(n)) for n in range(65)],
    ],
)
def test_bad_counts_of_traps(traps: list[tuple[str, str]]) -> None:
    """Each kind and layer once, within their lengths, and not more than a record may hold."""
    good = msgspec.to_builtins(record(1))
    good["models"][0]["traps"] = [{"kind": kind, "layer": layer, "count": 1} for kind, layer in traps]
    with pytest.raises(MalformedError, match=r"traps|trap's"):
        decode(encode(good), TelemetryRecord, limit_bytes=100_000, what="record")


def test_a_release_twice_in_one_interval() -> None:
    """A record has one entry for each release: adding them up is the device's work."""
    entry = json.loads(encode(record()))
    entry["models"] *= 2
    with pytest.raises(MalformedError, match="each release once"):
        open_telemetry(sealed(TELEMETRY_TYPE, device_id=DEVICE, stream="s", records=[entry]), DEVICE, PUBLIC)


def test_too_many_models_in_one_interval() -> None:
    """Twice the models of a device (old and new release of each) is the most."""
    assert 64 == len(record(models=64).models)
    with pytest.raises(MalformedError, match="too many models"):
        record(models=65)


@pytest.mark.parametrize(
    "changes",
    [
        {"session": -1}, {"session": 1 << 70}, {"online": 1}, {"at_ms": "now"}, {"device_id": "A"}, {"device_id": None},
        {"protocol_versions": [-1]}, {"capacity": {}}, {"slots": [{"model": "[red]"}]},
        {"slots": [{"model": "m", "active": "latest"}]}, {"director_version": -5},
    ],
)  # fmt: skip
def test_bad_births(changes: dict[str, object]) -> None:
    """A birth with a field outside its domain is refused."""
    fields = {"device_id": DEVICE, "session": 1, "online": True, "at_ms": 1, **changes}
    with pytest.raises(ProtocolError):
        open_liveness(sealed(LIVENESS_TYPE, **fields), DEVICE, PUBLIC)


def test_oversize_messages() -> None:
    """Each kind of message has a limit, which is checked before anything else."""
    for parse, limit in (
        (open_liveness, limits.MAX_LIVENESS_BYTES),
        (open_receipts, limits.MAX_REPORT_BYTES),
        (open_telemetry, limits.MAX_REPORT_BYTES),
    ):
        with pytest.raises(LimitExceededError):
            parse(b"{" * (limit + 1), DEVICE, PUBLIC)
    with pytest.raises(LimitExceededError):
        Ack.from_bytes(b" " * (limits.MAX_ACK_BYTES + 1))
    with pytest.raises(LimitExceededError):
        Want.from_bytes(b" " * (limits.MAX_WANT_BYTES + 1))


def test_a_full_batch_fits_its_limit() -> None:
    """A full batch of the longest ordinary receipts can be sent."""
    reason = Reason.of("trap", "x" * 600)
    batch = ReceiptBatch(
        device_id="d" * 63,
        stream="s" * 64,
        receipts=tuple(receipt(n + 1, reason=reason) for n in range(limits.MAX_RECEIPTS_PER_BATCH)),
    )
    assert len(seal_batch(batch, SECRET)) <= limits.MAX_REPORT_BYTES


def test_reasons_are_cut() -> None:
    """A reason of any length becomes one that the protocol allows."""
    assert limits.MAX_REASON_CHARS == len(Reason.of("trap", "x" * 10_000).message)


@pytest.mark.property
@given(st.lists(st.integers(0, 20_000), max_size=limits.MAX_WANTED_CHUNKS))
def test_wants_round_trip(chunks: list[int]) -> None:
    """A want of any chunks fits its limit and comes back."""
    want = Want(kind="blob", digest="ab" * 32, chunks=tuple(chunks))
    assert want == Want.from_bytes(want.to_bytes())
    assert len(want.to_bytes()) <= limits.MAX_WANT_BYTES


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"kind": "everything"}, MalformedError),
        ({"kind": "blob"}, UnknownIdentifierError),
        ({"kind": "offer", "digest": "../../x"}, UnknownIdentifierError),
        ({"kind": "blob", "digest": "ab" * 32, "chunks": [-1]}, MalformedError),
        ({"kind": "blob", "digest": "ab" * 32, "chunks": [0] * 257}, LimitExceededError),
        ({"kind": "metadata", "chunks": [1 << 60]}, MalformedError),
    ],
)
def test_bad_wants(fields: dict[str, object], error: type[Exception]) -> None:
    """What is not signed is checked all the more: kind, digest, and number of chunks."""
    with pytest.raises(error):
        Want.from_bytes(encode(fields))


def test_acks_round_trip() -> None:
    """An ack comes back, and an old one reads as having stored nothing."""
    ack = Ack(device_id="d", stream="s", receipts=7, telemetry=3)
    assert ack == Ack.from_bytes(ack.to_bytes())
    empty = Ack.from_bytes(b'{"device_id":"d","stream":"s"}')
    assert (0, 0) == (empty.receipts, empty.telemetry)


def test_acks_are_of_one_director_for_one_device() -> None:
    """Signed by the role that signs the director documents, and by nobody else, for one device alone."""
    root = DIRECTOR.root()
    raw = seal_ack(Ack(device_id=DEVICE, stream="s", receipts=7), signer("director targets"))
    assert 7 == open_ack(raw, DEVICE, root).receipts
    with pytest.raises(WrongDeviceError):
        open_ack(raw, parse_device_id("line-4-press"), root)
    with pytest.raises(SignatureError):
        open_ack(raw, DEVICE, DIRECTOR.root(targets="another director"))
    with pytest.raises(SignatureError):
        open_ack(seal_ack(Ack(device_id=DEVICE, stream="s"), signer("image timestamp")), DEVICE, root)
    with pytest.raises(LimitExceededError):
        open_ack(raw + b" " * limits.MAX_ACK_BYTES, DEVICE, root)


def test_an_ack_of_the_longest_names_fits_its_limit() -> None:
    """Also with the signatures of two keys, while one replaces the other."""
    ack = Ack(device_id="d" * 63, stream="s" * 64, receipts=limits.MAX_INTEGER, telemetry=limits.MAX_INTEGER)
    envelope = json.loads(seal_ack(ack, signer("director targets")))
    envelope["signatures"] *= 2
    assert len(encode(envelope)) <= limits.MAX_ACK_BYTES


def test_nothing_else_that_the_director_signed_is_an_ack() -> None:
    """The envelope's type is under the signature: a document of the same key cannot pass as an ack."""
    secret = signer("director targets")
    document = sign(director_targets(), "director targets")
    with pytest.raises(ProtocolError):
        open_ack(document, DEVICE, DIRECTOR.root())
    other = dsse.seal_by(Ack(device_id=DEVICE, stream="s").to_bytes(), "application/json", secret)
    with pytest.raises(SignatureError):
        open_ack(other, DEVICE, DIRECTOR.root())
