"""A module as WebAssembly text, for reading: what an assembler makes of it is the same module again.

Every section is there, the weights in full, so the text has about three times the size of a module with many of them.
Functions have the names of their layers, with their work beside; a branch says which block it leaves. Refuses what our
compiler does not write: imports, several memories. An assembler puts the section of names last, which is
the only difference.
"""

import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from compiler.inspect.module import inspect_module
from compiler.inspect.reader import FUNCTION_FORM, VALUE_TYPES, Reader
from compiler.wasm.opcode import BULK_PREFIX, SIMD_PREFIX, Immediate, Opcode
from compiler.wasm.opcodes import OPCODES
from protocol.errors import LimitExceededError
from protocol.wasm import CUSTOM_SECTION, sections

MAX_LOCALS: Final = 50_000
"""No engine takes more in one function."""

_TYPE, _FUNCTION, _TABLE, _MEMORY, _GLOBAL, _EXPORT, _START, _ELEMENT, _CODE, _DATA = 1, 3, 4, 5, 6, 7, 8, 9, 10, 11
_DATA_COUNT: Final = 12
_KINDS: Final = ("func", "table", "memory", "global")
_NAME_SECTION: Final = "name"
_EMPTY_BLOCK: Final = -0x40
_LINE_BYTES: Final = 32
_ID: Final = re.compile(r"[A-Za-z0-9!#$%&'*+./:<=>?@\\^_`|~-]+")
_BY_CODE: Final[dict[tuple[int | None, int], Opcode]] = {(o.prefix, o.number): o for o in OPCODES.values()}
_BLOCKS: Final = ("block", "loop", "if")
_MAX_ALIGN: Final = 4


def module_text(wasm: bytes) -> Iterator[str]:
    """Yield the lines of `wasm` as text, without their ends; raises ProtocolError."""
    text = _Text(wasm)
    printers: dict[int, Callable[[Reader], Iterator[str]]] = {
        CUSTOM_SECTION: text.custom,
        _TYPE: text.types,
        _FUNCTION: text.signatures,
        _TABLE: text.tables,
        _MEMORY: text.memories,
        _GLOBAL: text.globals,
        _EXPORT: text.exports,
        _START: text.start,
        _ELEMENT: text.elements,
        _CODE: text.functions,
        _DATA: text.data,
        _DATA_COUNT: text.data_count,
    }
    yield "(module"
    for section_id, payload in sections(wasm):
        reader = Reader(payload, f"wasm section {section_id}")
        if section_id not in printers:
            raise reader.error("it is of a kind that cannot be shown as text")
        for line in printers[section_id](reader):
            yield "  " + line
        reader.end()
    yield ")"


