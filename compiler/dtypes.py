"""The types of elements: how wide they are, what numpy and the tensor ABI call them."""

import enum

import numpy as np

from protocol.datatypes import Datatype


class DType(enum.Enum):
    """The type of one element; the value is numpy's name of it."""

    BOOL = "bool"
    U8 = "uint8"
    U16 = "uint16"
    U32 = "uint32"
    U64 = "uint64"
    I8 = "int8"
    I16 = "int16"
    I32 = "int32"
    I64 = "int64"
    F32 = "float32"
    F64 = "float64"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The same type in numpy."""
        return np.dtype(self.value)

    @property
    def item_bytes(self) -> int:
        """The size of one element."""
        return self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        """Whether it has fractions."""
        return self in (DType.F32, DType.F64)

    @property
    def is_integer(self) -> bool:
        """Whether it is a whole number."""
        return not self.is_float and self is not DType.BOOL

    @property
    def is_signed(self) -> bool:
        """Whether it has negative values."""
        return self.is_float or self.value.startswith("int")

    @property
    def bits(self) -> int:
        """The size of one element in bits."""
        return 8 * self.item_bytes

    @property
    def datatype(self) -> Datatype:
        """The same type in the tensor ABI."""
        return _DATATYPES[self]


_DATATYPES: dict[DType, Datatype] = {
    DType.BOOL: "BOOL",
    DType.U8: "UINT8",
    DType.U16: "UINT16",
    DType.U32: "UINT32",
    DType.U64: "UINT64",
    DType.I8: "INT8",
    DType.I16: "INT16",
    DType.I32: "INT32",
    DType.I64: "INT64",
    DType.F32: "FP32",
    DType.F64: "FP64",
}


def dtype_of(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> DType:
    """Return the type of the elements of `array`; raises ValueError for one that we do not have."""
    return DType(array.dtype.name)
