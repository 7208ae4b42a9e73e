"""Constants that are stored small: the module makes exactly the same floats of them, or they stay as they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from compiler.kernels.expansion import SCRATCH_BYTES, Codes, write_expansion
from compiler.kernels.walk import Floats
from compiler.kernels.winograd import TAPS, transformed_filters
from compiler.lowering.storing import Stored, encode, stored, stored_filters
from compiler.wasm import PAGE_BYTES, Function, Module, i32, memory
from tests.compiler.kernel_runner import GUARD, run_module

HOSTILE = (0.0, -0.0, 1e-45, -3e-39, 1.2e-38, 65504.0, 65520.0, 3.4e38, np.inf, -np.inf, np.nan)
NUMBERS = st.sampled_from(HOSTILE) | st.floats(width=32)


def bits(numbers: Floats) -> NDArray[np.uint32]:
    """Return floats as what is equal only if every bit is."""
    return np.ascontiguousarray(numbers).view(np.uint32).ravel()


def expanded(how: Stored, count: int) -> Floats:
    """Return what a module makes of a stored constant of `count` floats."""
    rows, kernel = how.rows, how.kernel
    place = -(-(GUARD + SCRATCH_BYTES) // GUARD) * GUARD
    module = Module()
    module.memory(pages := -(-(place + 4 * count + GUARD) // PAGE_BYTES), pages, export="memory")
    segment = module.passive_data(how.payload)

    def work(infer: Function) -> None:
        expand = module.function("expand")
        write_expansion(expand, kernel, GUARD, segment)
        times = rows.rows // kernel.rows_at_once
        infer.do(expand(place, 0, rows.groups, 4 * rows.heads * rows.width, times, rows.width, how.plane_bytes))
        infer.do(memory.fill(i32.const(GUARD), 0, SCRATCH_BYTES))

    return np.frombuffer(run_module(module, work, place, 4 * count), np.float32)


def quantised(
    rng: np.random.Generator, shape: tuple[int, int, int], scales: Floats, zeros: NDArray[np.int64]
) -> Floats:
    """Return what a DequantizeLinear makes of random bytes: a scale and a zero point for each column of a group."""
    codes = rng.integers(0, 256, shape)
    with np.errstate(all="ignore"):
        return (codes - zeros[:, None]).astype(np.float32) * scales[:, None]


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 40), st.sampled_from([4, 8, 12, 128]))


@pytest.mark.property
@given(SHAPES, st.integers(0, 1), st.data())
def test_bytes_times_scales_come_back_bit_by_bit(shape: tuple[int, int, int], heads: int, data: st.DataObject) -> None:
    """A scale and a zero point for each column; heads are any floats at all."""
    groups, rows, width = shape
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    scales = np.exp(rng.uniform(-20, 3, (groups, width))).astype(np.float32)
    zeros = rng.integers(0, 256, (groups, width)) if data.draw(st.booleans()) else np.full((groups, width), 128)
    body = quantised(rng, shape, scales, zeros)
    head = np.full((groups, heads, width), data.draw(NUMBERS), np.float32)
    numbers = np.concatenate([head, body], axis=1)
    found = encode(numbers, heads)
    assert found is not None
    assert found.kernel.codes is Codes.BYTES
    assert groups * width * (5 + 4 * heads + rows) == len(found.payload)
    np.testing.assert_array_equal(bits(numbers), bits(expanded(found, numbers.size)))


@pytest.mark.property
@given(SHAPES, st.lists(NUMBERS, min_size=1, max_size=4), st.integers(0, 255), st.booleans())
def test_hostile_scales_survive(
    shape: tuple[int, int, int], scales: list[float], zero: int, is_negative_zero: bool
) -> None:
    """0, NaN, infinities, denormals, what overflows, and zeros with a sign: exactly the same, in whatever form."""
    groups, _, width = shape
    repeated = np.resize(np.array(scales, np.float32), (groups, width))
    numbers = quantised(np.random.default_rng(1), shape, repeated, np.full((groups, width), zero))
    if is_negative_zero:
        numbers[-1, -1, -1] = -0.0
    found = encode(numbers, 0)
    if found is not None:
        np.testing.assert_array_equal(bits(numbers), bits(expanded(found, numbers.size)))


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (np.float32(-0.0), "a code of zero is a zero without a sign"),
        (np.float32(0.3001), "it is no multiple of the scale"),
        (np.float32(1001 * 0.25), "it is too far from the others"),
        (np.float32(np.nan), "it is no number"),
    ],
)
def test_one_number_that_does_not_fit_is_enough(number: np.float32, why: str) -> None:
    """Then bytes are not taken."""
    body = np.arange(-128, 128, dtype=np.float32).reshape(1, 64, 4) * np.float32(0.25)
    fitting = encode(body, 0)
    assert fitting is not None
    assert fitting.kernel.codes is Codes.BYTES
    body[0, 32, 0] = number
    found = encode(body, 0)
    assert found is None or found.kernel.codes is Codes.HALVES, why


def test_every_half_comes_back() -> None:
    """All 16-bit floats, denormals, infinities and quiet NaN with their bits included."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    is_signalling = (halves & 0x7C00 == 0x7C00) & (halves & 0x3FF != 0) & (halves & 0x200 == 0)
    numbers = np.resize(halves[~is_signalling].view(np.float16), (2, 300, 128)).astype(np.float32)
    found = encode(numbers, 0)
    assert found is not None
    assert (Codes.HALVES, 2 * numbers.size) == (found.kernel.codes, len(found.payload))
    np.testing.assert_array_equal(bits(numbers), bits(expanded(found, numbers.size)))