class _Text:
    """What is known of the module while its sections are printed one after the other."""

    def __init__(self, wasm: bytes) -> None:
        report = inspect_module(wasm)
        self._names = {f.index: f.name for f in report.functions if f.name}
        self._name_counts = Counter(self._names.values())
        self._work = dict(report.plan.layers) if report.plan else {}
        self._types: list[tuple[list[str], list[str]]] = []
        self._signatures: list[int] = []

    def types(self, reader: Reader) -> Iterator[str]:
        for number in range(reader.number()):
            if (form := reader.byte()) != FUNCTION_FORM:
                raise reader.error(f"expected a function type, got 0x{form:02x}")
            params, results = ([reader.value_type() for _ in range(reader.number())] for _ in range(2))
            self._types.append((params, results))
            yield f"(type (;{number};) (func{_listed('param', params)}{_listed('result', results)}))"

    def signatures(self, reader: Reader) -> Iterator[str]:
        self._signatures = [reader.number() for _ in range(reader.number())]
        yield from ()

    def tables(self, reader: Reader) -> Iterator[str]:
        for _ in range(reader.number()):
            kind = reader.value_type()
            yield f"(table {_limits(reader)} {kind})"

    def memories(self, reader: Reader) -> Iterator[str]:
        for _ in range(reader.number()):
            yield f"(memory {_limits(reader)})  ;; pages of 64 KiB"

    def globals(self, reader: Reader) -> Iterator[str]:
        for number in range(reader.number()):
            kind = reader.value_type()
            kind = f"(mut {kind})" if reader.byte() else kind
            yield f"(global (;{number};) {kind} {self._constant(reader)})"

    def exports(self, reader: Reader) -> Iterator[str]:
        for _ in range(reader.number()):
            name, kind, index = _string(reader.name().encode()), reader.byte(), reader.number()
            if kind >= len(_KINDS):
                raise reader.error(f"it has an export of an unknown kind, 0x{kind:02x}")
            yield f"(export {name} ({_KINDS[kind]} {self._function(index) if kind == 0 else index}))"

    def start(self, reader: Reader) -> Iterator[str]:
        yield f"(start {self._function(reader.number())})"

    def elements(self, reader: Reader) -> Iterator[str]:
        for _ in range(reader.number()):
            _expect_active(reader)
            address = self._constant(reader)
            functions = " ".join(self._function(reader.number()) for _ in range(reader.number()))
            yield f"(elem ({address}) func {functions})"

    def functions(self, reader: Reader) -> Iterator[str]:
        if reader.number() != len(self._signatures):
            raise reader.error("it has another number of functions than the module declares")
        for index, signature in enumerate(self._signatures):
            body = Reader(reader.take(reader.number()), f"wasm function {index}")
            if index in self._work:
                yield f";; layer, {self._work[index]:,} multiply-adds"
            yield f"(func{self._head(index)} {self._type(body, signature)}"
            if locals_ := self._locals(body):
                yield f"  (local {' '.join(locals_)})"
            yield from self._body(body)
            yield ")"
            body.end()

    def data_count(self, reader: Reader) -> Iterator[str]:
        reader.number()  # an assembler counts again
        yield from ()

    def data(self, reader: Reader) -> Iterator[str]:
        for _ in range(reader.number()):
            if (kind := reader.number()) > 1:
                raise reader.error(f"expected data of the only memory, or passive data, got a segment of kind {kind}")
            yield "(data" if kind else f"(data ({self._constant(reader)})"
            payload = reader.take(reader.number())
            for at in range(0, len(payload), _LINE_BYTES):
                yield '  "\\' + payload[at : at + _LINE_BYTES].hex("\\") + '"'
            yield ")"

    def custom(self, reader: Reader) -> Iterator[str]:
        name = reader.name()
        payload = reader.take(reader.remaining_bytes)
        if name != _NAME_SECTION:  # an assembler makes it anew
            yield f"(@custom {_string(name.encode())} {_string(payload)})"

    def _head(self, index: int) -> str:
        """Return the name and the number of a function where it is defined; other places need one of them."""
        name = self._names.get(index)
        shown = self._function(index)
        if name is None:
            return f" (;{index};)"
        return f" {shown} (;{index};)" if shown.startswith("$") else f" (;{index};) (@name {_string(name.encode())})"

    def _function(self, index: int) -> str:
        """Return what names a function: its name, or its number when it has none or shares it."""
        name = self._names.get(index)
        if name is None or self._name_counts[name] > 1:
            return str(index)
        return f"${name}" if _ID.fullmatch(name) else f"${_string(name.encode())}"

    def _type(self, reader: Reader, number: int) -> str:
        if number >= len(self._types):
            raise reader.error(f"it names a type {number} that does not exist")
        params, results = self._types[number]
        return f"(type {number}){_listed('param', params)}{_listed('result', results)}"

    def _locals(self, reader: Reader) -> list[str]:
        found: list[str] = []
        for _ in range(reader.number()):
            count = reader.number()
            if len(found) + count > MAX_LOCALS:
                raise LimitExceededError(f"expected at most {MAX_LOCALS:,} locals, got {len(found) + count:,}")
            found += [reader.value_type()] * count
        return found

    def _constant(self, reader: Reader) -> str:
        """Read a constant expression of one instruction."""
        shown = self._instruction(reader, _opcode(reader), 0)
        if _opcode(reader).name != "end":
            raise reader.error("expected a constant of one instruction")
        return shown

    def _body(self, reader: Reader) -> Iterator[str]:
        """Yield the instructions; the end of the function itself is its closing bracket."""
        depth = 0
        while True:
            opcode = _opcode(reader)
            if opcode.name == "end":
                depth -= 1
                if depth < 0:
                    return
            indent = depth if opcode.name != "else" else depth - 1
            shown = self._instruction(reader, opcode, depth)
            if opcode.name in _BLOCKS:
                depth += 1
                shown += f"  ;; @{depth}"
            yield "  " * (indent + 1) + shown

    def _instruction(self, reader: Reader, opcode: Opcode, depth: int) -> str:
        """Read the immediates of an instruction and return it whole."""
        name, kind = opcode.name, opcode.immediate
        if kind is Immediate.NONE:
            return name
        if kind is Immediate.BLOCK:
            return name + self._block_type(reader)
        if kind is Immediate.VALUE_TYPES:
            return f"select{_listed('result', [reader.value_type() for _ in range(reader.number())])}"
        if kind is Immediate.BRANCH_TABLE:
            return " ".join([name, *(_label(reader, depth) for _ in range(reader.number() + 1))])
        if name in ("br", "br_if"):
            return f"{name} {_label(reader, depth)}"
        if name in ("call", "return_call", "ref.func"):
            return f"{name} {self._function(reader.number())}"
        return f"{name}{_IMMEDIATES[kind](reader, name)}"

    def _block_type(self, reader: Reader) -> str:
        number = reader.signed()
        if number == _EMPTY_BLOCK:
            return ""
        if number >= 0:
            return f" (type {number})"
        if number & 0x7F not in VALUE_TYPES:
            raise reader.error(f"it has a block of an unknown type, {number}")
        return f" (result {VALUE_TYPES[number & 0x7F]})"


