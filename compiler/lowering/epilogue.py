"""What is done with each sum before it is stored: a formula of the sum and of further operands at the same place."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from compiler.formula import Formula
from compiler.formula.vector import FUNCTIONS, is_vectorizable, write_vectors
from compiler.kernels.target import Target
from compiler.kernels.walk import FLOAT_BYTES, Finish, Walk
from compiler.lowering.lowering import Lowering
from compiler.lowering.placement import Placement, broadcast
from compiler.wasm import V128, Function

_FUNCTION_COST: Final = 20
_LONG: Final = 16


class EpilogueKernel(msgspec.Struct, frozen=True):
    """A kernel together with what is done with its sums: what makes two of them the same."""

    kernel: msgspec.Struct
    epilogue: Formula
    walks: tuple[Walk, ...]


def finish_with(f: Function, target: Target, epilogue: Formula) -> Finish:
    """Return the function that writes an epilogue into a kernel."""

    def finish(value: V128, load: Callable[[int], V128]) -> V128:
        if epilogue.is_identity:
            return value
        extras = [f.keep(load(n)) for n in range(len(epilogue.args) - 1)]
        return write_vectors(f, target, epilogue, [f.keep(value), *extras])

    return finish


def spread_extras(low: Lowering, extras: Sequence[Placement], shape: Sequence[int], channel: int) -> list[Placement]:
    """Return further operands over the shape of the result, each with its channels together or all the same."""
    result = []
    for extra in (e if e.is_forward else low.dense(e) for e in extras):
        spread = broadcast(extra, shape)
        is_fit = shape[channel] == 1 or spread.strides[channel] in {0, 1}
        result.append(spread if is_fit else broadcast(low.with_innermost(extra, channel - len(shape)), shape))
    return result


def walk(placement: Placement, row: int | None, pixel: int | None, channel: int) -> Walk:
    """Return how a kernel walks through a value, along the dimensions that are its rows, pixels and channels."""
    return Walk(
        0 if pixel is None else placement.byte_stride(pixel),
        0 if row is None else placement.byte_stride(row),
        placement.byte_stride(channel) if placement.shape[channel] > 1 else FLOAT_BYTES,
    )


def is_long(epilogue: Formula) -> bool:
    """Whether the code of an epilogue is so long that a kernel should have it once."""
    return sum(_FUNCTION_COST if i.operation in FUNCTIONS else 1 for i in epilogue.instructions) > _LONG


def is_supported(epilogue: Formula) -> bool:
    """Whether an epilogue can be written into a kernel: floats in and out, four at a time."""
    return is_vectorizable(epilogue) and all(a.value == "float32" for a in (*epilogue.args, epilogue.dtype))
