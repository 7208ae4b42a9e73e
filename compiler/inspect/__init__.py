"""What is in a module: read from its bytes, without an engine. Hostile input is bounded and refused by name."""

from compiler.inspect.features import required_features
from compiler.inspect.module import inspect_module
from compiler.inspect.report import (
    CustomSection,
    DataSegment,
    Export,
    FunctionReport,
    Import,
    MemoryReport,
    ModuleReport,
)
from compiler.inspect.text import module_text

__all__ = [
    "CustomSection",
    "DataSegment",
    "Export",
    "FunctionReport",
    "Import",
    "MemoryReport",
    "ModuleReport",
    "inspect_module",
    "module_text",
    "required_features",
]
