"""What a wasm file declares: imports, exports, its memory and tables. Read from the binary without compiling it.

Only for a file that an engine has validated: it is then well-formed, and this follows the shortest path through it.
An engine takes some things in longer forms too, such as `(ref null func)` for `funcref`; here they are refused: who
took them for something else would read on at the wrong place, and believe signatures that are not the module's.
Source: WebAssembly Core Specification, sections 5.3 (types) and 5.5 (modules).
"""

import msgspec

from agent.runtime.errors import CompileError
from protocol.wasm import sections

PAGE_BYTES = 65_536
_VALUE_TYPES = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128", 0x70: "funcref", 0x6F: "externref"}
_TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY, _EXPORT = 1, 2, 3, 4, 5, 7
_KINDS = ("function", "table", "memory", "global", "tag")
_FUNCTION_TYPE = 0x60
_REFERENCE_TYPES = (0x70, 0x6F)
_HAS_MAX = 0x01
_MAX_NAMED = 10
MAX_ENTRIES = 100_000
"""Of types, functions, imports and exports each: reading them takes time that callers' requests would miss."""


class ModuleFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a module says about itself."""

    imports: tuple[str, ...]
    """As `module.name`."""
    exports: dict[str, str]
    """What each name is: a function's signature such as `(i32) -> i32`, else `memory`, `table`, `global` or `tag`."""
    memory_min_bytes: int
    memory_max_bytes: int | None
    """None when the module sets itself no bound."""
    tables: tuple[int, ...]
    """How many elements each table of its own starts with."""


def _unexpected(code: int) -> CompileError:
    return CompileError(
        f"expected a module of plain types and imports, got one with the code {code:#04x} among them: "
        "build it without the extensions to WebAssembly that came after SIMD"
    )


class _Reader:
    """A cursor over the payload of one section."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def name(self) -> str:
        length = self.number()
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def expect(self, *codes: int) -> int:
        """Return the next byte, which must be one of `codes`."""
        byte = self.byte()
        if byte not in codes:
            raise _unexpected(byte)
        return byte

    def entries(self) -> range:
        """Return the numbers of the entries that follow."""
        count = self.number()
        if count > MAX_ENTRIES:
            raise CompileError(
                f"expected at most {MAX_ENTRIES:,} types, functions, imports and exports each, got {count:,} of a kind"
            )
        return range(count)

    def value_types(self) -> str:
        """Return them as text; many of them as a number, for a module may have gigabytes of them."""
        count = self.number()
        codes = self._data[self._at : self._at + count]
        self._at += count
        if others := codes.translate(None, bytes(_VALUE_TYPES)):
            raise _unexpected(others[0])
        return ", ".join(_VALUE_TYPES[code] for code in codes) if count <= _MAX_NAMED else f"{count} values"

    def limits(self) -> tuple[int, int | None]:
        flags = self.byte()
        return self.number(), self.number() if flags & _HAS_MAX else None


def parse_declarations(wasm: bytes) -> ModuleFacts:
    """Return what the valid module `wasm` declares; raises CompileError where it does so in a longer form."""
    payloads: dict[int, bytes] = {}
    for section_id, payload in sections(wasm):
        payloads.setdefault(section_id, payload)
    types = _types(_Reader(payloads.get(_TYPE, b"\0")))
    imports, functions, memories = _imports(_Reader(payloads.get(_IMPORT, b"\0")), types)
    reader = _Reader(payloads.get(_FUNCTION, b"\0"))
    functions += [types[reader.number()] for _ in reader.entries()]
    reader = _Reader(payloads.get(_MEMORY, b"\0"))
    memories += [reader.limits() for _ in reader.entries()]
    pages_min, pages_max = memories[0] if memories else (0, 0)
    return ModuleFacts(
        imports=tuple(imports),
        exports=_exports(_Reader(payloads.get(_EXPORT, b"\0")), functions),
        memory_min_bytes=pages_min * PAGE_BYTES,
        memory_max_bytes=None if pages_max is None else pages_max * PAGE_BYTES,
        tables=_tables(_Reader(payloads.get(_TABLE, b"\0"))),
    )


def _types(reader: _Reader) -> list[str]:
    found = []
    for _ in reader.entries():
        reader.expect(_FUNCTION_TYPE)
        parameters = reader.value_types()
        results = reader.value_types()
        found.append(f"({parameters}) -> {results if results and ',' not in results else f'({results})'}")
    return found


def _imports(reader: _Reader, types: list[str]) -> tuple[list[str], list[str], list[tuple[int, int | None]]]:
    names, functions, memories = [], [], []
    for _ in reader.entries():
        names.append(f"{reader.name()}.{reader.name()}")
        kind = _KINDS[reader.expect(*range(len(_KINDS)))]
        if kind == "function":
            functions.append(types[reader.number()])
        elif kind == "memory":
            memories.append(reader.limits())
        elif kind == "table":
            reader.expect(*_REFERENCE_TYPES)
            reader.limits()
        elif kind == "global":
            reader.expect(*_VALUE_TYPES)
            reader.byte()
        else:
            reader.byte()
            reader.number()
    return names, functions, memories


def _tables(reader: _Reader) -> tuple[int, ...]:
    found = []
    for _ in reader.entries():
        reader.expect(*_REFERENCE_TYPES)
        found.append(reader.limits()[0])
    return tuple(found)


def _exports(reader: _Reader, functions: list[str]) -> dict[str, str]:
    found = {}
    for _ in reader.entries():
        name, kind, index = reader.name(), _KINDS[reader.expect(*range(len(_KINDS)))], reader.number()
        found[name] = functions[index] if kind == "function" else kind
    return found
