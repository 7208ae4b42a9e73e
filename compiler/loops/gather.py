"""Entries of a value that are named by numbers: rows of an embedding, pixels of an enlarged image."""

from typing import cast

import msgspec

from compiler.dtypes import DType
from compiler.kernels.nest import Pointer, nest
from compiler.loops.elements import LANES, load, load_vector, store, store_vector
from compiler.wasm import I32, I64, Function, I32Local, i32, memory, select

_COPIED_BYTES = 256
"""A row of this size or more is copied by one instruction."""


class GatherKernel(msgspec.Struct, frozen=True):
    """Everything that fixes the code of one kernel; strides count elements."""

    dtype: DType
    index_dtype: DType
    outer: tuple[int, ...]
    indices: tuple[int, ...]
    inner: tuple[int, ...]
    length: int
    """Of the axis that indices name; those below 0 count from its end."""
    axis_stride: int
    data_strides: tuple[int, ...]
    """Over the outer and the inner dimensions."""
    index_strides: tuple[int, ...]
    output_strides: tuple[int, ...]
    """Over all dimensions."""


def write_gather(f: Function, kernel: GatherKernel) -> None:
    """Write the kernel into `f`: parameters are the addresses of the output, of the data and of the indices."""
    k, item = kernel, kernel.dtype.item_bytes
    output, data, index = f.param_i32(), f.param_i32(), f.param_i32()
    none = (0,) * len(k.indices)
    outer, inner = len(k.outer), len(k.inner)
    output_bytes = tuple(s * item for s in k.output_strides)
    data_bytes = tuple(s * item for s in k.data_strides)
    index_bytes = tuple(s * k.index_dtype.item_bytes for s in k.index_strides)
    at, to = f.i32(), f.i32()

    def write_entry() -> None:
        at.set(data + _position(f, k, index) * (k.axis_stride * item))
        to.set(output)
        row = k.inner[-1] if inner else 1
        is_row = inner > 0 and k.output_strides[-1] == 1 and k.data_strides[-1] == 1
        steps = [output_bytes[len(output_bytes) - inner :], data_bytes[outer:]]
        if not is_row:
            pointers = [Pointer(to, steps[0]), Pointer(at, steps[1])]
            nest(f, k.inner, pointers, lambda: f.do(store(k.dtype, to, load(k.dtype, at))))
            return
        pointers = [Pointer(to, steps[0][:-1]), Pointer(at, steps[1][:-1])]
        nest(f, k.inner[:-1], pointers, lambda: _copy_row(f, k.dtype, to, at, row))

    pointers = [
        Pointer(output, output_bytes[: outer + len(k.indices)]),
        Pointer(data, (*data_bytes[:outer], *none)),
        Pointer(index, ((0,) * outer + index_bytes)),
    ]
    nest(f, (*k.outer, *k.indices), pointers, write_entry)


def _position(f: Function, kernel: GatherKernel, index: I32Local) -> I32:
    """Return the index, counted from the front; one that names nothing traps."""
    value = load(kernel.index_dtype, index)
    number = f.keep(i32.wrap_i64(cast("I64", value)) if kernel.index_dtype.bits == 64 else cast("I32", value))
    position = f.keep(select(i32.lt_s(number, i32.const(0)), number + kernel.length, number))
    with f.if_(i32.ge_u(position, i32.const(kernel.length))):
        f.unreachable()
    return position


def _copy_row(f: Function, dtype: DType, to: I32Local, at: I32Local, length: int) -> None:
    item = dtype.item_bytes
    if length * item >= _COPIED_BYTES:
        f.do(memory.copy(to, at, length * item))
        return
    vectors, rest = divmod(length, LANES) if dtype.bits <= 32 else (0, length)
    for n in range(vectors):
        store_vector(f, dtype, (to, n * LANES * item), load_vector(dtype, at, n * LANES * item))
    for n in range(vectors * LANES, vectors * LANES + rest):
        f.do(store(dtype, to, load(dtype, at, n * item), n * item))
