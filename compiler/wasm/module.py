"""A whole module: functions, one memory, globals, one table, data; written as bytes.

Imports come first, because they take the first numbers. The same calls give the same bytes. Source: WebAssembly Core
Specification, section 5.5 (modules).
"""

from collections.abc import Iterator, Sequence
from typing import Final

from compiler.wasm import leb
from compiler.wasm.expr import I32, Effect, Expr, i32_const
from compiler.wasm.function import Callee, Function
from compiler.wasm.types import MAX_PAGES, EncodeError, FunctionType, ValueType
from protocol.wasm import CORE_VERSION, CUSTOM_SECTION, MAGIC

_TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY, _GLOBAL, _EXPORT, _START, _ELEMENT, _CODE, _DATA, _DATA_COUNT = range(1, 13)
_KIND_FUNCTION, _KIND_TABLE, _KIND_MEMORY, _KIND_GLOBAL = range(4)
_FUNCTION_FORM: Final = b"\x60"
_END: Final = b"\x0b"
_CALL_INDIRECT: Final = b"\x11"
_GLOBAL_GET, _GLOBAL_SET = b"\x23", b"\x24"
_NAME_SECTION: Final = "name"
_FUNCTION_NAMES: Final = b"\x01"

Data = bytes | bytearray | memoryview


