"""How constants are stored in a module: in the fewest bytes from which exactly the same floats come again.

A module has floats in memory, because its kernels compute with them; what an OTA update carries may be smaller. It is
found in the numbers themselves, not in where they come from: weights that a quantiser made are whole numbers of one
byte times a scale for each column, those of a model of 16-bit floats have no more bits than that. Each form is
computed back here, as the module will do it, and taken only when every bit is the same; all else stays as it is.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.kernels.expansion import MAX_WIDTH, Codes, ExpansionKernel
from compiler.kernels.walk import LANES, Floats

_LEAST_BYTES: Final = 512
"""Smaller constants are not worth the code."""
_WORTH: Final = 0.9
"""A form has to be so much smaller."""
_PLAIN_WIDTH: Final = 16
"""Numbers in a row where one scale is for all; what lies behind the end of a constant has room for so many."""
_LARGEST: Final = 255
"""The greatest distance of two codes."""
_SAMPLE: Final = 32
_COLUMNS_AT_ONCE: Final = 32
_USUAL_PEAKS: Final = (127, 128, 255)
"""What the greatest number of a column most often is, as a multiple of the scale."""


class Rows(msgspec.Struct, frozen=True):
    """How numbers lie: groups of rows, of which the first may be heads, which are stored as they are."""

    groups: int
    heads: int
    rows: int
    width: int
    """A multiple of four, at most MAX_WIDTH."""


class Stored(msgspec.Struct, frozen=True):
    """A constant in fewer bytes, and what makes floats of it again."""

    kernel: ExpansionKernel
    rows: Rows
    payload: bytes
    """The records of all groups."""
    plane_bytes: int = 0
    """For filters that are transformed: from one number of a window to the next."""


def stored(array: NDArray[Any], heads: int) -> Stored | None:
    """Return how to store a constant, or None where it had best stay as it is.

    One with heads is (groups, rows, width); others have any shape.
    """
    if array.dtype != np.float32 or array.nbytes < _LEAST_BYTES:
        return None
    for numbers in [array] if heads else _arrangements(array):
        found = encode(numbers, heads)
        if found is not None and len(found.payload) < _WORTH * array.nbytes:
            return found
    return None


def _arrangements(array: Floats) -> Iterator[Floats]:
    """Yield a constant as groups of rows: as one, then as one for each entry of its first axis, or of its last."""
    flat = array.ravel()
    yield np.pad(flat, (0, -len(flat) % _PLAIN_WIDTH)).reshape(1, -1, _PLAIN_WIDTH)
    if array.ndim > 1 and array[0].size % LANES == 0:
        yield flat.reshape(len(array), -1, LANES)
    if array.ndim > 1 and array.shape[-1] <= MAX_WIDTH and array.shape[-1] % LANES == 0:
        yield flat.reshape(1, -1, array.shape[-1])


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def encode(numbers: Floats, heads: int) -> Stored | None:
    """Return numbers (groups, heads + rows, width) in the smallest form that gives them back bit by bit, or None."""
    numbers = np.ascontiguousarray(numbers)
    groups, rows, width = numbers.shape
    body = numbers[:, heads:]
    if rows <= heads or width > MAX_WIDTH or width % LANES:
        return None
    shape = Rows(groups, heads, rows - heads, width)
    head = numbers[:, :heads].reshape(groups, -1).view(np.uint8)
    if (found := _as_bytes(body)) is not None:
        scales, zeros, codes = found
        parts = [scales.view(np.uint8), zeros, head, codes.reshape(groups, -1)]
        return Stored(ExpansionKernel(Codes.BYTES), shape, np.concatenate(parts, axis=1).tobytes())
    halves = body.astype(np.float16)
    if _is_same(halves.astype(np.float32), body):
        parts = [head, np.ascontiguousarray(halves).reshape(groups, -1).view(np.uint8)]
        return Stored(ExpansionKernel(Codes.HALVES), shape, np.concatenate(parts, axis=1).tobytes())
    return None


def _is_same(a: Floats, b: Floats) -> bool:
    return np.array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32))


def _as_bytes(body: Floats) -> tuple[Floats, NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Return scales and zeros (groups, width) and codes (groups, rows, width) of numbers, or None.

    Each number is exactly the float nearest to (code - zero) * scale.
    """
    groups, rows, width = body.shape
    columns = np.ascontiguousarray(body.transpose(0, 2, 1)).reshape(-1, rows)
    if not np.isfinite(columns).all() or (scales := _scales(columns)) is None:
        return None
    steps = _steps(columns, scales[:, None])
    low, high = steps.min(axis=1), steps.max(axis=1)
    is_signed_byte = (low >= -128) & (high <= 127)
    zeros = np.where(is_signed_byte, 128, np.clip(-low, 0, _LARGEST))
    codes = steps + zeros[:, None]
    if codes.min() < 0 or codes.max() > _LARGEST:
        return None
    again = (codes - zeros[:, None]).astype(np.float32) * scales[:, None]
    if not _is_same(again, columns):
        return None
    turned = codes.astype(np.uint8).reshape(groups, width, rows).transpose(0, 2, 1)
    return scales.reshape(groups, width), zeros.astype(np.uint8).reshape(groups, width), np.ascontiguousarray(turned)


