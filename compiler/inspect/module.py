"""Reads a whole module into a report: what it declares, how much code and data it has, what its functions are called.

Memories, tables and instructions that devices do not offer are refused with their name.
"""

import contextlib
from typing import Final

from compiler.inspect.features import required_features
from compiler.inspect.reader import Reader
from compiler.inspect.report import (
    CustomSection,
    DataSegment,
    Export,
    FunctionReport,
    Import,
    Kind,
    MemoryReport,
    ModuleReport,
)
from compiler.section import read_model_section, read_plan_section
from compiler.wasm.types import PAGE_BYTES
from protocol.errors import MalformedError
from protocol.wasm import sections

_CUSTOM, _TYPE, _IMPORT, _FUNCTION, _MEMORY, _EXPORT, _CODE, _DATA = 0, 1, 2, 3, 5, 7, 10, 11
_KINDS: Final[tuple[Kind, ...]] = ("function", "table", "memory", "global")
_NAME_SECTION: Final = "name"
_FUNCTION_NAMES: Final = 1
_I32_CONST, _GLOBAL_GET, _END = 0x41, 0x23, 0x0B
_PASSIVE: Final = 1


def inspect_module(wasm: bytes) -> ModuleReport:
    """Return what is in `wasm`; raises ProtocolError."""
    found = _Module()
    readers = {
        _TYPE: found.read_types,
        _IMPORT: found.read_imports,
        _FUNCTION: found.read_functions,
        _MEMORY: found.read_memories,
        _EXPORT: found.read_exports,
        _CODE: found.read_code,
        _DATA: found.read_data,
        _CUSTOM: found.read_custom,
    }
    for section_id, payload in sections(wasm):
        if section_id in readers:
            readers[section_id](Reader(payload, f"wasm section {section_id}"))
    return ModuleReport(
        size_bytes=len(wasm),
        imports=tuple(found.imports),
        exports=tuple(found.exports),
        memories=tuple(found.memories),
        functions=found.functions(),
        data=tuple(found.data),
        custom_sections=tuple(found.custom_sections),
        required_features=required_features(wasm),
        spec=read_model_section(wasm),
        plan=read_plan_section(wasm),
    )


class _Module:
    """What the sections read so far say."""

    def __init__(self) -> None:
        self.imports: list[Import] = []
        self.exports: list[Export] = []
        self.memories: list[MemoryReport] = []
        self.data: list[DataSegment] = []
        self.custom_sections: list[CustomSection] = []
        self._types: list[str] = []
        self._signatures: list[str] = []
        self._imported_functions = 0
        self._code_sizes: list[int] = []
        self._names: dict[int, str] = {}

    def read_types(self, reader: Reader) -> None:
        self._types += [reader.signature() for _ in range(reader.number())]
        reader.end()

    def read_imports(self, reader: Reader) -> None:
        for _ in range(reader.number()):
            module, name, kind = reader.name(), reader.name(), self._kind(reader)
            signature = None
            if kind == "function":
                signature = self._signature(reader)
                self._signatures.append(signature)
                self._imported_functions += 1
            elif kind == "memory":
                self.memories.append(_memory(reader))
            elif kind == "table":
                reader.value_type()
                reader.limits()
            else:
                reader.value_type()
                reader.byte()
            self.imports.append(Import(module=module, name=name, kind=kind, signature=signature))
        reader.end()

    def read_functions(self, reader: Reader) -> None:
        self._signatures += [self._signature(reader) for _ in range(reader.number())]
        reader.end()

    def read_memories(self, reader: Reader) -> None:
        self.memories += [_memory(reader) for _ in range(reader.number())]
        reader.end()

    def read_exports(self, reader: Reader) -> None:
        for _ in range(reader.number()):
            name, kind, index = reader.name(), self._kind(reader), reader.number()
            signature = None
            if kind == "function":
                if index >= len(self._signatures):
                    raise reader.error(f"export {name[:80]!r} names a function {index} that does not exist")
                signature = self._signatures[index]
            self.exports.append(Export(name=name, kind=kind, index=index, signature=signature))
        reader.end()

    def read_code(self, reader: Reader) -> None:
        for _ in range(reader.number()):
            size_bytes = reader.number()
            reader.take(size_bytes)
            self._code_sizes.append(size_bytes)
        reader.end()
        if len(self._code_sizes) != len(self._signatures) - self._imported_functions:
            raise reader.error("it has another number of functions than the module declares")

    def read_data(self, reader: Reader) -> None:
        for _ in range(reader.number()):
            flags = reader.number()
            if flags > 2:  # 0 is active, 1 passive, 2 active in a memory that is named
                raise reader.error(f"it has a data segment of an unknown kind, {flags}")
            if flags > _PASSIVE:
                reader.number()
            address = None if flags == _PASSIVE else _constant(reader)
            size_bytes = reader.number()
            reader.take(size_bytes)
            self.data.append(DataSegment(address=address, size_bytes=size_bytes))
        reader.end()

    def read_custom(self, reader: Reader) -> None:
        name = reader.name()
        self.custom_sections.append(CustomSection(name=name, size_bytes=reader.remaining_bytes))
        if name == _NAME_SECTION:
            with contextlib.suppress(MalformedError):  # an engine ignores a damaged section of names, and so do we
                while not reader.is_at_end:
                    subsection, content = reader.byte(), reader.take(reader.number())
                    if subsection == _FUNCTION_NAMES:
                        self._read_names(Reader(content, "wasm section of names"))

    def _read_names(self, reader: Reader) -> None:
        for _ in range(reader.number()):
            index = reader.number()
            self._names[index] = reader.name()

    def functions(self) -> tuple[FunctionReport, ...]:
        exported = {e.index: e.name for e in self.exports if e.kind == "function"}
        return tuple(
            FunctionReport(
                index=index,
                name=self._names.get(index, exported.get(index)),
                signature=self._signatures[index],
                code_bytes=size_bytes,
            )
            for index, size_bytes in enumerate(self._code_sizes, self._imported_functions)
        )

    def _kind(self, reader: Reader) -> Kind:
        number = reader.byte()
        if number >= len(_KINDS):
            raise reader.error(f"it has an import or export of an unknown kind, 0x{number:02x}")
        return _KINDS[number]

    def _signature(self, reader: Reader) -> str:
        number = reader.number()
        if number >= len(self._types):
            raise reader.error(f"it names a type {number} that does not exist")
        return self._types[number]


def _memory(reader: Reader) -> MemoryReport:
    pages_min, pages_max = reader.limits()
    return MemoryReport(
        min_bytes=pages_min * PAGE_BYTES, max_bytes=None if pages_max is None else pages_max * PAGE_BYTES
    )


def _constant(reader: Reader) -> int | None:
    """Read a constant expression; return its value when it is one number."""
    opcode = reader.byte()
    if opcode not in (_I32_CONST, _GLOBAL_GET):
        raise reader.error(f"expected a constant as the address of a data segment, got instruction 0x{opcode:02x}")
    value = reader.signed()
    if reader.byte() != _END:
        raise reader.error("expected nothing behind the address of a data segment")
    return value & 0xFFFF_FFFF if opcode == _I32_CONST else None