def _opcode(reader: Reader) -> Opcode:
    first = reader.byte()
    key = (first, reader.number()) if first in (SIMD_PREFIX, BULK_PREFIX) else (None, first)
    if key not in _BY_CODE:
        raise reader.error(f"it has an instruction {key} that devices do not offer")
    return _BY_CODE[key]


def _label(reader: Reader, depth: int) -> str:
    """Read a branch and name the block that it leaves, or the loop that it repeats, as its start does."""
    number = reader.number()
    return f"{number} (;@{depth - number};)" if number < depth else f"{number} (;the function;)"


def _index(reader: Reader, name: str) -> str:
    """Read one index; that of the only memory is not written."""
    index = reader.number()
    if name.startswith("memory.") and index:
        raise reader.error(f"it uses a memory {index}")
    return "" if name.startswith("memory.") else f" {index}"


def _two_indices(reader: Reader, name: str) -> str:
    """Read two indices, which the text has in another order than the binary."""
    first, second = reader.number(), reader.number()
    if name.startswith("memory."):
        if second or (first and name == "memory.copy"):
            raise reader.error(f"it uses a memory {second or first}")
        return f" {first}" if name == "memory.init" else ""
    if name.endswith("call_indirect"):
        return f" {second} (type {first})"
    return f" {second} {first}" if name == "table.init" else f" {first} {second}"


def _memory(reader: Reader, _: str) -> str:
    align, offset = reader.number(), reader.number()
    if align > _MAX_ALIGN:
        raise reader.error(f"expected an alignment of at most 2^{_MAX_ALIGN}, got 2^{align}")
    return (f" offset={offset}" if offset else "") + f" align={1 << align}"


def _vector(reader: Reader, name: str) -> str:
    raw = reader.take(16)
    if name == "i8x16.shuffle":
        return "".join(f" {lane}" for lane in raw)
    return " i32x4" + "".join(f" 0x{lane:08x}" for lane in struct.unpack("<4I", raw))


def _float(reader: Reader, form: str, mantissa_bits: int) -> str:
    """Read a number; it is written exactly, with a short form beside it."""
    raw = reader.take(struct.calcsize(form))
    [value] = struct.unpack(form, raw)
    bits = int.from_bytes(raw, "little")
    sign = "-" if bits >> (8 * len(raw) - 1) else ""
    if math.isnan(value):
        return f" {sign}nan:0x{bits & (1 << mantissa_bits) - 1:x}"
    if math.isinf(value):
        return f" {sign}inf"
    return f" {value.hex()} (;{value:.9g};)"


_IMMEDIATES: Final[dict[Immediate, Callable[[Reader, str], str]]] = {
    Immediate.MEMORY: _memory,
    Immediate.LANE: lambda reader, _: f" {reader.byte()}",
    Immediate.MEMORY_LANE: lambda reader, name: f"{_memory(reader, name)} {reader.byte()}",
    Immediate.BYTES_16: _vector,
    Immediate.I32: lambda reader, _: f" {reader.signed()}",
    Immediate.I64: lambda reader, _: f" {reader.signed()}",
    Immediate.F32: lambda reader, _: _float(reader, "<f", 23),
    Immediate.F64: lambda reader, _: _float(reader, "<d", 52),
    Immediate.INDEX: _index,
    Immediate.INDEX_2: _two_indices,
    Immediate.HEAP_TYPE: lambda reader, _: _heap_type(reader),
}


def _heap_type(reader: Reader) -> str:
    return " " + reader.value_type().removesuffix("ref")


def _listed(word: str, types: list[str]) -> str:
    return f" ({word} {' '.join(types)})" if types else ""


def _limits(reader: Reader) -> str:
    minimum, maximum = reader.limits()
    return str(minimum) if maximum is None else f"{minimum} {maximum}"


def _expect_active(reader: Reader) -> None:
    if flags := reader.number():
        raise reader.error(f"expected a segment of the first memory or table, got one of kind {flags}")


def _string(raw: bytes) -> str:
    """Return bytes as a string of the text: what can be read as it is, all else as numbers."""
    plain = (chr(b) if 0x20 <= b < 0x7F and b not in b'"\\' else f"\\{b:02x}" for b in raw)
    return f'"{"".join(plain)}"'
