"""Elements at places that are computed: gathered from them, or scattered to them.

An index below 0 counts from the end of its dimension. One that names nothing is a trap, never memory of something else.
"""

from collections.abc import Callable
from typing import Final, cast

import msgspec

from compiler.formula import Formula
from compiler.formula.scalar import write_scalars
from compiler.kernels.nest import Pointer, nest
from compiler.kernels.target import Target
from compiler.loops.box import Operand
from compiler.loops.elements import LANES, load, load_vector, store, store_vector
from compiler.wasm import I32, I64, Expr, Function, I32Local, i32, i64, memory, select

_COPIED_BYTES: Final = 256
"""A row of this size or more is copied by one instruction."""


class LookupKernel(msgspec.Struct, frozen=True):
    """Everything that fixes the code of one kernel.

    For each index of the box, one element moves between `plain` and `indexed`; where in the latter, the index operands
    say, each for one further dimension. Scattered elements are combined with those that are there.
    """

    extents: tuple[int, ...]
    plain: Operand
    indexed: Operand
    indices: tuple[Operand, ...]
    dimensions: tuple[tuple[int, int], ...]
    """Of the indexed value: how long each is, and its stride in elements."""
    is_scatter: bool = False
    combine: Formula | None = None
    """Of what is there and what comes; None to replace it."""


def write_lookup(f: Function, kernel: LookupKernel, target: Target) -> None:
    """Write the kernel into `f`: addresses of the plain operand, of the indexed one and of each index operand."""
    _LookupWriter(f, kernel, target).write()


class _LookupWriter:
    def __init__(self, f: Function, kernel: LookupKernel, target: Target) -> None:
        self._f, self._kernel, self._target = f, kernel, target
        self._plain, self._indexed = f.param_i32(), f.param_i32()
        self._indices = [f.param_i32() for _ in kernel.indices]
        self._from, self._to = f.i32(), f.i32()
        # The innermost dimensions along which no index changes: everything there lies at one place.
        self._outer = len(kernel.extents)
        while self._outer and all(o.strides[self._outer - 1] == 0 for o in kernel.indices):
            self._outer -= 1

    def write(self) -> None:
        k = self._kernel
        pointers = [
            Pointer(p, o.byte_strides[: self._outer])
            for p, o in zip((self._plain, self._indexed, *self._indices), (k.plain, k.indexed, *k.indices), strict=True)
        ]
        nest(self._f, k.extents[: self._outer], pointers, self._write_entry)

    def _write_entry(self) -> None:
        k = self._kernel
        place: I32 = self._indexed
        for address, operand, (length, stride) in zip(self._indices, k.indices, k.dimensions, strict=True):
            position = index_in_range(self._f, load(operand.dtype, address), length)
            place = place + position * (stride * k.indexed.dtype.item_bytes)
        self._from.set(self._plain if k.is_scatter else place)
        self._to.set(place if k.is_scatter else self._plain)
        source, target = (k.plain, k.indexed) if k.is_scatter else (k.indexed, k.plain)
        inner = k.extents[self._outer :]
        steps = [o.byte_strides[self._outer :] for o in (source, target)]
        is_row = bool(inner) and source.strides[-1] == target.strides[-1] == 1 and k.combine is None
        depth = len(inner) - is_row
        pointers = [Pointer(self._from, steps[0][:depth]), Pointer(self._to, steps[1][:depth])]
        write: Callable[[], None] = (lambda: self._copy_row(inner[-1])) if is_row else self._move_one
        nest(self._f, inner[:depth], pointers, write)

    def _move_one(self) -> None:
        k, dtype = self._kernel, self._kernel.plain.dtype
        value: Expr = load(dtype, self._from)
        if k.combine is not None:
            args = [self._f.keep(load(dtype, self._to)), self._f.keep(value)]
            value = write_scalars(self._f, self._target, k.combine, args)
        self._f.do(store(dtype, self._to, value))

    def _copy_row(self, length: int) -> None:
        f, dtype, item = self._f, self._kernel.plain.dtype, self._kernel.plain.dtype.item_bytes
        if length * item >= _COPIED_BYTES:
            f.do(memory.copy(self._to, self._from, length * item))
            return
        vectors, rest = divmod(length, LANES) if dtype.bits <= 32 else (0, length)
        for n in range(vectors):
            place = self._to, n * LANES * item
            store_vector(f, dtype, place, load_vector(dtype, self._from, n * LANES * item))
        for n in range(vectors * LANES, vectors * LANES + rest):
            f.do(store(dtype, self._to, load(dtype, self._from, n * item), n * item))


def index_in_range(f: Function, index: Expr, length: int) -> I32Local:
    """Return an index counted from the front; write a trap for one that is out of range."""
    if isinstance(index, I64):
        whole = f.keep(index)
        number = f.keep(i32.wrap_i64(whole))
        with f.if_(i64.ne(i64.extend_i32_s(number), whole)):
            f.unreachable()
    else:
        number = f.keep(cast("I32", index))
    position = f.variable(select(i32.lt_s(number, i32.const(0)), number + length, number))
    with f.if_(i32.ge_u(position, i32.const(length))):
        f.unreachable()
    return cast("I32Local", position)
