"""Inputs of bytes in place of floats: the model scales them itself, so that a host hands over pixels as they are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.errors import OptionError
from compiler.formula import formula_of
from compiler.ir import GraphBuilder, TensorType
from compiler.options import Normalization


def bytes_input(builder: GraphBuilder, kind: TensorType, normalization: Normalization) -> str:
    """Add an input of bytes and return it as the floats (byte - mean) / std; raises OptionError."""
    if kind.dtype is not DType.F32:
        raise OptionError(f"an input of bytes takes the place of float32, not of {kind.dtype.value}")
    with np.errstate(all="ignore"):
        scales = 1 / np.asarray(normalization.std, np.float64)
        mean, scale = (_per_channel(numbers, kind) for numbers in (normalization.mean, scales))
    if not (np.isfinite(mean).all() and np.isfinite(scale).all() and scale.all()):
        raise OptionError("expected a finite mean, and a finite std other than 0, as 32-bit floats")
    builder.layer = "normalize"
    pixels = builder.input(TensorType(DType.U8, kind.shape))
    formula = formula_of(lambda x, m, s: (x.cast(DType.F32) - m) * s, DType.U8, DType.F32, DType.F32)
    return builder.map(formula, pixels, builder.constant(mean), builder.constant(scale))


def _per_channel(numbers: Sequence[float] | NDArray[np.float64], kind: TensorType) -> NDArray[np.float32]:
    """Return one number, or one for each channel, so that it broadcasts against (N, C, ...)."""
    if len(numbers) == 1:
        return np.asarray(numbers[0], np.float32)
    if kind.rank < 2 or kind.shape[1] != len(numbers):
        raise OptionError(
            f"got a mean or std for {len(numbers)} channels, the input is {kind}: axis 1 are the channels"
        )
    return np.asarray(numbers, np.float32).reshape(len(numbers), *[1] * (kind.rank - 2))
