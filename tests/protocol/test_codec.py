"""Canonical JSON, bounded parsing, and parsers that are fed every kind of rubbish."""

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.assignment import parse_metadata
from protocol.chunks import ChunkIndex, Offer
from protocol.codec import decode, encode, sha256
from protocol.enrollment import EnrollRequest, EnrollResponse, Invite
from protocol.errors import LimitExceededError, MalformedError, ProtocolError
from protocol.manifest import Manifest
from protocol.messages import Ack, Want
from protocol.repository import MetadataSet
from protocol.tensors import ModelSpec
from protocol.wasm import sections

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
PARSERS = {
    "ack": Ack.from_bytes,
    "want": Want.from_bytes,
    "manifest": Manifest.from_bytes,
    "offer": Offer.from_bytes,
    "chunk index": lambda raw: ChunkIndex.from_bytes(raw, sha256(raw)),
    "model spec": ModelSpec.from_bytes,
    "metadata set": MetadataSet.from_bytes,
    "enrol request": EnrollRequest.from_bytes,
    "enrol response": EnrollResponse.from_bytes,
    "metadata": lambda raw: parse_metadata(raw, "metadata"),
    "wasm": lambda raw: list(sections(raw)),
    "invite": lambda raw: Invite.parse(raw.decode("latin-1")),
}


@pytest.mark.property
@given(st.dictionaries(st.text("abcdefghij_-", max_size=8), json_values, max_size=8))
def test_encoding_is_canonical(value: dict[str, object]) -> None:
    """The order of insertion does not show, nothing is wasted on white space, and the value comes back."""
    raw = encode(value)
    assert raw == encode(dict(reversed(value.items())))
    assert value == json.loads(raw)
    assert raw == encode(msgspec.json.decode(raw))


def test_canonical_bytes_are_fixed() -> None:
    """The encoding of a message is what it was: these bytes are hashed and signed."""
    assert (
        b'{"device_id":"d","receipts":7,"stream":"s","telemetry":0}'
        == Ack(device_id="d", stream="s", receipts=7).to_bytes()
    )
    assert '{"a":"é","b":[1,null,true]}'.encode() == encode({"b": [1, None, True], "a": "é"})


def test_what_is_too_long_is_not_parsed() -> None:
    """A message one byte over its limit is refused with both numbers, even when it is not JSON at all."""
    with pytest.raises(LimitExceededError, match=r"ack of at most 1,024 bytes, got 1,025"):
        decode(b"\xff" * 1025, Ack, limit_bytes=1024, what="ack")


def test_unknown_fields_are_ignored() -> None:
    """An older reader understands what a newer writer adds."""
    assert Ack(device_id="d", stream="s", receipts=1) == Ack.from_bytes(
        b'{"device_id":"d","stream":"s","receipts":1,"rate":[1.5,{"x":null}]}'
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"", b" ", b"null", b"[]", b"{}", b'"s"', b"{", b'{"stream":}', b'{"stream":"s"', b'{"stream":"s"}x',
        b'{"stream":null}', b'{"stream":1}', b'{"stream":"s","receipts":1.0}', b'{"stream":"s","receipts":true}',
        b'{"stream":"s","receipts":"1"}', b'{"stream":"s","receipts":-1}', b'{"stream":"s","receipts":NaN}',
        b'{"stream":"s","receipts":9007199254740992}', b'{"stream":"s","receipts":1e999}', b'{"stream":"\xff"}',
        b'{"stream":"\\ud800"}', b"\xef\xbb\xbf{}", b'{"stream":"s","x":' + b"[" * 900 + b"}",
        b'{"stream":"s","receipts":' + b"9" * 900 + b"}",
    ],
)  # fmt: skip
def test_malformed_messages(raw: bytes) -> None:
    """Bad JSON, bad types and numbers out of range raise MalformedError that names the message."""
    with pytest.raises(MalformedError, match="not a valid ack"):
        Ack.from_bytes(raw.replace(b'{"stream"', b'{"device_id":"d","stream"'))


def test_the_message_names_the_field() -> None:
    """The path of the offending field is in the text."""
    with pytest.raises(MalformedError, match=r"\$\.receipts"):
        Ack.from_bytes(b'{"device_id":"d","stream":"s","receipts":"7"}')


def test_deep_nesting_is_refused() -> None:
    """A message that nests too deeply is malformed, not a crash."""
    raw = b'{"image":{},"director":{},"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(MalformedError):
        decode(raw, Ack, limit_bytes=limits.MIB, what="ack")


@pytest.mark.property
@pytest.mark.parametrize("name", PARSERS)
@given(raw=st.binary(max_size=200) | json_values.map(encode))
def test_no_parser_lets_rubbish_through(name: str, raw: bytes) -> None:
    """Random bytes and random JSON raise ProtocolError or parse; no other exception comes out."""
    with contextlib.suppress(ProtocolError):
        PARSERS[name](raw)
