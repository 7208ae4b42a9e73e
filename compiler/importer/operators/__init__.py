"""Converters from ONNX operators, by family. Importing this package registers all of them."""

from compiler.importer.operators import (
    activation,
    control,
    einsum,
    elementwise,
    indexing,
    learned,
    linear,
    pooling,
    quantised,
    recurrent,
    reduction,
    resizing,
    shaping,
    transposed,
    trees,
)

__all__ = [
    "activation",
    "control",
    "einsum",
    "elementwise",
    "indexing",
    "learned",
    "linear",
    "pooling",
    "quantised",
    "recurrent",
    "reduction",
    "resizing",
    "shaping",
    "transposed",
    "trees",
]
