"""Retained messages: how everything reaches a device that was not there when it was published."""

import os

KIB = 1024
MIB = 1024 * KIB


def test_exact_topics_deliver_every_retained_message(connect, prefix):
    """250 exact topics in one subscription deliver all 250, each marked as retained."""
    topics = [f"{prefix}/blob/{number}" for number in range(250)]
    sender, device = connect(), connect()
    for topic in topics:
        sender.publish(topic, topic.encode(), retain=True)
    device.subscribe(*topics)
    received = device.receive(250)
    assert set(topics) == {message.topic for message in received}
    assert all(message.retained and message.payload == message.topic.encode() for message in received)


def test_a_window_of_exact_topics_moves_over_a_large_blob(connect, prefix):
    """Subscribe, take, unsubscribe, 16 chunks at a time: every one of 160 chunks comes once."""
    chunks = [os.urandom(16 * KIB) for _ in range(160)]
    sender, device = connect(), connect()
    for number, chunk in enumerate(chunks):
        sender.publish(f"{prefix}/{number}", chunk, retain=True)
    taken: dict[int, bytes] = {}
    for start in range(0, len(chunks), 16):
        window = [f"{prefix}/{number}" for number in range(start, start + 16)]
        device.subscribe(*window)
        for message in device.receive(16):
            number = int(message.topic.rpartition("/")[2])
            assert number not in taken
            taken[number] = message.payload
        device.unsubscribe(*window)
    assert chunks == [taken[number] for number in range(len(chunks))]
    assert device.messages.empty()


def test_a_newer_message_replaces_the_retained_one(connect, prefix):
    """Who subscribes later gets the last one alone."""
    topic = f"{prefix}/director"
    sender, device = connect(), connect()
    for payload in (b"1", b"2", b"3"):
        sender.publish(topic, payload, retain=True)
    device.subscribe(topic)
    sender.publish(topic, b"end")
    assert [(b"3", True), (b"end", False)] == [m[1:] for m in device.receive(2)]


def test_an_empty_message_clears_the_retained_one(connect, prefix):
    """A cleared topic delivers nothing to who subscribes later; who is there sees the empty message."""
    topic = f"{prefix}/offer"
    sender, early, late = connect(), connect(), connect()
    sender.publish(topic, b"here", retain=True)
    early.subscribe(topic)
    assert [b"here"] == [m.payload for m in early.receive()]
    sender.publish(topic, b"", retain=True)
    assert [b""] == [m.payload for m in early.receive()]
    late.subscribe(topic)
    sender.publish(topic, b"next")
    assert [b"next"] == [m.payload for m in late.receive()]


def test_subscribing_again_delivers_the_retained_message_again(connect, prefix):
    """Unsubscribe, then subscribe: how a device asks once more for what it dropped."""
    topic = f"{prefix}/index"
    sender, device = connect(), connect()
    sender.publish(topic, b"content", retain=True)
    for _ in range(3):
        device.subscribe(topic)
        assert [(b"content", True)] == [m[1:] for m in device.receive()]
        device.unsubscribe(topic)
    assert device.messages.empty()


def test_a_retained_message_comes_before_later_ones(connect, prefix):
    """What was retained before the subscription arrives before what is published after it."""
    sender, device = connect(), connect()
    for number in range(20):
        topic = f"{prefix}/{number}"
        sender.publish(topic, b"retained", retain=True)
        device.subscribe(topic)
        sender.publish(topic, b"later")
        assert [b"retained", b"later"] == [m.payload for m in device.receive(2)]


def test_retained_messages_outlive_their_sender(connect, prefix):
    """A controller that is gone leaves everything it published."""
    topic = f"{prefix}/tuf/timestamp"
    with connect() as sender:
        sender.publish(topic, b"signed", retain=True)
    device = connect()
    device.subscribe(topic)
    assert [b"signed"] == [m.payload for m in device.receive()]


def test_the_largest_messages_of_the_protocol_pass(connect, prefix):
    """256 KiB (a chunk, a report) and 4 MiB (the metadata set) arrive whole, live and retained."""
    sender, live, late = connect(), connect(), connect()
    for size in (256 * KIB, 4 * MIB):
        topic, payload = f"{prefix}/{size}", os.urandom(size)
        live.subscribe(topic)
        sender.publish(topic, payload, retain=True)
        late.subscribe(topic)
        for device in (live, late):
            [message] = device.receive()
            assert payload == message.payload


def test_a_wildcard_hears_every_device(connect, prefix):
    """The controller's one subscription delivers what 120 devices say, retained or not."""
    controller, device = connect(), connect()
    controller.subscribe(f"{prefix}/v1/dev/+/up/+")
    expected = {f"{prefix}/v1/dev/d{number}/up/liveness" for number in range(120)}
    for topic in expected:
        device.publish(topic, b"birth", retain=True)
    assert expected == {m.topic for m in controller.receive(120)}
    device.publish(f"{prefix}/v1/dev/d1/down/ack", b"not an uplink")
    device.publish(f"{prefix}/v1/dev/d1/up/receipts", b"end")
    assert [b"end"] == [m.payload for m in controller.receive()]
