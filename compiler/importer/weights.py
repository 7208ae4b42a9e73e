"""Constants of a file as arrays: dense, sparse, and those of 16-bit floats that are only stored so."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, numpy_helper

from compiler.importer.reading import bodies
from compiler.importer.types import ONNX_TYPES, type_name
from compiler.ir.builder import MAX_FOLDED_BYTES

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def dense_array(tensor: SparseTensorProto) -> NDArray[np.generic]:
    """Return all elements of a sparse tensor; raises ValueError for one that is damaged or too large."""
    values, indices = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    if tensor.values.data_type not in ONNX_TYPES:
        raise ValueError(f"elements of type {type_name(tensor.values.data_type)} do not occur in modules")
    if min(tensor.dims, default=1) < 0 or np.prod(tensor.dims, dtype=float) * values.itemsize > MAX_FOLDED_BYTES:
        raise ValueError(f"expected at most {MAX_FOLDED_BYTES:,} bytes, got the shape {list(tensor.dims)}")
    array = np.zeros(tuple(tensor.dims), values.dtype)
    places = tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, array.shape)
    array[places] = values
    return array


def widen_stored_halves(model: ModelProto) -> None:
    """Make constants of 16-bit floats, which nodes only cast to another type, 32-bit floats: the same numbers."""
    tensors = dict(_halves(model.graph))
    if not tensors:
        return
    for node in _all_nodes(model.graph):
        for name in node.input:
            if node.op_type != "Cast":
                tensors.pop(name, None)
    for name in (value.name for graph in _all_graphs(model.graph) for value in graph.output):
        tensors.pop(name, None)
    for name, tensor in tensors.items():
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), name))


def _halves(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Yield the constants of 16-bit floats by name."""
    for each in _all_graphs(graph):
        yield from ((tensor.name, tensor) for tensor in each.initializer if tensor.data_type in _HALVES)
        for node in each.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.t.data_type in _HALVES:
                    yield node.output[0], attribute.t


def _all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from _all_graphs(body)


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for each in _all_graphs(graph):
        yield from each.node
