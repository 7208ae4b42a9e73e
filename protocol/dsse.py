"""Signed reports and acks: the Dead Simple Signing Envelope with the device's key, or with those of a TUF role.

Source: DSSE v1.0.2, github.com/secure-systems-lab/dsse. The signature covers the type and the exact payload bytes,
so nothing has to be canonical and nothing is parsed before it is believed.
"""

import base64
import binascii

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.signer import Signature, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Root

from protocol.codec import decode, encode, sha256
from protocol.errors import MalformedError, SignatureError


class _Signature(msgspec.Struct, frozen=True, kw_only=True):
    keyid: str
    sig: str


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, rename={"payload_type": "payloadType"}):
    payload: str
    payload_type: str
    signatures: tuple[_Signature, ...]


def key_id(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of the raw public key."""
    return sha256(key.public_bytes_raw())


def seal(payload: bytes, payload_type: str, key: Ed25519PrivateKey) -> bytes:
    """Return the envelope of `payload`."""
    signature = key.sign(_pre_authentication_encoding(payload_type, payload))
    return _envelope(payload, payload_type, key_id(key.public_key()), signature)


def seal_by(payload: bytes, payload_type: str, signer: Signer) -> bytes:
    """Return the envelope of `payload`, signed by a key that has a role in TUF metadata."""
    signature = signer.sign(_pre_authentication_encoding(payload_type, payload))
    return _envelope(payload, payload_type, signature.keyid, bytes.fromhex(signature.signature))


def unseal(raw: bytes, payload_type: str, key: Ed25519PublicKey, *, limit_bytes: int) -> bytes:
    """Return the payload of the envelope `raw`.

    Raises:
        LimitExceededError, MalformedError: it is not an envelope of at most `limit_bytes`.
        SignatureError: it is of another type, or `key` did not sign it.
    """
    payload, signatures = _opened(raw, payload_type, limit_bytes)
    if len(signatures) != 1:
        raise MalformedError(f"expected one signature, got {len(signatures)}")
    try:
        key.verify(signatures[0][1], _pre_authentication_encoding(payload_type, payload))
    except InvalidSignature as error:
        raise SignatureError("the signature is not of the device's key") from error
    return payload


def unseal_by(raw: bytes, payload_type: str, root: Root, role: str, *, limit_bytes: int) -> bytes:
    """Return the payload of the envelope `raw`, which a threshold of the keys signed that `root` gives to `role`.

    Raises:
        LimitExceededError, MalformedError: it is not an envelope of at most `limit_bytes`.
        SignatureError: it is of another type, or the role did not sign it.
    """
    payload, signatures = _opened(raw, payload_type, limit_bytes)
    by_key = {keyid: Signature(keyid, signature.hex()) for keyid, signature in signatures}
    try:
        root.verify_delegate(role, _pre_authentication_encoding(payload_type, payload), by_key)
    except (RepositoryError, ValueError) as error:
        raise SignatureError(f"the envelope is not signed by the role {role}: {error}") from error
    return payload


def _envelope(payload: bytes, payload_type: str, keyid: str, signature: bytes) -> bytes:
    return encode(
        _Envelope(
            payload=base64.b64encode(payload).decode(),
            payload_type=payload_type,
            signatures=(_Signature(keyid=keyid, sig=base64.b64encode(signature).decode()),),
        )
    )


def _opened(raw: bytes, payload_type: str, limit_bytes: int) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return the payload, which nobody has vouched for yet, and the signatures with their key ids."""
    envelope = decode(raw, _Envelope, limit_bytes=limit_bytes, what="signed envelope")
    if envelope.payload_type != payload_type:
        raise SignatureError(f"expected an envelope of type {payload_type}, got {envelope.payload_type[:80]!r}")
    try:
        payload = base64.b64decode(envelope.payload, validate=True)
        return payload, [(each.keyid, base64.b64decode(each.sig, validate=True)) for each in envelope.signatures]
    except (binascii.Error, ValueError) as error:
        raise MalformedError(f"signed envelope: bad base64: {error}") from error


def _pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
