"""What an inspection finds: the typed report behind `fleetctl inspect`."""

from typing import Literal

import msgspec

from compiler.section import Plan
from protocol.tensors import ModelSpec

Kind = Literal["function", "table", "memory", "global"]


class Import(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the module wants from its host."""

    module: str
    name: str
    kind: Kind
    signature: str | None = None
    """Of a function, such as `(i32, f32) -> i32`."""


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the host may use."""

    name: str
    kind: Kind
    index: int
    signature: str | None = None


class MemoryReport(msgspec.Struct, frozen=True, kw_only=True):
    """A memory, imported or not; `max_bytes` is None when it sets itself no bound."""

    min_bytes: int
    max_bytes: int | None


class FunctionReport(msgspec.Struct, frozen=True, kw_only=True):
    """One function of the module."""

    index: int
    name: str | None
    """From the name section, else the name of its export."""
    signature: str
    code_bytes: int


class DataSegment(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that the memory starts with; `address` is None when it is not a constant or the segment is passive."""

    address: int | None
    size_bytes: int


class CustomSection(msgspec.Struct, frozen=True, kw_only=True):
    """A section that an engine ignores."""

    name: str
    size_bytes: int


class ModuleReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a module declares."""

    size_bytes: int
    imports: tuple[Import, ...]
    exports: tuple[Export, ...]
    memories: tuple[MemoryReport, ...]
    functions: tuple[FunctionReport, ...]
    data: tuple[DataSegment, ...]
    custom_sections: tuple[CustomSection, ...]
    required_features: tuple[str, ...]
    spec: ModelSpec | None
    plan: Plan | None = None
    """Of a module that this compiler wrote."""

    @property
    def code_bytes(self) -> int:
        """The size of all function bodies."""
        return sum(function.code_bytes for function in self.functions)

    @property
    def layers(self) -> tuple[tuple[FunctionReport, int], ...]:
        """The functions of the layers in the order in which they run, with their multiply-adds."""
        functions = {function.index: function for function in self.functions}
        entries = self.plan.layers if self.plan else ()
        return tuple((functions[number], work) for number, work in entries if number in functions)

    @property
    def data_bytes(self) -> int:
        """The size of all data segments."""
        return sum(segment.size_bytes for segment in self.data)
