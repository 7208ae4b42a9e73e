"""What devices say: genuine reports are stored once and acknowledged, everything else changes nothing."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from controller.reads.devices import get_device
from controller.reads.rollouts import get_rollout
from controller.reports.ingest import Message
from controller.store import outbox
from controller.store.models import AckRow, Base, DeviceRow, ReceiptRow, SampleRow, UsageRow
from protocol import limits
from protocol.identifiers import DeviceId
from protocol.lifecycle import DeploymentState
from protocol.manifest import Manifest
from protocol.messages import Progress, Reason, TelemetryRecord, Want
from protocol.topics import UPLINKS, Uplink
from tests.controller.service.fleet import HAPPY, FleetCore, ScriptedDevice, bundle, slot


@pytest.fixture
def release(fleet: FleetCore) -> Manifest:
    return fleet.release(bundle())


def started(fleet: FleetCore, device: ScriptedDevice) -> tuple[str, str]:
    """Start a rollout to one device; return its id and that of the deployment."""
    rollout = fleet.roll_out("double", "1.0.0", device.id)
    return rollout.id, rollout.deployments[0].id


def state_of(fleet: FleetCore, rollout: str) -> tuple[str, DeploymentState]:
    with fleet.core.store.read() as session:
        shown = get_rollout(session, rollout)
    return shown.state, shown.deployments[0].state


def acknowledged(fleet: FleetCore, device: ScriptedDevice) -> tuple[int, int]:
    with fleet.core.store.read() as session:
        row = session.get_one(AckRow, (device.id, device.stream))
        return row.receipts, row.telemetry


def contents(fleet: FleetCore) -> dict[str, list[tuple[object, ...]]]:
    """Return every row of every table."""
    with fleet.core.store.read() as session:
        return {
            name: sorted((tuple(row) for row in session.execute(select(table))), key=repr)
            for name, table in Base.metadata.tables.items()
        }


def test_a_birth_makes_a_device_known(fleet: FleetCore) -> None:
    """What it says about itself is what the operator sees."""
    device = fleet.enroll("press-1", "line-3", is_born=False)
    with fleet.core.store.read() as session:
        assert ("registered", "never_seen") == _state(get_device(session, "press-1"))
    fleet.say(device, "liveness", device.liveness(slots=(slot("double", "0.9.0"),)))
    with fleet.core.store.read() as session:
        shown = get_device(session, "press-1")
    assert ("aarch64", "0.1.0", "online", ("line-3",)) == (
        shown.arch,
        shown.agent_version,
        shown.liveness,
        shown.groups,
    )
    assert (slot("double", "0.9.0"),) == shown.slots


def _state(device) -> tuple[str, str]:  # type: ignore[no-untyped-def]
    return device.state, device.liveness


def test_a_death_ends_its_own_session_alone(fleet: FleetCore) -> None:
    """The death of an older session comes late and says nothing."""
    device = fleet.enroll("press-1")
    device.session = 2
    fleet.say(device, "liveness", device.liveness())
    fleet.say(device, "liveness", device.liveness(online=False, session=1))
    with fleet.core.store.read() as session:
        assert "online" == get_device(session, "press-1").liveness
    fleet.say(device, "liveness", device.liveness(online=False))
    with fleet.core.store.read() as session:
        assert "offline" == get_device(session, "press-1").liveness
    assert 1 == fleet.core.counters.get("ingest.stale_liveness")


def test_a_birth_of_an_older_session_says_nothing(fleet: FleetCore) -> None:
    """A broker that was restored may replay it."""
    device = fleet.enroll("press-1")
    fleet.say(device, "liveness", device.liveness(session=5, agent_version="new"))
    fleet.say(device, "liveness", device.liveness(session=4, agent_version="old"))
    with fleet.core.store.read() as session:
        assert "new" == get_device(session, "press-1").agent_version


def test_a_device_that_lost_its_memory_is_heard_at_once(fleet: FleetCore) -> None:
    """Its sessions begin at 1 again: they are not older ones, and what the old memory says last ends nothing."""
    device = fleet.enroll("press-1")
    device.session = 40
    fleet.say(device, "liveness", device.liveness(director_version=1))
    last_will = device.liveness(online=False)
    device.forget()
    fleet.say(device, "liveness", device.liveness(agent_version="repaired"))
    fleet.say(device, "liveness", last_will)
    with fleet.core.store.read() as session:
        shown = get_device(session, "press-1")
    assert ("online", "repaired", 0) == (shown.liveness, shown.agent_version, shown.acknowledged_director_version)
    fleet.say(device, "liveness", device.liveness(online=False))
    with fleet.core.store.read() as session:
        assert "offline" == get_device(session, "press-1").liveness


def test_births_without_a_stream_compare_by_their_session(fleet: FleetCore) -> None:
    """As agents wrote them that did not know the field yet."""
    device = fleet.enroll("press-1", is_born=False)
    for session_number, version in ((5, "new"), (4, "old")):
        birth = device.liveness(session=session_number, agent_version=version, stream="")
        fleet.say(device, "liveness", birth)
    with fleet.core.store.read() as session:
        assert "new" == get_device(session, "press-1").agent_version


def test_receipts_move_a_deployment_to_its_end(fleet: FleetCore, release: Manifest) -> None:
    """Only success changes what the device has installed; the rollout ends with its last deployment."""
    device = fleet.enroll("press-1")
    rollout, deployment = started(fleet, device)
    fleet.say(device, "receipts", device.report(deployment, release, HAPPY[:-1]))
    with fleet.core.store.read() as session:
        assert [None] == [m.installed for m in get_device(session, "press-1").models]
    assert ("running", "committing") == state_of(fleet, rollout)
    fleet.say(device, "receipts", device.report(deployment, release, HAPPY[-1:]))
    assert ("finished", "succeeded") == state_of(fleet, rollout)
    with fleet.core.store.read() as session:
        (model,) = get_device(session, "press-1").models
        measures = get_rollout(session, rollout).deployments[0].measures
    assert ("1.0.0", "1.0.0", {"swap_us": 12}) == (model.installed, model.desired, measures)
    assert (len(HAPPY), 0) == acknowledged(fleet, device)


def test_progress_is_shown_while_it_lasts(fleet: FleetCore, release: Manifest) -> None:
    """It belongs to the download."""
    device = fleet.enroll("press-1")
    rollout, deployment = started(fleet, device)
    fleet.say(device, "receipts", device.report(deployment, release, HAPPY[:2]))
    with fleet.core.store.read() as session:
        assert Progress(done_bytes=5, total_bytes=10) == get_rollout(session, rollout).deployments[0].progress
    fleet.say(device, "receipts", device.report(deployment, release, HAPPY[2:3]))
    with fleet.core.store.read() as session:
        assert get_rollout(session, rollout).deployments[0].progress is None


def test_a_failure_is_told_with_its_reason_and_is_not_desired_any_more(fleet: FleetCore, release: Manifest) -> None:
    """The device keeps what it has; nothing is tried again for ever."""
    device = fleet.enroll("press-1")
    rollout, deployment = started(fleet, device)
    reason = Reason.of("self_test_failed", "vector 0 differs")
    fleet.say(device, "receipts", device.report(deployment, release, (*HAPPY[:6], "failed"), reason))
    assert ("finished", "failed") == state_of(fleet, rollout)
    with fleet.core.store.read() as session:
        shown = get_device(session, "press-1")
    (model,) = shown.models
    assert ("error", None, None, reason) == (shown.state, model.installed, model.desired, model.reason)


def test_the_same_reports_twice_are_stored_once(fleet: FleetCore, release: Manifest) -> None:
    """A device that missed the acknowledgement repeats itself; it is acknowledged again."""
    device = fleet.enroll("press-1")
    _, deployment = started(fleet, device)
    batch = device.report(deployment, release, HAPPY)
    record = device.telemetry(device.record((release, [100, 200])))
    for _ in range(3):
        fleet.say(device, "receipts", batch)
        fleet.say(device, "telemetry", record)
    with fleet.core.store.read() as session:
        counts = [session.scalar(select(func.count()).select_from(t)) for t in (ReceiptRow, SampleRow, UsageRow)]
        assert "ack" in {item.kind for item in outbox.take(session, "ack", 10)}
    assert [len(HAPPY), 1, 1] == counts
    assert (len(HAPPY), 1) == acknowledged(fleet, device)


def test_reports_behind_a_gap_wait_for_what_is_missing(fleet: FleetCore, release: Manifest) -> None:
    """What is not stored is not acknowledged, or the device would forget it."""
    device = fleet.enroll("press-1")
    rollout, deployment = started(fleet, device)
    first = device.report(deployment, release, HAPPY[:3])
    second = device.report(deployment, release, HAPPY[3:])
    fleet.say(device, "receipts", second)
    assert (0, 0) == acknowledged(fleet, device)
    assert ("finished", "succeeded") == state_of(fleet, rollout)
    fleet.say(device, "receipts", first)
    assert (3, 0) == acknowledged(fleet, device)
    fleet.say(device, "receipts", second)
    assert (len(HAPPY), 0) == acknowledged(fleet, device)
    assert ("finished", "succeeded") == state_of(fleet, rollout)


def test_a_gap_that_the_device_cannot_fill_is_passed_over(fleet: FleetCore, release: Manifest) -> None:
    """A device that had to drop old telemetry repeats what it has, and is not left repeating for ever."""
    device = fleet.enroll("press-1")
    records = [device.record((release, [100])) for _ in range(5)]
    behind = device.telemetry(*records[2:])
    fleet.say(device, "telemetry", behind)
    fleet.say(device, "telemetry", behind)
    assert (0, 0) == acknowledged(fleet, device)
    fleet.say(device, "telemetry", device.telemetry(*records[2:], device.record((release, [100]))))
    assert (0, 6) == acknowledged(fleet, device)


def test_a_device_that_says_what_its_reports_follow_is_believed_at_once(fleet: FleetCore, release: Manifest) -> None:
    """What it dropped is not waited for; what was lost on the way still is."""
    device = fleet.enroll("press-1")
    records = [device.record((release, [100])) for _ in range(6)]
    fleet.say(device, "telemetry", device.telemetry(*records[2:4], after=0))
    assert (0, 4) == acknowledged(fleet, device)
    fleet.say(device, "telemetry", device.telemetry(records[5], after=5))
    assert (0, 4) == acknowledged(fleet, device)
    fleet.say(device, "telemetry", device.telemetry(*records[4:], after=4))
    assert (0, 6) == acknowledged(fleet, device)


def test_a_batch_behind_a_gap_is_not_answered(fleet: FleetCore, release: Manifest) -> None:
    """So that the device repeats what is missing; a batch that is stored already is answered again."""
    device = fleet.enroll("press-1")
    records = [device.record((release, [100])) for _ in range(2)]

    def is_answered(*which: TelemetryRecord) -> bool:
        with fleet.core.store.write() as session:
            outbox.done(session, outbox.take(session, "ack", 10))
        fleet.say(device, "telemetry", device.telemetry(*which))
        with fleet.core.store.read() as session:
            return bool(outbox.take(session, "ack", 10))

    assert not is_answered(records[1])
    assert is_answered(*records)
    assert is_answered(*records)


def test_a_device_that_lost_its_memory_starts_a_new_stream(fleet: FleetCore, release: Manifest) -> None:
    """Its numbers begin at 1 again and are not taken for repetitions."""
    device = fleet.enroll("press-1")
    rollout, deployment = started(fleet, device)
    fleet.say(device, "receipts", device.report(deployment, release, HAPPY[:6]))
    device.forget()
    fleet.say(device, "receipts", device.report(deployment, release, HAPPY[1:]))
    assert ("finished", "succeeded") == state_of(fleet, rollout)
    assert (len(HAPPY) - 1, 0) == acknowledged(fleet, device)


def test_a_receipt_for_the_deployment_of_another_device_changes_nothing(fleet: FleetCore, release: Manifest) -> None:
    """It is kept with the reason, and acknowledged."""
    mine, other = fleet.enroll("press-1"), fleet.enroll("press-2")
    rollout, deployment = started(fleet, mine)
    fleet.say(other, "receipts", other.report(deployment, release, HAPPY))
    assert ("running", "queued") == state_of(fleet, rollout)
    with fleet.core.store.read() as session:
        reasons = set(session.scalars(select(ReceiptRow.ignored_because)))
    assert {"unknown_deployment"} == reasons


def test_a_device_that_is_ahead_of_our_memory_gets_a_newer_document(fleet: FleetCore) -> None:
    """After a restored backup the next version must be above what the device has seen."""
    device = fleet.enroll("press-1")
    fleet.say(device, "liveness", device.liveness(director_version=41))
    with fleet.core.store.read() as session:
        assert ["press-1"] == [item.key for item in outbox.take(session, "assign", 10)]
        assert 41 == get_device(session, "press-1").director_version


HOSTILE: tuple[bytes, ...] = (
    b"",
    b"{}",
    b"null",
    b"\xff\xfe\x00",
    b"[" * 10_000,
    b'{"payload":"","payloadType":"","signatures":[]}',
    b'{"payload":"!!","payloadType":"application/vnd.wasmfleet.liveness.v1+json","signatures":[{"keyid":"","sig":""}]}',
    b'{"kind":"blob","digest":"nope"}',
    b'{"kind":"everything"}',
    b'{"kind":"blob","digest":"' + b"a" * 64 + b'","chunks":[' + b"1," * 300 + b"1]}",
    b"x" * (limits.MAX_REPORT_BYTES + 1),
)


@pytest.mark.parametrize("uplink", UPLINKS)
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_malformed_message_is_counted_and_nothing_else_happens(fleet: FleetCore, uplink: Uplink, number: int) -> None:
    """On every topic: too long, not JSON, not an envelope, not signed."""
    device = fleet.enroll("press-1")
    before = contents(fleet)
    topic = fleet.topics.up(device.id, uplink)
    counted = sum(fleet.core.counters.all().values())
    fleet.ingest.offer(topic, HOSTILE[number])
    fleet.ingest.start()
    fleet.ingest.close()
    assert before == contents(fleet)
    if HOSTILE[number]:
        assert counted < sum(fleet.core.counters.all().values())


@pytest.mark.property
@given(payload=st.binary(max_size=300), topic=st.text(max_size=80))
def test_no_message_breaks_the_ingest(payload: bytes, topic: str) -> None:
    """Any topic, any bytes: the parser refuses or the queue takes them; it never raises."""
    from controller.counters import Counters  # noqa: PLC0415
    from controller.reports.ingest import Ingest  # noqa: PLC0415
    from protocol.topics import Topics  # noqa: PLC0415

    class OnlyCounters:
        counters = Counters()

    ingest = Ingest(OnlyCounters(), Topics("fleet"), lambda _device, _want: None)  # type: ignore[arg-type]
    ingest.offer(topic, payload)
    ingest.offer(f"fleet/v1/dev/{topic}", payload)


def test_a_flood_of_bad_messages_does_not_flood_the_log(fleet: FleetCore, caplog: pytest.LogCaptureFixture) -> None:
    """All are counted; fewer and fewer are logged, and never what they say."""
    for _ in range(1_000):
        fleet.ingest.offer("fleet/v1/dev/NOBODY/up/liveness", b"secret")
    assert 1_000 == fleet.core.counters.get("ingest.bad_identifier")
    assert [2**n for n in range(10)] == [record.so_far for record in caplog.records]  # type: ignore[attr-defined]
    assert "secret" not in caplog.text


def test_a_message_of_an_unknown_device_is_counted(fleet: FleetCore) -> None:
    """Whoever is not enrolled is not heard."""
    stranger = ScriptedDevice("stranger")
    before = contents(fleet)
    fleet.say(stranger, "liveness", stranger.liveness())
    assert (before, 1) == (contents(fleet), fleet.core.counters.get("ingest.unknown_device"))


def test_a_message_signed_with_another_key_is_refused(fleet: FleetCore, release: Manifest) -> None:
    """Knowing a device's name and its deployment is not enough."""
    device = fleet.enroll("press-1")
    _, deployment = started(fleet, device)
    before = contents(fleet)
    impostor = ScriptedDevice("press-1", Ed25519PrivateKey.generate())
    fleet.say(device, "receipts", impostor.report(deployment, release, HAPPY))
    fleet.say(device, "liveness", impostor.liveness(online=False))
    fleet.say(device, "telemetry", impostor.telemetry(impostor.record((release, [1]))))
    assert (before, 3) == (contents(fleet), fleet.core.counters.get("ingest.bad_signature"))


