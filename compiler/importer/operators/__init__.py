"""Converters from ONNX operators, by family. Importing this package registers all of them."""

from compiler.importer.operators import activation, elementwise, linear, pooling, reduction, shaping

__all__ = ["activation", "elementwise", "linear", "pooling", "reduction", "shaping"]
