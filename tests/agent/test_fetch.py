"""The window core: whatever the order in which messages come, and whatever else comes, the file arrives."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.fetch import FIRST_PATIENCE_MS, MAX_PATIENCE_MS, WINDOW, ChunkFound, FileFetch, IndexFound
from protocol import limits
from protocol.chunks import Blob, Offer, Source, cut
from protocol.codec import sha256
from protocol.manifest import FileRef
from protocol.messages import Reason, Want
from protocol.topics import Topics

TOPICS = Topics()
DATA = random.Random(1).randbytes(10_000)
FILE = FileRef.of(DATA)
BLOB = cut(DATA, 256)  # 40 chunks


def new_fetch(file: FileRef = FILE) -> FileFetch:
    return FileFetch(file, TOPICS, random.Random(1), 0)


def content(topic: str, blob: Blob = BLOB) -> bytes:
    """Return what an honest broker retains on `topic`."""
    if topic == TOPICS.offer(blob.index.digest):
        return blob.offer.to_bytes()
    if topic == TOPICS.chunk_index(blob.blob):
        return blob.index.to_bytes()
    return blob.chunk(int(topic.rpartition("/")[2]))


def with_index() -> FileFetch:
    """Return a fetch that has just learnt which chunks there are."""
    fetch = new_fetch()
    fetch.receive(TOPICS.offer(FILE.digest), BLOB.offer.to_bytes(), 0)
    found = fetch.receive(TOPICS.chunk_index(BLOB.blob), BLOB.index.to_bytes(), 0)
    assert isinstance(found, IndexFound)
    fetch.resume(frozenset(), 0)
    return fetch


@pytest.mark.property
@given(st.data())
def test_file_arrives_whatever_the_broker_does(data: st.DataObject) -> None:
    """Messages are lost, repeated, mixed up, tampered with and late; each chunk is found once, and it is right."""
    rng = random.Random(data.draw(st.integers(0, 1 << 32)))
    fetch, found, now_ms = new_fetch(), {}, 0
    present = frozenset(data.draw(st.sets(st.integers(0, 39), max_size=40)))
    while not fetch.is_complete:
        now_ms += 1
        topics = list(fetch.topics())
        assert len(topics) <= WINDOW
        topic = rng.choice(topics)
        fate = rng.random()
        payload = (
            content(topic) if fate > 0.2 else rng.choice([b"", b"{}", b"x" * 256, content(topic)[:-1], BLOB.chunk(3)])
        )
        event = fetch.receive(topic, payload, now_ms) if fate > 0.1 else None
        if isinstance(event, IndexFound):
            fetch.resume(present, now_ms)
        elif isinstance(event, ChunkFound):
            assert event.number not in found
            found[event.number] = event.data
    assert set(range(40)) - present == set(found)
    assert all(BLOB.chunk(number) == chunk for number, chunk in found.items())
    assert fetch.done_bytes == fetch.total_bytes == BLOB.index.encoded_size
    assert {} == fetch.topics()


def test_window_is_bounded_and_moves_on_in_halves() -> None:
    """Eight exact topics at a time; when four are here, four more are asked for."""
    fetch = with_index()
    assert {TOPICS.chunk(BLOB.blob, n) for n in range(8)} == set(fetch.topics())
    for number in range(4):
        fetch.receive(TOPICS.chunk(BLOB.blob, number), BLOB.chunk(number), 0)
    assert {TOPICS.chunk(BLOB.blob, n) for n in range(4, 12)} == set(fetch.topics())


def test_every_topic_has_the_bound_of_its_kind() -> None:
    """The link drops what is larger before anybody reads it."""
    fetch = new_fetch()
    assert [limits.MAX_OFFER_BYTES] == list(fetch.topics().values())
    fetch.receive(TOPICS.offer(FILE.digest), BLOB.offer.to_bytes(), 0)
    assert [limits.MAX_CHUNK_INDEX_BYTES] == list(fetch.topics().values())
    assert {limits.MAX_CHUNK_BYTES} == set(with_index().topics().values())


def test_what_does_not_come_is_wanted_ever_more_patiently() -> None:
    """The pauses between questions double, with jitter, up to a bound."""
    fetch, asked, now_ms = with_index(), [], 0
    while len(asked) < 9:
        now_ms += 100
        asked += [(now_ms, want) for want in fetch.overdue(now_ms)]
    assert Want(kind="blob", digest=BLOB.blob, chunks=tuple(range(8))) == asked[0][1]
    pauses = [later[0] - earlier[0] for earlier, later in itertools.pairwise(asked)]
    assert FIRST_PATIENCE_MS * 1.2 <= pauses[0] <= FIRST_PATIENCE_MS * 2.6
    assert all(pause <= MAX_PATIENCE_MS * 1.3 for pause in pauses)
    assert pauses[-1] >= MAX_PATIENCE_MS * 0.7
    assert fetch.problem is not None
    assert "waiting" == fetch.problem.code


def test_offer_and_index_are_wanted_too() -> None:
    """Each stage asks for what it misses."""
    fetch = new_fetch()
    assert (Want(kind="offer", digest=FILE.digest),) == fetch.overdue(60_000)
    fetch.receive(TOPICS.offer(FILE.digest), BLOB.offer.to_bytes(), 60_000)
    assert (Want(kind="blob", digest=BLOB.blob),) == fetch.overdue(120_000)


def test_bad_chunk_is_asked_for_soon() -> None:
    """A tampered message does not cost the whole patience."""
    fetch = with_index()
    fetch.receive(TOPICS.chunk(BLOB.blob, 0), b"tampered", 0)
    assert fetch.next_ms <= FIRST_PATIENCE_MS // 4
    assert fetch.problem is not None
    assert "digest_mismatch" == fetch.problem.code
    fetch.receive(TOPICS.chunk(BLOB.blob, 0), BLOB.chunk(0), 0)
    assert None is fetch.problem


def test_sources_of_unknown_kinds_are_skipped() -> None:
    """A newer controller may offer deltas; this agent takes the full blob."""
    sources = (Source(kind="delta", blob=sha256(b"d"), encoded_size=1), *BLOB.offer.sources)
    fetch = new_fetch()
    offer = Offer(digest=FILE.digest, size=FILE.size, sources=sources)
    fetch.receive(TOPICS.offer(FILE.digest), offer.to_bytes(), 0)
    assert BLOB.blob == fetch.blob


def test_offer_without_a_usable_source_says_so() -> None:
    """Nothing that this agent knows: it says so and asks again."""
    fetch = new_fetch()
    fetch.receive(TOPICS.offer(FILE.digest), Offer(digest=FILE.digest, size=FILE.size, sources=()).to_bytes(), 0)
    assert None is fetch.blob
    assert fetch.problem is not None
    assert "no way that this agent knows" in fetch.problem.message


def test_offer_and_index_of_another_file_are_refused() -> None:
    """An unsigned hint cannot make the device fetch something else or something larger."""
    other = cut(b"other" * 1000, 256)
    fetch = new_fetch()
    fetch.receive(TOPICS.offer(FILE.digest), other.offer.to_bytes(), 0)
    assert None is fetch.blob
    lying = Offer(digest=FILE.digest, size=FILE.size, sources=other.offer.sources)
    fetch.receive(TOPICS.offer(FILE.digest), lying.to_bytes(), 0)
    fetch.receive(TOPICS.chunk_index(other.blob), other.index.to_bytes(), 0)
    assert (None, None) == (fetch.blob, fetch.index)
    both = Offer(digest=FILE.digest, size=FILE.size, sources=(*other.offer.sources, *BLOB.offer.sources))
    fetch.receive(TOPICS.offer(FILE.digest), both.to_bytes(), 0)
    assert BLOB.blob == fetch.blob


def test_blob_that_was_a_lie_is_not_taken_again_until_asked_anew() -> None:
    """After a blob that did not hold the file, another source is taken; a new answer may name it again."""
    fetch = with_index()
    fetch.restart(Reason.of("digest_mismatch", "another file"), 0, is_lie=True)
    fetch.receive(TOPICS.offer(FILE.digest), BLOB.offer.to_bytes(), 0)
    assert None is fetch.blob
    fetch.overdue(60_000)
    fetch.receive(TOPICS.offer(FILE.digest), BLOB.offer.to_bytes(), 60_000)
    assert BLOB.blob == fetch.blob


def test_restart_without_a_lie_takes_the_same_blob_again() -> None:
    """A full disk says nothing against the source."""
    fetch = with_index()
    fetch.restart(Reason.of("disk_full", "full"), 0, is_lie=False)
    fetch.receive(TOPICS.offer(FILE.digest), BLOB.offer.to_bytes(), 0)
    assert BLOB.blob == fetch.blob
