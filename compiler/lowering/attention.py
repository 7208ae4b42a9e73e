"""Attention: scores, softmax and the weighted sum for some rows at a time, so that scores stay in the cache.

The last rows of a matrix overlap those before, if they are fewer: all blocks have the same size.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

from compiler.dtypes import DType
from compiler.ir import Node
from compiler.ir import operations as ops
from compiler.kernels.nest import Pointer, Step, nest
from compiler.loops.rows import SoftmaxKernel, write_softmax
from compiler.lowering.epilogue import spread_extras
from compiler.lowering.lowering import Lowering
from compiler.lowering.matrix import Product, prepare_product, rows_together
from compiler.lowering.placement import Placement, broadcast, dense, view
from compiler.lowering.step import Emitter
from compiler.wasm import i32

_BLOCK_BYTES: Final = 128 * 1024
"""Scores of one block: they share a cache of 512 KiB with keys and values."""
_PRODUCTS: Final = 5
"""How many inputs belong to the two products."""


def lower_attention(low: Lowering, node: Node, operation: ops.Attention) -> None:
    """Add the steps that arrange keys and values, and the one that does the rest."""
    q, k, k_bias, v, bias = node.inputs[:_PRODUCTS]
    more = [low.placement(name) for name in node.inputs[_PRODUCTS:]]
    output = low.result(node.outputs[0])
    *stack, rows, _ = output.shape
    depth, length = low.type(k).shape[-2:]
    block = _block_rows(rows, length)
    scratch = low.scratch(block * length * DType.F32.item_bytes)
    scores = broadcast(dense(scratch, DType.F32, (block, length)), (*stack, block, length))
    queries = broadcast(rows_together(low, low.placement(q)), (*stack, rows, depth))
    masks = spread_extras(low, more[: operation.masks], (*stack, rows, length), len(stack) + 1)
    extras = spread_extras(low, more[operation.masks :], output.shape, len(stack) + 1)
    first = prepare_product(
        low, [_rows(queries, block), scores, *(_rows(m, block) for m in masks)], (k, k_bias), operation.scores
    )
    second = prepare_product(
        low, [scores, _rows(output, block), *(_rows(e, block) for e in extras)], (v, bias), operation.epilogue
    )
    low.step(
        [p for p in (*first.reads, *second.reads) if p.buffer != scratch],
        [output, scratch, first.scratch, second.scratch],
        _block_by_block(first, second, output.shape),
        multiply_adds=math.prod(stack) * rows * length * (depth + output.shape[-1]),
    )


def _block_by_block(first: Product, second: Product, shape: Sequence[int]) -> Callable[[Emitter], None]:
    """Return what writes the loops: over matrices, then over blocks of rows of a result of this shape."""
    *stack, rows, _ = shape
    scores = first.operands[2]
    block, length = scores.shape[-2:]
    row_bytes = (scores.byte_stride(len(stack)),)
    softmax = SoftmaxKernel((block,), length, row_bytes, row_bytes, is_log=False)
    operands, middle = (*first.operands, *second.operands), len(first.operands)
    still = {1, 2, middle, middle + 1}  # keys, values and scores are the same for all rows
    steps = [
        (*_stack_steps(p, len(stack)), 0) if n in still else _steps(p, len(stack), rows, block)
        for n, p in enumerate(operands)
    ]

    def emit(e: Emitter) -> None:
        pointers = [e.body.variable(i32.const(e.address(p))) for p in operands]

        def write() -> None:
            first.write(e, pointers[:middle])
            function = e.kernel(softmax, lambda f: write_softmax(f, softmax, e.target))
            e.do(function(pointers[2], pointers[2]))
            second.write(e, pointers[middle:])

        moving = [Pointer(p, s) for p, s in zip(pointers, steps, strict=True)]
        nest(e.body, (*stack, -(-rows // block)), moving, write)

    return emit


def _block_rows(rows: int, length: int) -> int:
    """Return how many rows of scores to compute together."""
    blocks = min(rows, -(-rows * length * DType.F32.item_bytes // _BLOCK_BYTES))
    return -(-rows // blocks)


def _rows(placement: Placement, count: int) -> Placement:
    """Return the first rows of each matrix."""
    shape = placement.shape
    part = view(ops.Slice((0,) * len(shape), (1,) * len(shape), (*shape[:-2], count, shape[-1])), placement)
    assert part is not None
    return part


def _steps(placement: Placement, stack: int, rows: int, block: int) -> tuple[Step, ...]:
    """Return how far it is from one matrix to the next, and from one block of rows to the next."""
    row_bytes = placement.byte_stride(stack)
    last = rows - block * (-(-rows // block) - 1)
    return (*_stack_steps(placement, stack), (row_bytes * block, row_bytes * last))


def _stack_steps(placement: Placement, stack: int) -> tuple[int, ...]:
    return tuple(placement.byte_stride(n) for n in range(stack))
