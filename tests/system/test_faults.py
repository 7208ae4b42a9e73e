"""Processes die and messages get lost at the worst moment; nothing else is."""

import pytest

from controller.delivery.mqtt import MqttLink
from protocol.topics import Topics
from tests.system.rig import Rig, affine, wait_for

pytestmark = pytest.mark.needs("mosquitto")


def test_agent_killed_after_its_self_test_finishes_when_it_comes_back(rig: Rig) -> None:
    """An agent that dies between self-test and swap serves the old release at once and then finishes."""
    device = rig.enroll("edge-1")
    device.start()
    rig.push(2)
    device.stop()
    device.start(fault="install.tested")
    rollout = rig.push(3, wait=False)
    device.wait_killed()

    device.start()

    assert device.infer("affine", 1.0)[0] in ("2.0.0", "3.0.0")
    ended = rig.rollout_ended(rollout["id"])
    assert [d["state"] for d in ended["deployments"]] == ["succeeded"]
    assert device.infer("affine", 1.0) == ("3.0.0", 3.0)


def test_service_killed_mid_rollout_goes_on_where_it_was(rig: Rig) -> None:
    """The service dies while devices install; after a restart the rollout ends, and nothing was lost."""
    devices = [rig.enroll(f"edge-{n}") for n in (1, 2)]
    devices[0].start()
    rollout = rig.push(2, wait=False)
    rig.kill_service()
    devices[1].start()

    rig.start_service()

    ended = rig.rollout_ended(rollout["id"])
    assert sorted(d["state"] for d in ended["deployments"]) == ["succeeded", "succeeded"]


def test_broker_that_is_down_at_start_is_waited_for(stopped_rig: Rig) -> None:
    """Service and agent start without a broker, take orders, and deliver when it comes."""
    rig = stopped_rig
    rig.start_service()
    device = rig.enroll("edge-1")
    device.start()
    rollout = rig.push(2, wait=False)
    assert rollout["state"] == "running"

    rig.start_broker()

    ended = rig.rollout_ended(rollout["id"])
    assert [d["state"] for d in ended["deployments"]] == ["succeeded"]


def test_broker_killed_mid_push_and_back_without_its_memory(rig: Rig) -> None:
    """A broker that comes back having forgotten everything gets it all again."""
    device = rig.enroll("edge-1")
    device.start()
    rig.push(2)
    assert rig.broker is not None
    rig.broker.kill()
    for kept in (rig.folder / "broker").glob("*.db"):
        kept.unlink()
    rollout = rig.push(3, wait=False)
    late = rig.enroll("edge-2")
    late.start()

    rig.start_broker()

    ended = rig.rollout_ended(rollout["id"])
    assert [d["state"] for d in ended["deployments"]] == ["succeeded"]
    again = rig.push(3, "--to", "edge-2")
    assert [d["state"] for d in again["deployments"]] == ["succeeded"]


def test_tampered_chunk_is_refused_and_fetched_again(rig: Rig) -> None:
    """Somebody replaces every chunk on the broker; the device refuses them, asks, and gets the real ones."""
    topics = Topics()
    first = rig.enroll("edge-1")
    first.start()
    rig.push(2)
    assert rig.broker is not None
    link = MqttLink(rig.broker.url, "somebody", version="3.1.1", on_message=lambda *_: None)
    link.start()
    try:
        wait_for("somebody is connected", lambda: link.is_connected)
        blobs = rig.published_blobs()
        assert blobs
        for blob in blobs:
            link.publish(topics.chunk(blob, 0), b"tampered", retain=True)
        second = rig.enroll("edge-2")
        second.start()

        rollout = rig.push(2, "--to", "edge-2")
    finally:
        link.close()

    assert [d["state"] for d in rollout["deployments"]] == ["succeeded"]
    assert second.infer("affine", 1.0) == ("2.0.0", 2.0)


def test_garbage_on_every_topic_changes_nothing(rig: Rig) -> None:
    """Malformed and oversize payloads on every topic that a device or the service reads leave both at work."""
    topics = Topics()
    device = rig.enroll("edge-1")
    device.start()
    rig.push(2)
    assert rig.broker is not None
    link = MqttLink(rig.broker.url, "somebody", version="3.1.1", on_message=lambda *_: None)
    link.start()
    try:
        wait_for("somebody is connected", lambda: link.is_connected)
        down = [topics.timestamp, topics.metadata, topics.director("edge-1"), topics.ack("edge-1")]  # type: ignore[arg-type]
        up = [topics.up("edge-1", kind) for kind in ("liveness", "receipts", "telemetry", "want")]  # type: ignore[arg-type]
        strangers = [topics.up("nobody", "receipts")]  # type: ignore[arg-type]
        for payload in (b"\0garbage", b"{}", b"[" * 5000, b"x" * 6_000_000):
            for topic in (*down, *up, *strangers):
                link.publish(topic, payload, retain=topic in down)
    finally:
        link.close()

    assert device.is_alive()
    assert device.infer("affine", 1.0) == ("2.0.0", 2.0)
    rollout = rig.push(3)
    assert [d["state"] for d in rollout["deployments"]] == ["succeeded"]


def test_assignment_of_another_device_is_not_obeyed(rig: Rig) -> None:
    """One device's signed document, replayed to another, makes it run nothing and break nothing."""
    topics = Topics()
    for name in ("edge-1", "edge-2"):
        rig.enroll(name).start()
    assert rig.broker is not None
    seen: dict[str, bytes] = {}

    def remember(topic: str, payload: bytes, _retained: bool) -> None:
        seen[topic] = payload

    rig.push(2, "--to", "edge-1")
    link = MqttLink(rig.broker.url, "somebody", version="3.1.1", on_message=remember)
    link.start()
    try:
        wait_for("somebody is connected", lambda: link.is_connected)
        theirs = topics.director("edge-1")  # type: ignore[arg-type]
        link.subscribe(theirs)
        wait_for("the document of edge-1 is read", lambda: theirs in seen)
        link.publish(topics.director("edge-2"), seen[theirs], retain=True)  # type: ignore[arg-type]
    finally:
        link.close()

    rig.push(3, "--to", "edge-1")
    assert rig.devices["edge-2"].status()["models"] == []
    rollout = rig.push(3, "--to", "edge-2")
    assert [d["state"] for d in rollout["deployments"]] == ["succeeded"]


@pytest.mark.parametrize(
    ("options", "says", "status"),
    [
        (("--to", "nowhere"), "nowhere", 1),
        (("--version", "not.a.version"), "version", 2),
        (("--model", "Bad Name"), "model name", 2),
    ],
)
def test_bad_options_of_push_are_refused_before_anything_is_signed(
    rig: Rig, options: tuple[str, ...], says: str, status: int
) -> None:
    """An unknown group or device, a bad version or a bad name is refused, and no release is made."""
    rig.enroll("edge-1").start()

    refused = rig.fleetctl("push", str(affine(rig.folder, 2)), *options)

    assert refused.status == status, refused.err
    assert says in refused.err
    assert "Traceback" not in refused.err
    assert rig.ok("releases", "list") == []
