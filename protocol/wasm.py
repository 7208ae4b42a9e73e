"""The outermost layer of the WebAssembly binary format: a header, then sections.

Just enough to find a custom section without running a wasm engine. Source: WebAssembly Core Specification,
section 5.5 (binary format of modules).
"""

from collections.abc import Iterator

from protocol.errors import MalformedError

MAGIC = b"\0asm"
CORE_VERSION = b"\x01\0\0\0"
CUSTOM_SECTION = 0


def sections(module: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (section id, payload) for each section of `module`; raises MalformedError."""
    if module[:4] != MAGIC:
        raise MalformedError("not a wasm file: it does not start with \\0asm")
    if module[4:8] != CORE_VERSION:
        raise MalformedError(
            "not a core wasm module of version 1 (a component? extract its core module with wasm-tools)"
        )
    offset = 8
    while offset < len(module):
        section_id = module[offset]
        size, start = _u32(module, offset + 1)
        if start + size > len(module):
            raise MalformedError(
                f"wasm file is cut off: section {section_id} ends {start + size - len(module)} bytes later"
            )
        yield section_id, module[start : start + size]
        offset = start + size


def custom_section(module: bytes, name: str) -> bytes | None:
    """Return the payload of the only custom section `name`, or None; raises MalformedError."""
    wanted = name.encode()
    found: bytes | None = None
    for section_id, payload in sections(module):
        if section_id != CUSTOM_SECTION:
            continue
        length, start = _u32(payload, 0)
        if start + length > len(payload):
            raise MalformedError("wasm file is cut off inside the name of a custom section")
        if payload[start : start + length] == wanted:
            if found is not None:
                raise MalformedError(f"expected one custom section {name!r}, got two")
            found = payload[start + length :]
    return found


def _u32(data: bytes, offset: int) -> tuple[int, int]:
    """Decode an unsigned LEB128 of at most 32 bits; return it and the offset behind it."""
    value = 0
    for position in range(5):
        if offset + position >= len(data):
            raise MalformedError("wasm file is cut off inside a number")
        byte = data[offset + position]
        value |= (byte & 0x7F) << (7 * position)
        if not byte & 0x80:
            if value >= 1 << 32:
                break
            return value, offset + position + 1
    raise MalformedError("wasm file has a number that does not fit 32 bits")
