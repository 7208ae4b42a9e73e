"""LEB128, the variable-length integers of the WebAssembly binary format.

Always the shortest form. Source: WebAssembly Core Specification, section 5.2.2 (integers).
"""

_ONE_BYTE = tuple(bytes([n]) for n in range(128))


def unsigned(value: int) -> bytes:
    """Return `value`, which is not negative, as unsigned LEB128."""
    if 0 <= value < 128:
        return _ONE_BYTE[value]
    if value < 0:
        raise ValueError(f"expected a value that is not negative, got {value}")
    out = bytearray()
    while value >= 128:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed(value: int) -> bytes:
    """Return `value` as signed LEB128."""
    if -64 <= value < 64:
        return _ONE_BYTE[value & 0x7F]
    out = bytearray()
    while not -64 <= value < 64:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)
