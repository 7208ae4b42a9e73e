"""Tensors as JSON numbers and as the raw bytes of the ABI: dense, row-major, little-endian.

JSON numbers may be nested by the tensor's shape or given as one flat list. Refuses every other shape, numbers
that the datatype cannot hold, and anything that is not a number.
"""

import struct

from controller.bundling.errors import TensorValueError
from protocol.datatypes import FORMATS
from protocol.tensors import TensorSpec

Number = int | float | bool
Json = object
"""What `msgspec.json.decode` returns without a type: checked here, not believed."""

_FLOATS = ("FP16", "FP32", "FP64")


def to_bytes(spec: TensorSpec, value: Json) -> bytes:
    """Return the bytes of the tensor that the JSON `value` spells; raises TensorValueError."""
    numbers: list[Number] = []
    nested = isinstance(value, list) and len(spec.shape) > 1 and any(isinstance(item, list) for item in value)
    _collect(spec, value, spec.shape if nested else (spec.elements,), numbers)
    try:
        return struct.pack(f"<{spec.elements}{FORMATS[spec.datatype]}", *numbers)
    except (struct.error, OverflowError) as error:
        raise TensorValueError(f"tensor {spec.name!r}: a number does not fit {spec.datatype}: {error}") from error


def from_bytes(spec: TensorSpec, data: bytes) -> list[Number]:
    """Return the numbers of the tensor, flat and row-major."""
    return list(struct.unpack(f"<{spec.elements}{FORMATS[spec.datatype]}", data))


def _collect(spec: TensorSpec, value: Json, shape: tuple[int, ...], into: list[Number]) -> None:
    if not shape or (shape == (1,) and not isinstance(value, list)):
        into.append(_number(spec, value))
        return
    if not isinstance(value, list) or len(value) != shape[0]:
        got = f"a list of {len(value):,}" if isinstance(value, list) else repr(value)[:40]
        raise TensorValueError(
            f"tensor {spec.name!r}: expected {spec.datatype} of shape {list(spec.shape)}, "
            f"nested or as a flat list of {spec.elements:,} numbers, got {got} where {shape[0]:,} belong"
        )
    for item in value:
        _collect(spec, item, shape[1:], into)


def _number(spec: TensorSpec, value: Json) -> Number:
    wants_float = spec.datatype in _FLOATS
    is_number = isinstance(value, int | float) and (wants_float or not isinstance(value, float))
    if spec.datatype == "BOOL":
        is_number = isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))
    elif isinstance(value, bool):
        is_number = False
    if not is_number or not isinstance(value, int | float):
        kind = "true or false" if spec.datatype == "BOOL" else "a number" if wants_float else "a whole number"
        raise TensorValueError(f"tensor {spec.name!r}: expected {kind} for {spec.datatype}, got {repr(value)[:40]}")
    return value
