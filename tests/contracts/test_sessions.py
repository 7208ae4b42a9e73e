"""Sessions: who is there, who is gone, and what waits for whom."""

import secrets

import pytest


def test_a_lost_connection_publishes_the_will(connect, prefix):
    """Death is announced for a device whose connection breaks: at once, and retained for who asks later."""
    topic = f"{prefix}/up/liveness"
    controller = connect()
    controller.subscribe(topic)
    device = connect(will=(topic, b"death"))
    device.publish(topic, b"birth", retain=True)
    assert [b"birth"] == [m.payload for m in controller.receive()]
    device.drop()
    assert [b"death"] == [m.payload for m in controller.receive()]
    late = connect()
    late.subscribe(topic)
    assert [(b"death", True)] == [m[1:] for m in late.receive()]


def test_a_polite_goodbye_publishes_no_will(connect, prefix):
    """A device that disconnects says itself what is to be said."""
    topic = f"{prefix}/up/liveness"
    controller = connect()
    controller.subscribe(topic)
    connect(will=(topic, b"death")).close()
    controller.publish(topic, b"end")
    assert [b"end"] == [m.payload for m in controller.receive()]


@pytest.mark.parametrize("leave", ["close", "drop"])
def test_reports_wait_for_a_controller_that_is_away(connect, prefix, leave):
    """A lasting session gets every QoS 1 message of its absence in order, after a goodbye and after a crash."""
    name = f"controller-{secrets.token_hex(4)}"
    device = connect()
    controller = connect(client_id=name, is_lasting=True)
    assert not controller.is_session_present
    controller.subscribe(f"{prefix}/+/up/receipts")
    getattr(controller, leave)()
    for number in range(300):
        device.publish(f"{prefix}/press-7/up/receipts", b"%d" % number)
    controller = connect(client_id=name, is_lasting=True)
    assert controller.is_session_present
    assert [b"%d" % number for number in range(300)] == [m.payload for m in controller.receive(300)]


def test_messages_of_one_device_stay_in_order(connect, prefix):
    """1,000 messages on one topic arrive in the order in which they were sent."""
    controller, device = connect(), connect()
    controller.subscribe(f"{prefix}/+/up/+")
    for number in range(1_000):
        device.publish(f"{prefix}/press-7/up/telemetry", b"%d" % number)
    assert [b"%d" % number for number in range(1_000)] == [m.payload for m in controller.receive(1_000)]


def test_a_second_connection_of_a_device_ends_the_first(connect, prefix):
    """One client id has one connection: a device that comes back before its old connection timed out is let in."""
    topic = f"{prefix}/down/director"
    first = connect(client_id=f"device-{prefix}")
    second = connect(client_id=f"device-{prefix}")
    second.subscribe(topic)
    second.publish(topic, b"here")
    assert [b"here"] == [m.payload for m in second.receive()]
    assert first._ended.wait(20)
