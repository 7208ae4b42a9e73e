"""The `fleet.model` section: a module's description of itself, written into it and read from it.

Refuses what is not a wasm module. Every other section keeps its place and its payload.
"""

from compiler import wasm as encoder
from compiler.wasm import leb
from protocol.errors import MalformedError
from protocol.tensors import SECTION_NAME, ModelSpec
from protocol.wasm import CUSTOM_SECTION, custom_section, sections


def with_model_section(wasm: bytes, spec: ModelSpec) -> bytes:
    """Return `wasm` with `spec` as its only `fleet.model` section, at its end; raises MalformedError."""
    parts = [wasm[:8]]
    for section_id, payload in sections(wasm):
        if section_id == CUSTOM_SECTION and _name_of(payload) == SECTION_NAME.encode():
            continue
        parts += (bytes([section_id]), leb.unsigned(len(payload)), payload)
    return b"".join([*parts, encoder.custom_section(SECTION_NAME, spec.to_bytes())])


def read_model_section(wasm: bytes) -> ModelSpec | None:
    """Return what `wasm` says of itself, or None when it says nothing; raises ProtocolError."""
    payload = custom_section(wasm, SECTION_NAME)
    return None if payload is None else ModelSpec.from_bytes(payload)


def _name_of(payload: bytes) -> bytes:
    """Return the name of a custom section, without its payload."""
    length = shift = 0
    for position, byte in enumerate(payload[:5]):
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            start = position + 1
            return payload[start : start + length]
    raise MalformedError("wasm file has a custom section whose name does not fit")