class GlobalI32(I32):
    """A global variable of a module."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = leb.unsigned(number)
        super().__init__(_GLOBAL_GET + self._number)

    def set(self, value: I32) -> Effect:
        """Return code that sets the global."""
        return Effect(value.code + _GLOBAL_SET + self._number)


class Module:
    """A module under construction."""

    def __init__(self) -> None:
        self._types: list[FunctionType] = []
        self._imports: list[tuple[str, str, Callee]] = []
        self._functions: list[Function] = []
        self._memory: tuple[int, int | None] | None = None
        self._globals: list[bytes] = []
        self._exports: dict[str, tuple[int, int]] = {}
        self._start: Function | None = None
        self._table: list[Callee] = []
        self._data: list[tuple[int | None, Data]] = []
        self._custom: list[tuple[str, bytes]] = []

    def import_function(
        self, module: str, name: str, params: Sequence[ValueType] = (), results: Sequence[ValueType] = ()
    ) -> Callee:
        """Declare an imported function."""
        if self._functions:
            raise EncodeError("imports come before functions")
        callee = Callee(len(self._imports), name, tuple(results), params)
        self._imports.append((module, name, callee))
        return callee

    def function(self, name: str, results: Sequence[ValueType] = (), *, export: str | None = None) -> Function:
        """Start a function; `name` is what a trap shows. A trap in one without shows the caller's."""
        function = Function(len(self._imports) + len(self._functions), name, tuple(results))
        self._functions.append(function)
        if export is not None:
            self._export(export, _KIND_FUNCTION, function.index)
        return function

    def memory(self, min_pages: int, max_pages: int | None = None, *, export: str | None = None) -> None:
        """Declare the memory, in pages of 64 KiB."""
        if self._memory is not None:
            raise EncodeError("a module has one memory")
        if not 0 <= min_pages <= (MAX_PAGES if max_pages is None else max_pages) <= MAX_PAGES:
            raise EncodeError(f"expected 0 <= pages <= {MAX_PAGES}, got {min_pages} and {max_pages}")
        self._memory = min_pages, max_pages
        if export is not None:
            self._export(export, _KIND_MEMORY, 0)

    def global_i32(self, initial: int, *, is_mutable: bool = True, export: str | None = None) -> GlobalI32:
        """Declare a global variable."""
        self._globals.append(bytes([ValueType.I32, is_mutable]) + i32_const(initial).code + _END)
        if export is not None:
            self._export(export, _KIND_GLOBAL, len(self._globals) - 1)
        return GlobalI32(len(self._globals) - 1)

    def slot(self, function: Callee) -> int:
        """Put `function` into the table and return its number there."""
        self._table.append(function)
        return len(self._table) - 1

    def call_slot(self, selector: I32, like: Callee, *arguments: Expr) -> Effect:
        """Return code that calls the function with number `selector` in the table, which has the type of `like`."""
        if like.results or [a.type for a in arguments] != list(like.signature.params):
            raise EncodeError(f"{like.name}: the arguments of an indirect call do not fit")
        type_number = leb.unsigned(self._type_number(like.signature))
        return Effect(b"".join(a.code for a in arguments) + selector.code + _CALL_INDIRECT + type_number + b"\x00")

    def start(self, function: Function) -> None:
        """Let `function` run when the module is instantiated."""
        self._start = function

    def data(self, address: int, payload: Data) -> None:
        """Let the memory start with `payload` at `address`. It is copied once, when the module is encoded."""
        self._data.append((address, payload))

    def passive_data(self, payload: Data) -> int:
        """Add data that code copies into the memory, with `memory.init`; return its number."""
        self._data.append((None, payload))
        return len(self._data) - 1

    def custom(self, name: str, payload: bytes) -> None:
        """Add a custom section behind the data."""
        self._custom.append((name, payload))

    def encode(self) -> bytes:
        """Return the module."""
        return b"".join([MAGIC, CORE_VERSION, *self._sections()])

    def _sections(self) -> Iterator[Data]:
        """Yield each section; those of the data as they are, because they may be large."""
        imports = [
            _name(module) + _name(name) + bytes([_KIND_FUNCTION]) + leb.unsigned(self._type_number(callee.signature))
            for module, name, callee in self._imports
        ]
        functions = [leb.unsigned(self._type_number(function.signature)) for function in self._functions]
        yield _section(_TYPE, [_function_type(t) for t in self._types])
        yield _section(_IMPORT, imports)
        yield _section(_FUNCTION, functions)
        size = len(self._table)
        yield _section(_TABLE, [bytes([ValueType.FUNCREF]) + _limits(size, size)] if size else [])
        yield _section(_MEMORY, [] if self._memory is None else [_limits(*self._memory)])
        yield _section(_GLOBAL, self._globals)
        yield _section(
            _EXPORT, [_name(name) + bytes([kind]) + leb.unsigned(n) for name, (kind, n) in self._exports.items()]
        )
        if self._start is not None:
            start = leb.unsigned(self._start.index)
            yield bytes([_START]) + leb.unsigned(len(start)) + start
        yield _section(_ELEMENT, self._elements())
        if any(address is None for address, _ in self._data):  # code that names data is checked before they are read
            count = leb.unsigned(len(self._data))
            yield bytes([_DATA_COUNT]) + leb.unsigned(len(count)) + count
        yield _section(_CODE, [function.encode() for function in self._functions])
        yield from self._data_section()
        for name, payload in self._custom:
            yield custom_section(name, payload)
        yield custom_section(_NAME_SECTION, self._names())

    def _elements(self) -> list[bytes]:
        if not self._table:
            return []
        numbers = b"".join(leb.unsigned(callee.index) for callee in self._table)
        return [b"\x00" + i32_const(0).code + _END + leb.unsigned(len(self._table)) + numbers]

    def _data_section(self) -> Iterator[Data]:
        if not self._data:
            return
        if self._memory is None:
            raise EncodeError("data needs a memory")
        heads = [_place(address) + leb.unsigned(len(data)) for address, data in self._data]
        count = leb.unsigned(len(self._data))
        size_bytes = len(count) + sum(map(len, heads)) + sum(len(data) for _, data in self._data)
        yield bytes([_DATA]) + leb.unsigned(size_bytes) + count
        for head, (_, data) in zip(heads, self._data, strict=True):
            yield head
            yield data

    def _names(self) -> bytes:
        callees = [callee for callee in (*(callee for _, _, callee in self._imports), *self._functions) if callee.name]
        names = leb.unsigned(len(callees)) + b"".join(leb.unsigned(c.index) + _name(c.name) for c in callees)
        return _FUNCTION_NAMES + leb.unsigned(len(names)) + names

    def _type_number(self, kind: FunctionType) -> int:
        if kind not in self._types:
            self._types.append(kind)
        return self._types.index(kind)

    def _export(self, name: str, kind: int, number: int) -> None:
        if name in self._exports:
            raise EncodeError(f"two exports are named {name!r}")
        self._exports[name] = kind, number


def custom_section(name: str, payload: bytes) -> bytes:
    """Return one custom section, header included."""
    content = _name(name) + payload
    return bytes([CUSTOM_SECTION]) + leb.unsigned(len(content)) + content


def _section(number: int, entries: Sequence[bytes]) -> bytes:
    """Return a section that is a vector of entries; nothing when there are none."""
    if not entries:
        return b""
    content = leb.unsigned(len(entries)) + b"".join(entries)
    return bytes([number]) + leb.unsigned(len(content)) + content


def _place(address: int | None) -> bytes:
    """Return how a data segment starts: with its kind, and its address if it has one."""
    return b"\x01" if address is None else b"\x00" + i32_const(address).code + _END


def _name(text: str) -> bytes:
    raw = text.encode()
    return leb.unsigned(len(raw)) + raw


def _function_type(kind: FunctionType) -> bytes:
    return _FUNCTION_FORM + b"".join(leb.unsigned(len(types)) + bytes(types) for types in (kind.params, kind.results))


def _limits(minimum: int, maximum: int | None) -> bytes:
    if maximum is None:
        return b"\x00" + leb.unsigned(minimum)
    return b"\x01" + leb.unsigned(minimum) + leb.unsigned(maximum)
