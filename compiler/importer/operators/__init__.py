"""Converters from ONNX operators, by family. Importing this package registers all of them."""

from compiler.importer.operators import (
    activation,
    einsum,
    elementwise,
    indexing,
    linear,
    pooling,
    reduction,
    resizing,
    shaping,
    transposed,
)

__all__ = [
    "activation",
    "einsum",
    "elementwise",
    "indexing",
    "linear",
    "pooling",
    "reduction",
    "resizing",
    "shaping",
    "transposed",
]