def _scales(columns: Floats) -> Floats | None:
    """Return for each column of finite numbers (columns, rows) a scale of which they are whole multiples, or None."""
    peaks = np.abs(columns).max(axis=1)
    scales = np.ones(len(columns), np.float32)
    waiting = np.flatnonzero(peaks)
    if not len(waiting):
        return scales
    highest = int(np.argmax(peaks))
    first = _searched(columns[highest : highest + 1], peaks[highest : highest + 1])
    if first is None:
        return None
    trials = [np.full(len(columns), first[0], np.float32)]  # one for all is what many tensors have
    trials += [_near(peaks, number)[..., n] for number in _USUAL_PEAKS for n in range(3)]
    for trial in trials:
        fits = _fits(columns[waiting], trial[waiting])
        scales[waiting[fits]] = trial[waiting[fits]]
        waiting = waiting[~fits]
        if not len(waiting):
            return scales
    for start in range(0, len(waiting), _COLUMNS_AT_ONCE):
        part = waiting[start : start + _COLUMNS_AT_ONCE]
        found = _searched(columns[part], peaks[part])
        if found is None:
            return None
        scales[part] = found
    return scales


def _near(peaks: Floats, number: "int | NDArray[np.int64]") -> Floats:
    """Return the scales of which `number` may round to each peak, along a new axis: the quotient, and beside it."""
    middle = (peaks / np.float64(number)).astype(np.float32)
    beside = (np.nextafter(middle, np.float32(limit)) for limit in (0, np.inf))
    scales: Floats = np.maximum(np.stack([middle, *beside], axis=-1), np.float32(1e-45))
    return scales


def _steps(numbers: Floats, scales: Floats) -> NDArray[np.float64]:
    """Return how many times the scales numbers are, to the nearest whole number; what is too many stays so."""
    return np.clip(np.rint(numbers / scales.astype(np.float64)), -_LARGEST - 1, _LARGEST + 1)


def _fits(columns: Floats, scales: Floats) -> NDArray[np.bool_]:
    """Return which columns are whole multiples of a scale, in the range of a byte."""
    steps = _steps(columns, scales[:, None])
    in_range = steps.max(axis=1) - np.minimum(steps.min(axis=1), 0) <= _LARGEST
    in_range &= np.maximum(steps.max(axis=1), 0) - steps.min(axis=1) <= _LARGEST
    fits: NDArray[np.bool_] = in_range & (steps.astype(np.float32) * scales[:, None] == columns).all(axis=1)
    return fits


def _searched(columns: Floats, peaks: Floats) -> Floats | None:
    """Return a scale for each column, tried with every number that its peak can be, the finest scale first; or None."""
    rows = columns.shape[1]
    sample = columns[:, np.unique(np.linspace(0, rows - 1, min(rows, _SAMPLE)).astype(int))]
    candidates = _near(peaks[:, None], np.arange(_LARGEST, 0, -1)).reshape(len(peaks), -1)
    steps = _steps(sample[:, None], candidates[:, :, None])
    fits = (steps.astype(np.float32) * candidates[:, :, None] == sample[:, None]).all(axis=2)
    scales = np.ones(len(columns), np.float32)
    for number, column in enumerate(columns):
        for candidate in candidates[number, fits[number]]:
            if _fits(column[None], candidate[None])[0]:
                scales[number] = candidate
                break
        else:
            return None
    return scales


def stored_filters(numbers: Floats, step: int, plane_bytes: int) -> Stored:
    """Return how to store filters that the module transforms when it starts.

    They are (panels, 1 + 9 * channels, columns of a panel), finite; the first row of a panel is its bias. A plane is
    all panels of one number of a window.
    """
    plain = encode(numbers, 1)
    if plain is None:
        groups, rows, width = numbers.shape
        plain = Stored(ExpansionKernel(Codes.FLOATS), Rows(groups, 1, rows - 1, width), numbers.tobytes())
    return Stored(ExpansionKernel(plain.kernel.codes, step), plain.rows, plain.payload, plane_bytes)
