"""Finding NaN in the outputs of a model, for devices whose policy flags it.

Pure, on raw tensors, without numpy: a NaN is a magnitude above infinity's, so that what is missing from infinity to
the largest magnitude, added to a NaN and to nothing else, reaches the sign's bit. All numbers of a slice are added to
at once, as the lanes of one large integer; a sum never leaves its lane.
Source of the layouts: IEEE 754-2019, section 3.4.
"""

from collections.abc import Callable, Sequence
from typing import Final

from protocol.datatypes import ITEM_BYTES, Datatype
from protocol.tensors import TensorSpec

FindNan = Callable[[Sequence[bytes]], tuple[str, ...]]
"""Takes the raw tensors of all outputs, returns the names of those in which NaN stands."""
SLICE_BYTES: Final = 4096
"""As much as is looked at in one go: more is no quicker, and takes more memory."""
_INFINITY: Final[dict[Datatype, int]] = {"FP16": 0x7C00, "FP32": 0x7F80_0000, "FP64": 0x7FF0_0000_0000_0000}


def nan_finder(outputs: Sequence[TensorSpec]) -> FindNan:
    """Return what looks through the outputs of a model; those that are no floats cost nothing."""
    finders = [(index, spec.name, _finder(spec)) for index, spec in enumerate(outputs) if spec.datatype in _INFINITY]

    def find(raw: Sequence[bytes]) -> tuple[str, ...]:
        return tuple([name for index, name, has_nan in finders if has_nan(raw[index])])

    return find


def _finder(spec: TensorSpec) -> Callable[[bytes], bool]:
    """Return what says of a raw tensor of `spec` whether NaN stands in it."""
    item_bytes = ITEM_BYTES[spec.datatype]
    sign, infinity = 1 << (8 * item_bytes - 1), _INFINITY[spec.datatype]
    count = min(spec.size_bytes, SLICE_BYTES) // item_bytes

    def in_each(lane: int) -> int:
        return int.from_bytes(lane.to_bytes(item_bytes, "little") * count, "little")

    magnitudes, missing, signs = in_each(sign - 1), in_each(sign - 1 - infinity), in_each(sign)

    def in_slice(raw: bytes | memoryview) -> bool:
        return bool(((int.from_bytes(raw, "little") & magnitudes) + missing) & signs)

    def in_slices(raw: bytes) -> bool:
        view = memoryview(raw)
        return any(in_slice(view[start : start + SLICE_BYTES]) for start in range(0, len(raw), SLICE_BYTES))

    return in_slice if spec.size_bytes <= SLICE_BYTES else in_slices
