"""Inputs of bytes in place of floats: the model scales them itself, so that a host hands over pixels as they are."""

from collections.abc import Sequence

import numpy as np

from compiler.dtypes import DType
from compiler.errors import OptionError
from compiler.formula import formula_of
from compiler.ir import GraphBuilder, TensorType
from compiler.options import Normalization


def bytes_input(builder: GraphBuilder, kind: TensorType, normalization: Normalization) -> str:
    """Add an input of bytes and return it as the floats (byte - mean) / std; raises OptionError."""
    if kind.dtype is not DType.F32:
        raise OptionError(f"an input of bytes takes the place of float32, not of {kind.dtype.value}")
    if not all(np.isfinite(normalization.mean)) or not all(np.isfinite(s) and s != 0 for s in normalization.std):
        raise OptionError("expected a finite mean, and a finite std other than 0")
    mean, scale = (
        builder.constant(_per_channel(numbers, kind))
        for numbers in (normalization.mean, tuple(1 / s for s in normalization.std))
    )
    builder.layer = "normalize"
    pixels = builder.input(TensorType(DType.U8, kind.shape))
    formula = formula_of(lambda x, m, s: (x.cast(DType.F32) - m) * s, DType.U8, DType.F32, DType.F32)
    return builder.map(formula, pixels, mean, scale)


def _per_channel(numbers: Sequence[float], kind: TensorType) -> np.ndarray:
    """Return one number, or one for each channel, so that it broadcasts against (N, C, ...)."""
    if len(numbers) == 1:
        return np.asarray(numbers[0], np.float32)
    if kind.rank < 2 or kind.shape[1] != len(numbers):
        raise OptionError(
            f"got a mean or std for {len(numbers)} channels, the input is {kind}: axis 1 are the channels"
        )
    return np.asarray(numbers, np.float32).reshape(len(numbers), *[1] * (kind.rank - 2))