def test_a_genuine_message_on_the_topic_of_another_device_is_refused(fleet: FleetCore) -> None:
    """The broker does not decide who speaks."""
    one, two = fleet.enroll("press-1"), fleet.enroll("press-2")
    before = contents(fleet)
    fleet.ingest.store([Message(device=two.id, uplink="liveness", payload=one.liveness(online=False))])
    assert before == contents(fleet)


def test_a_bug_drops_one_message_and_the_service_goes_on_listening(fleet: FleetCore) -> None:
    """What nobody thought of, here a device whose stored key is damaged, costs no other message."""
    broken, whole = fleet.enroll("press-1"), fleet.enroll("press-2")
    with fleet.core.store.write() as session:
        session.get_one(DeviceRow, broken.id).public_key = b"damaged"
    fleet.ingest.offer(fleet.topics.up(broken.id, "liveness"), broken.liveness())
    for _ in range(2):
        fleet.ingest.offer(fleet.topics.up(whole.id, "telemetry"), whole.telemetry(whole.record()))
    fleet.ingest.start()
    fleet.ingest.close()
    assert (1, (0, 2)) == (fleet.core.counters.get("ingest.broken"), acknowledged(fleet, whole))


def test_a_batch_with_one_bad_message_stores_the_others(fleet: FleetCore, release: Manifest) -> None:
    """One device cannot keep another from being heard."""
    one, two = fleet.enroll("press-1"), fleet.enroll("press-2")
    impostor = ScriptedDevice("press-2")
    fleet.ingest.store(
        [
            Message(device=two.id, uplink="telemetry", payload=impostor.telemetry(impostor.record((release, [1])))),
            Message(device=one.id, uplink="telemetry", payload=one.telemetry(one.record((release, [1])))),
            Message(device=DeviceId("nobody"), uplink="telemetry", payload=b"{}"),
        ]
    )
    with fleet.core.store.read() as session:
        assert ["press-1"] == list(session.scalars(select(SampleRow.device_id)))


def test_a_want_is_handed_on_and_changes_nothing(fleet: FleetCore) -> None:
    """It only makes the service publish again what it has published before."""
    device = fleet.enroll("press-1")
    before = contents(fleet)
    fleet.say(device, "want", Want(kind="director").to_bytes())
    assert ["director"] == [missing.kind for missing in fleet.wants.take(10)]
    assert before == contents(fleet)


def test_latency_sketches_of_many_intervals_add_up(fleet: FleetCore, release: Manifest) -> None:
    """What is stored can be merged by a query."""
    device = fleet.enroll("press-1")
    records: list[TelemetryRecord] = [device.record((release, [n * 100]), errors={"trap": 2}) for n in (1, 2, 3)]
    fleet.say(device, "telemetry", device.telemetry(*records))
    with fleet.core.store.read() as session:
        inferences, errors = session.execute(text("SELECT sum(inferences), sum(errors) FROM usage_log")).one()
    assert (3, 6) == (inferences, errors)