@pytest.mark.parametrize("codes", list(Codes))
@pytest.mark.parametrize("step", [2, 4])
def test_filters_are_transformed_as_the_compiler_does_it(step: int, codes: Codes) -> None:
    """Bit by bit, from each form, more rows than fit the scratch at once."""
    rng = np.random.default_rng(3)
    out, channels = 24, 130
    weights = rng.standard_normal((out, channels, 3, 3), np.float32)
    if codes is Codes.HALVES:
        weights = weights.astype(np.float16).astype(np.float32)
    elif codes is Codes.BYTES:
        weights = rng.integers(-127, 128, weights.shape).astype(np.float32) * np.float32(0.0123)
    taps = weights.transpose(1, 2, 3, 0).reshape(channels * TAPS, out)
    numbers = np.concatenate([np.zeros((1, out), np.float32), taps])[None]
    want = np.pad(transformed_filters(weights, step), ((0, 0), (1, 0), (0, 0)))
    how = stored_filters(numbers, step, plane_bytes=want[0].nbytes)
    assert codes is how.kernel.codes
    np.testing.assert_array_equal(bits(want), bits(expanded(how, want.size)))


@pytest.mark.parametrize(
    ("shape", "axis"), [((1003,), None), ((50, 7, 3), None), ((30, 64), 0), ((100, 24), 1), ((4, 4, 4, 16), None)]
)
def test_tensors_of_any_shape_are_recognised(shape: tuple[int, ...], axis: int | None) -> None:
    """With one scale, or one for each entry of the first or the last axis; sizes that fill no row included."""
    rng = np.random.default_rng(5)
    per = [n if a == axis else 1 for a, n in enumerate(shape)]
    scales = rng.uniform(0.001, 0.1, per).astype(np.float32)
    array = rng.integers(-127, 128, shape).astype(np.float32) * scales
    found = stored(array, 0)
    assert found is not None
    assert len(found.payload) < 0.45 * array.nbytes
    count = found.rows.groups * found.rows.rows * found.rows.width
    np.testing.assert_array_equal(bits(array), bits(expanded(found, count)[: array.size]))


def test_other_numbers_stay_as_they_are() -> None:
    """Floats of full precision, few numbers, whole numbers of another type."""
    rng = np.random.default_rng(5)
    assert stored(rng.standard_normal((64, 64), np.float32), 0) is None
    assert stored(rng.standard_normal((4, 33, 128), np.float32), 1) is None
    assert stored(np.ones(8, np.float32), 0) is None
    assert stored(np.ones((64, 64), np.int32), 0) is None
