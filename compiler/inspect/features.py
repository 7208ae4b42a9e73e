"""Which engine features a module needs: found by decoding its types and every instruction.

A module needs `simd128` when a vector occurs anywhere, as a type or in an instruction, and `relaxed_simd` when one of
those instructions is relaxed.
"""

from typing import Final

from compiler.inspect.reader import FUNCTION_FORM, Reader
from compiler.wasm.opcode import BULK_PREFIX, FIRST_RELAXED, SIMD_PREFIX, Immediate
from compiler.wasm.opcodes import OPCODES
from compiler.wasm.types import ValueType
from protocol.errors import LimitExceededError
from protocol.wasm import sections

MAX_CODE_BYTES: Final = 16 * 1024 * 1024
"""More code than this takes a device minutes to compile."""

_TYPE, _IMPORT, _GLOBAL, _CODE = 1, 2, 6, 10
_FUNCTION_IMPORT, _TABLE_IMPORT, _MEMORY_IMPORT, _GLOBAL_IMPORT = range(4)
_V128: Final = ValueType.V128.value
_END: Final = 0x0B
_VECTOR_BYTES: Final = 16
_PLAIN: Final[dict[int, Immediate]] = {o.number: o.immediate for o in OPCODES.values() if o.prefix is None}
_PREFIXED: Final[dict[tuple[int, int], Immediate]] = {
    (o.prefix, o.number): o.immediate for o in OPCODES.values() if o.prefix is not None
}
_NUMBERS: Final = {Immediate.MEMORY: 2, Immediate.MEMORY_LANE: 2, Immediate.INDEX: 1, Immediate.INDEX_2: 2}
"""How many unsigned numbers follow."""
_BYTES: Final = {
    Immediate.F32: 4,
    Immediate.F64: 8,
    Immediate.BYTES_16: _VECTOR_BYTES,
    Immediate.LANE: 1,
    Immediate.MEMORY_LANE: 1,
}
"""How many bytes follow, behind the numbers."""


class _Found:
    """The features seen so far."""

    def __init__(self) -> None:
        self.simd128 = False
        self.relaxed_simd = False

    def see_type(self, code: int) -> None:
        self.simd128 |= code == _V128

    def names(self) -> tuple[str, ...]:
        return tuple(name for name in ("simd128", "relaxed_simd") if getattr(self, name))


def required_features(wasm: bytes) -> tuple[str, ...]:
    """Return the features without which no engine runs `wasm`, of `simd128` and `relaxed_simd`.

    Raises:
        MalformedError: it cannot be decoded, or uses instructions that no device offers.
        LimitExceededError: it has more than MAX_CODE_BYTES of code.
    """
    found = _Found()
    for section_id, payload in sections(wasm):
        reader = Reader(payload, f"wasm section {section_id}")
        if section_id == _TYPE:
            _scan_types(reader, found)
        elif section_id == _IMPORT:
            _scan_imports(reader, found)
        elif section_id == _GLOBAL:
            _scan_globals(reader, found)
        elif section_id == _CODE:
            _scan_code(reader, len(payload), found)
    return found.names()


def _scan_types(reader: Reader, found: _Found) -> None:
    for _ in range(reader.number()):
        if (form := reader.byte()) != FUNCTION_FORM:
            raise reader.error(f"expected a function type, got 0x{form:02x}")
        for _ in range(2):
            for _ in range(reader.number()):
                found.see_type(reader.byte())


def _scan_imports(reader: Reader, found: _Found) -> None:
    for _ in range(reader.number()):
        reader.name()
        reader.name()
        kind = reader.byte()
        if kind == _FUNCTION_IMPORT:
            reader.number()
        elif kind == _TABLE_IMPORT:
            reader.byte()
            reader.limits()
        elif kind == _MEMORY_IMPORT:
            reader.limits()
        elif kind == _GLOBAL_IMPORT:
            found.see_type(reader.byte())
            reader.byte()
        else:
            raise reader.error(f"it imports something of an unknown kind, 0x{kind:02x}")


def _scan_globals(reader: Reader, found: _Found) -> None:
    for _ in range(reader.number()):
        found.see_type(reader.byte())
        reader.byte()
        while _scan_instruction(reader, found) != _END:
            pass


def _scan_code(reader: Reader, size_bytes: int, found: _Found) -> None:
    if size_bytes > MAX_CODE_BYTES:
        raise LimitExceededError(f"expected at most {MAX_CODE_BYTES:,} bytes of code, got {size_bytes:,}")
    for _ in range(reader.number()):
        end = reader.number()
        end += reader.at
        for _ in range(reader.number()):
            reader.number()
            found.see_type(reader.byte())
        last = None
        while reader.at < end:
            last = _scan_instruction(reader, found)
            if found.relaxed_simd:  # which needs simd128: there is nothing more to find
                return
        if reader.at != end or last != _END:
            raise reader.error("a function does not end where it says")


def _scan_instruction(reader: Reader, found: _Found) -> int:
    """Read one instruction and return its first byte."""
    first = reader.byte()
    if first in (SIMD_PREFIX, BULK_PREFIX):
        number = reader.number()
        immediate = _PREFIXED.get((first, number))
        if immediate is not None and first == SIMD_PREFIX:
            found.simd128 = True
            found.relaxed_simd |= number >= FIRST_RELAXED
    else:
        number = first
        immediate = _PLAIN.get(first)
    if immediate is None:
        raise reader.error(f"it has an instruction 0x{first:02x} 0x{number:x} that devices do not offer")
    if immediate is not Immediate.NONE:
        _skip_immediate(reader, immediate, found)
    return first


def _skip_immediate(reader: Reader, immediate: Immediate, found: _Found) -> None:
    for _ in range(_NUMBERS.get(immediate, 0)):
        reader.number()
    if immediate in _BYTES:
        reader.take(_BYTES[immediate])
    elif immediate in (Immediate.I32, Immediate.I64):
        reader.signed()
    elif immediate is Immediate.BLOCK:
        if reader.signed() == _V128 - 0x80:  # a value type is a negative number; other numbers name a type
            found.simd128 = True
    elif immediate is Immediate.BRANCH_TABLE:
        for _ in range(reader.number() + 1):
            reader.number()
    elif immediate is Immediate.VALUE_TYPES:
        for _ in range(reader.number()):
            found.see_type(reader.byte())
    elif immediate is Immediate.HEAP_TYPE:
        reader.byte()
