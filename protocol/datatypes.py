"""The datatypes of tensors: those of the Open Inference Protocol v2 that have a fixed size. Standard library alone."""

import struct
from typing import Final, Literal

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"
]
FORMATS: Final[dict[Datatype, str]] = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
"""The letter of each in a format of `struct`, behind a `<`."""
ITEM_BYTES: Final[dict[Datatype, int]] = {name: struct.calcsize(f"<{letter}") for name, letter in FORMATS.items()}
