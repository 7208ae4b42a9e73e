"""What ONNX calls the types of elements.

There are no 16-bit floats in a module: they become 32-bit floats, which hold the same numbers.
"""

from typing import Final

from onnx import TensorProto

from compiler.dtypes import DType

ONNX_TYPES: Final[dict[int, DType]] = {
    TensorProto.BOOL: DType.BOOL,
    TensorProto.UINT8: DType.U8,
    TensorProto.UINT16: DType.U16,
    TensorProto.UINT32: DType.U32,
    TensorProto.UINT64: DType.U64,
    TensorProto.INT8: DType.I8,
    TensorProto.INT16: DType.I16,
    TensorProto.INT32: DType.I32,
    TensorProto.INT64: DType.I64,
    TensorProto.FLOAT: DType.F32,
    TensorProto.DOUBLE: DType.F64,
    TensorProto.FLOAT16: DType.F32,
    TensorProto.BFLOAT16: DType.F32,
}
"""By the number in a file; other types do not occur in modules."""
HALVES: Final = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def type_name(number: int) -> str:
    """Return the name that ONNX gives a type of elements."""
    known = TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(number)) if number in known else f"number {number}"
