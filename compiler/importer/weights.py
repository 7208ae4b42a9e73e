"""Constants of a file as arrays: dense, sparse, and those of 16-bit floats, which become 32-bit floats."""

import numpy as np
from numpy.typing import NDArray
from onnx import SparseTensorProto, TensorProto, numpy_helper

from compiler.importer.types import HALVES, ONNX_TYPES, type_name
from compiler.ir.builder import MAX_FOLDED_BYTES


def array_of(tensor: TensorProto) -> NDArray[np.generic]:
    """Return the elements of a tensor; raises ValueError for one that is damaged or of a type that modules lack."""
    if tensor.data_type not in ONNX_TYPES:
        raise ValueError(f"elements of type {type_name(tensor.data_type)} do not occur in modules: use 32-bit floats")
    array = np.asarray(numpy_helper.to_array(tensor))
    return array.astype(np.float32) if tensor.data_type in HALVES else array


def dense_array(tensor: SparseTensorProto) -> NDArray[np.generic]:
    """Return all elements of a sparse tensor; raises ValueError for one that is damaged or too large."""
    values, indices = array_of(tensor.values), numpy_helper.to_array(tensor.indices)
    if min(tensor.dims, default=1) < 0 or np.prod(tensor.dims, dtype=float) * values.itemsize > MAX_FOLDED_BYTES:
        raise ValueError(f"expected at most {MAX_FOLDED_BYTES:,} bytes, got the shape {list(tensor.dims)}")
    array = np.zeros(tuple(tensor.dims), values.dtype)
    places = tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, array.shape)
    array[places] = values
    return array
