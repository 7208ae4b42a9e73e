"""What a module says of itself: its tensors in `fleet.model`, its memory and layers in `fleet.plan`.

Refuses what is not a wasm module. Every other section keeps its place and its payload. `fleet.plan` is for tools that
show a module; no device reads it.
"""

from typing import Final

import msgspec

from compiler import wasm as encoder
from compiler.wasm import leb
from protocol.codec import decode, encode
from protocol.errors import MalformedError
from protocol.tensors import SECTION_NAME, ModelSpec
from protocol.wasm import CUSTOM_SECTION, custom_section, sections

PLAN_SECTION: Final = "fleet.plan"
MAX_PLAN_BYTES: Final = 1024 * 1024


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How a module uses its memory, and what its layers do."""

    constant_bytes: int
    """What constants take in memory."""
    arena_bytes: int
    arena_bound_bytes: int
    """What lives at the same time, at its greatest: no plan could do with less."""
    layers: tuple[tuple[int, int], ...]
    """The number of the function of each layer, in the order in which they run, and its multiply-adds."""
    stored_bytes: int | None = None
    """What constants take in the module, which expands them when it starts; None where nothing says so."""


def with_plan_section(wasm: bytes, plan: Plan) -> bytes:
    """Return `wasm` with its plan at its end."""
    return wasm + encoder.custom_section(PLAN_SECTION, encode(plan))


def read_plan_section(wasm: bytes) -> Plan | None:
    """Return the plan of `wasm`, or None when it has none; raises ProtocolError."""
    payload = custom_section(wasm, PLAN_SECTION)
    if payload is None:
        return None
    return decode(payload, Plan, limit_bytes=MAX_PLAN_BYTES, what=f"{PLAN_SECTION} section")


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
