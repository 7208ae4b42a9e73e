"""Topic names: where each message lives, and whose it is when it arrives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import UnknownIdentifierError
from protocol.identifiers import parse_device_id, parse_digest
from protocol.topics import UPLINKS, Topics
from tests.protocol.test_identifiers import names

TOPICS = Topics("plant/7")
DEVICE = parse_device_id("press-1")
BLOB = parse_digest("ab" * 32)


def test_every_topic() -> None:
    """The names are the wire format: they may not change within version 1."""
    assert "plant/7/v1/tuf/timestamp" == TOPICS.timestamp
    assert "plant/7/v1/tuf/metadata" == TOPICS.metadata
    assert f"plant/7/v1/offer/{BLOB}" == TOPICS.offer(BLOB)
    assert f"plant/7/v1/blob/{BLOB}/index" == TOPICS.chunk_index(BLOB)
    assert f"plant/7/v1/blob/{BLOB}/12" == TOPICS.chunk(BLOB, 12)
    assert "plant/7/v1/dev/press-1/down/director" == TOPICS.director(DEVICE)
    assert "plant/7/v1/dev/press-1/down/ack" == TOPICS.ack(DEVICE)
    assert "plant/7/v1/dev/press-1/up/want" == TOPICS.up(DEVICE, "want")
    assert "plant/7/v1/dev/+/up/+" == TOPICS.all_uplinks
    assert "plant/7/v1/controller/memory" == TOPICS.memory_marker
    assert "fleet/v1/tuf/timestamp" == Topics().timestamp


@pytest.mark.property
@given(names, st.sampled_from(UPLINKS), st.text("abz019/-_ é", min_size=1, max_size=40))
def test_uplinks_parse_back(device: str, uplink, prefix: str) -> None:
    """For every device and prefix, an uplink's topic says whose it is."""
    topics = Topics(prefix)
    assert (device, uplink) == topics.parse_up(topics.up(parse_device_id(device), uplink))


@pytest.mark.parametrize(
    "topic",
    [
        "", "plant/7/v1/dev/", "plant/7/v1/dev/press-1/up", "plant/7/v1/dev/press-1/up/", "plant/7/v1/dev/press-1/up/x",
        "plant/7/v1/dev/press-1/up/want/x", "plant/7/v1/dev/press-1/down/ack", "plant/7/v2/dev/press-1/up/want",
        "plant/8/v1/dev/press-1/up/want", "/plant/7/v1/dev/press-1/up/want", "plant/7/v1/dev//up/want",
        "plant/7/v1/dev/PRESS/up/want", "plant/7/v1/dev/+/up/want", "plant/7/v1/dev/a/b/up/want",
    ],
)  # fmt: skip
def test_topics_of_nobody(topic: str) -> None:
    """Anything but an uplink of this fleet and version raises."""
    with pytest.raises(UnknownIdentifierError):
        TOPICS.parse_up(topic)


@pytest.mark.property
@given(st.text(max_size=60))
def test_any_topic_parses_or_raises(text: str) -> None:
    """Random text below the device root is an uplink or an UnknownIdentifierError."""
    for topic in (text, f"plant/7/v1/dev/{text}", f"plant/7/v1/dev/press-1/up/{text}"):
        try:
            device, uplink = TOPICS.parse_up(topic)
        except UnknownIdentifierError:
            continue
        assert topic == TOPICS.up(device, uplink)


@pytest.mark.parametrize("prefix", ["", "a" * 101, "a+b", "#", "$SYS", "a\0b", "a\nb", "\ud800"])
def test_bad_prefixes(prefix: str) -> None:
    """A prefix with a wildcard, a control character or no length is refused when it is set."""
    with pytest.raises(UnknownIdentifierError, match="topic prefix"):
        Topics(prefix)
