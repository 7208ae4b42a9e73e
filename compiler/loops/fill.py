"""Zeros around a box: the border that a convolution reads beyond the edge of an image."""

import msgspec

from compiler.kernels.nest import Pointer, nest
from compiler.wasm import Function, memory


class FillKernel(msgspec.Struct, frozen=True):
    """Everything that fixes the code of one kernel."""

    extents: tuple[int, ...]
    """Of the whole buffer, the outermost dimension first, borders included."""
    border: tuple[tuple[int, int], ...]
    item_bytes: int


def write_fill(f: Function, kernel: FillKernel) -> None:
    """Write the kernel into `f`, whose parameter becomes the address of the buffer.

    In each dimension, what lies before and behind is filled for every index of the dimensions outside it; neighbours
    are filled in one go: the end of one row and the start of the next.
    """
    start = f.param_i32()
    inner = [kernel.item_bytes]
    for extent in reversed(kernel.extents[1:]):
        inner.insert(0, inner[0] * extent)
    for axis, ((before, after), extent) in enumerate(zip(kernel.border, kernel.extents, strict=True)):
        if not before and not after:
            continue
        outside = kernel.extents[:axis]
        steps = tuple(inner[:axis])
        for place, count in ((0, before), (extent - after, after)):
            if count:
                address = f.i32()
                address.set(start + place * inner[axis])
                nest(
                    f,
                    outside,
                    [Pointer(address, steps)],
                    lambda a=address, n=count * inner[axis]: f.do(memory.fill(a, 0, n)),  # type: ignore[misc]
                )
