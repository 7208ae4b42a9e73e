"""ONNX in: a model file read, checked, its shapes bound, its operators said in the operations of `compiler.ir`."""

from compiler.importer.importer import ImportedModel, import_model
from compiler.importer.source import node_count, read_model

__all__ = ["ImportedModel", "import_model", "node_count", "read_model"]
