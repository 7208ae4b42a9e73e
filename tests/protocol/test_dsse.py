"""Signed envelopes: the specification's vectors, round trips, and every way to tamper with one."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protocol import dsse
from protocol.codec import encode
from protocol.errors import LimitExceededError, MalformedError, SignatureError
from tests.protocol.fleet import key

KIND = "application/vnd.wasmfleet.test+json"
SECRET = key("dsse")
PUBLIC = SECRET.public_key()


def test_pre_authentication_encoding() -> None:
    """The example of the DSSE specification (protocol.md, v1.0.2): type and body with their lengths in bytes."""
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert expected == dsse._pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert b"DSSEv1 0  0 " == dsse._pre_authentication_encoding("", b"")
    assert "DSSEv1 2 é 2 ".encode() + b"\xff\x00" == dsse._pre_authentication_encoding("é", b"\xff\x00")


def test_the_signature_is_over_that_encoding() -> None:
    """Any Ed25519 library can verify an envelope from its fields alone."""
    envelope = json.loads(dsse.seal(b"hello world", "http://example.com/HelloWorld", SECRET))
    assert {"payload", "payloadType", "signatures"} == set(envelope)
    (signature,) = envelope["signatures"]
    assert dsse.key_id(PUBLIC) == signature["keyid"]
    signed = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    PUBLIC.verify(base64.b64decode(signature["sig"]), signed)


@pytest.mark.property
@given(st.binary(max_size=500), st.text("abc/+.-", min_size=1, max_size=30))
def test_round_trip(payload: bytes, kind: str) -> None:
    """Any bytes under any type come back to the holder of the public key."""
    assert payload == dsse.unseal(dsse.seal(payload, kind, SECRET), kind, PUBLIC, limit_bytes=2_000)


def test_another_key_is_refused() -> None:
    """An envelope that another device signed is not believed, whatever key id it claims."""
    envelope = json.loads(dsse.seal(b"p", KIND, Ed25519PrivateKey.generate()))
    envelope["signatures"][0]["keyid"] = dsse.key_id(PUBLIC)
    with pytest.raises(SignatureError):
        dsse.unseal(encode(envelope), KIND, PUBLIC, limit_bytes=2_000)


def test_another_type_is_refused() -> None:
    """A signed birth is not telemetry: the type is under the signature, and is compared."""
    raw = dsse.seal(b"p", KIND, SECRET)
    with pytest.raises(SignatureError, match="expected an envelope of type other"):
        dsse.unseal(raw, "other", PUBLIC, limit_bytes=2_000)
    envelope = json.loads(raw)
    envelope["payloadType"] = "other"
    with pytest.raises(SignatureError, match="not of the device's key"):
        dsse.unseal(encode(envelope), "other", PUBLIC, limit_bytes=2_000)


def test_every_flipped_bit_of_the_payload_is_noticed() -> None:
    """No single bit of the payload or the signature can change."""
    envelope = json.loads(dsse.seal(b"state: failed", KIND, SECRET))
    for field, holder in (("payload", envelope), ("sig", envelope["signatures"][0])):
        original = base64.b64decode(holder[field])
        for bit in range(8 * len(original)):
            changed = bytearray(original)
            changed[bit // 8] ^= 1 << bit % 8
            holder[field] = base64.b64encode(changed).decode()
            with pytest.raises(SignatureError):
                dsse.unseal(encode(envelope), KIND, PUBLIC, limit_bytes=2_000)
        holder[field] = base64.b64encode(original).decode()
    assert b"state: failed" == dsse.unseal(encode(envelope), KIND, PUBLIC, limit_bytes=2_000)


@pytest.mark.parametrize("count", [0, 2])
def test_exactly_one_signature(count: int) -> None:
    """No signature, and one too many, are malformed."""
    envelope = json.loads(dsse.seal(b"p", KIND, SECRET))
    envelope["signatures"] *= count
    with pytest.raises(MalformedError, match="expected one signature"):
        dsse.unseal(encode(envelope), KIND, PUBLIC, limit_bytes=2_000)


@pytest.mark.parametrize("field", ["payload", "sig"])
@pytest.mark.parametrize("text", ["!", "é", "A", "QQ", "QQ==QQ==x", "\n", "-_-_"])
def test_bad_base64(field: str, text: str) -> None:
    """Only padded base64 of the standard alphabet is taken."""
    envelope = json.loads(dsse.seal(b"p", KIND, SECRET))
    holder = envelope if field == "payload" else envelope["signatures"][0]
    holder[field] = text
    with pytest.raises(MalformedError, match="bad base64"):
        dsse.unseal(encode(envelope), KIND, PUBLIC, limit_bytes=2_000)


@pytest.mark.parametrize("length", [0, 1, 63, 65, 128])
def test_a_signature_of_another_length(length: int) -> None:
    """Bytes that cannot be an Ed25519 signature are refused like a wrong one."""
    envelope = json.loads(dsse.seal(b"p", KIND, SECRET))
    envelope["signatures"][0]["sig"] = base64.b64encode(bytes(length)).decode()
    with pytest.raises(SignatureError):
        dsse.unseal(encode(envelope), KIND, PUBLIC, limit_bytes=2_000)


def test_every_truncation_is_malformed() -> None:
    """An envelope cut after any byte is refused, and so is one with a byte behind it."""
    raw = dsse.seal(b"p", KIND, SECRET)
    for bad in [*(raw[:length] for length in range(len(raw))), raw + b"x", raw + raw]:
        with pytest.raises(MalformedError):
            dsse.unseal(bad, KIND, PUBLIC, limit_bytes=2_000)


def test_the_limit_comes_first() -> None:
    """An envelope beyond the limit is not even parsed."""
    raw = dsse.seal(bytes(1_000), KIND, SECRET)
    with pytest.raises(LimitExceededError):
        dsse.unseal(raw, KIND, PUBLIC, limit_bytes=len(raw) - 1)
    assert bytes(1_000) == dsse.unseal(raw, KIND, PUBLIC, limit_bytes=len(raw))
