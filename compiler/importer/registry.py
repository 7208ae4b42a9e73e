"""Which function converts which ONNX operator."""

from collections.abc import Callable

from compiler.importer.context import NodeContext

Converter = Callable[[NodeContext], None]
CONVERTERS: dict[tuple[str, str], Converter] = {}
"""By domain and type of operator."""
REFUSALS: dict[tuple[str, str], str] = {}
"""Why there is no converter of an operator, where there is more to say than that there is none."""


def operator(*names: str, domain: str = "") -> Callable[[Converter], Converter]:
    """Register a function as the converter of operators."""

    def register(converter: Converter) -> Converter:
        for name in names:
            CONVERTERS[domain, name] = converter
        return converter

    return register
