"""Finding NaN in raw tensors: wherever it stands, and nothing else."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.nan_outputs import SLICE_BYTES, nan_finder
from protocol.datatypes import FORMATS, ITEM_BYTES, Datatype
from protocol.tensors import TensorSpec

FLOATS: tuple[Datatype, ...] = ("FP16", "FP32", "FP64")


def spec(datatype: Datatype, count: int, name: str = "y") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=(count,))


@pytest.mark.parametrize("datatype", FLOATS)
@given(words=st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=5))
def test_found_is_what_the_standard_library_says(datatype: Datatype, words: list[bytes]) -> None:
    """For every pattern of bits, `math.isnan` of what `struct` reads."""
    raw = b"".join(words)
    count = len(raw) // ITEM_BYTES[datatype]
    expected = any(map(math.isnan, struct.unpack(f"<{count}{FORMATS[datatype]}", raw)))
    assert (("y",) if expected else ()) == nan_finder([spec(datatype, count)])([raw])


@pytest.mark.parametrize("datatype", FLOATS)
def test_infinities_and_the_largest_numbers_are_none(datatype: Datatype) -> None:
    """What stands beside NaN in the order of the bits is told from it, of both signs, at every place."""
    item_bytes = ITEM_BYTES[datatype]
    infinity = int.from_bytes(struct.pack(f"<{FORMATS[datatype]}", math.inf), "little")
    sign = 1 << (8 * item_bytes - 1)
    numbers = [0, infinity - 1, infinity, sign, sign | (infinity - 1), sign | infinity]
    nans = [infinity + 1, sign - 1, sign | (infinity + 1), 2 * sign - 1]
    find = nan_finder([spec(datatype, 3)])
    for place in range(3):
        for bits in (*numbers, *nans):
            row = [sign | infinity] * 3
            row[place] = bits
            raw = b"".join(number.to_bytes(item_bytes, "little") for number in row)
            assert (bits, ("y",) if bits in nans else ()) == (bits, find([raw]))


@pytest.mark.parametrize("datatype", FLOATS)
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_it_is_found_in_every_slice(datatype: Datatype, more: int) -> None:
    """At the edges of the slices of a large tensor, whose last one is full, short or new."""
    item_bytes = ITEM_BYTES[datatype]
    slice_items = SLICE_BYTES // item_bytes
    count = 3 * slice_items + more
    find = nan_finder([spec(datatype, count)])
    number, nan = struct.pack(f"<{FORMATS[datatype]}", -1.5), struct.pack(f"<{FORMATS[datatype]}", math.nan)
    assert () == find([number * count])
    for at in (0, slice_items - 1, slice_items, 2 * slice_items, count - 1):
        assert ("y",) == find([number * at + nan + number * (count - at - 1)])


def test_only_floats_are_searched() -> None:
    """Of several outputs those with NaN are named; the bits of whole numbers mean nothing."""
    outputs = [spec("INT32", 2, "a"), spec("FP32", 2, "b"), spec("UINT8", 8, "c"), spec("FP64", 1, "d")]
    find = nan_finder(outputs)
    assert ("b", "d") == find([b"\xff" * 8] * 4)
    assert () == find([b"\xff" * 8, bytes(8), b"\xff" * 8, bytes(8)])
