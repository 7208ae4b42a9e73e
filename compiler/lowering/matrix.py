"""Matrix products: which tiles, where B comes from, and loops over stacks of matrices."""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from compiler.dtypes import DType
from compiler.formula import Formula, identity
from compiler.ir import Node, TensorType
from compiler.ir import operations as ops
from compiler.kernels.nest import Pointer, nest
from compiler.kernels.tiles import TileKernel, Window, pack_panels, write_tiles
from compiler.kernels.walk import Walk
from compiler.lowering.epilogue import EpilogueKernel, finish_with, is_long, spread_extras, walk
from compiler.lowering.layout import Layout
from compiler.lowering.lowering import Lowering
from compiler.lowering.placement import Placement, broadcast, dense, reshaped, view
from compiler.lowering.step import Emitter
from compiler.lowering.tiling import choose_tiling
from compiler.wasm import I32Local, i32


class Product(msgspec.Struct, frozen=True):
    """A product of matrices on its way to a step, or one for each of a stack of them."""

    kernel: TileKernel
    epilogue: Formula
    operands: tuple[Placement, ...]
    """A, B in panels, the result, and further operands, each with the stack in front."""
    scratch: int

    @property
    def reads(self) -> tuple[Placement, ...]:
        """What the step reads."""
        return (*self.operands[:2], *self.operands[3:])

    @property
    def multiply_adds(self) -> int:
        """How many there are in all."""
        return math.prod(self.operands[2].shape) * self.kernel.window.depth

    def write(self, e: Emitter, pointers: Sequence[I32Local]) -> None:
        """Write the call of the kernel for the matrices at some addresses, one for each operand."""
        walks = tuple(walk(p, None, len(p.shape) - 2, len(p.shape) - 1) for p in self.operands[3:])
        spec, target = EpilogueKernel(self.kernel, self.epilogue, walks), e.target
        function = e.kernel(
            spec, lambda f: write_tiles(f, self.kernel, target, walks, finish_with(f, target, self.epilogue))
        )
        e.do(function(*pointers[:3], i32.const(e.buffer_address(self.scratch)), *pointers[3:]))


def lower_matmul(low: Lowering, node: Node, operation: ops.MatMul) -> None:
    """Add the steps of a matrix product."""
    a, b_name, bias_name = low.placement(node.inputs[0]), node.inputs[1], node.inputs[2]
    output = low.result(node.outputs[0])
    a = broadcast(rows_together(low, a), (*output.shape[:-2], *a.shape[-2:]))
    extras = spread_extras(low, [low.placement(n) for n in node.inputs[3:]], output.shape, len(output.shape) - 1)
    operands = [a, output, *extras]
    if all(n == 1 for n in low.type(b_name).shape[:-2]):
        operands = _join_rows(operands) or operands
    product = prepare_product(low, operands, (b_name, bias_name), operation.epilogue)
    stack = operands[1].shape[:-2]

    def emit(e: Emitter) -> None:
        pointers = [e.body.variable(i32.const(e.address(p))) for p in product.operands]
        steps = [tuple(p.byte_stride(n) for n in range(len(stack))) for p in product.operands]
        moving = [Pointer(p, s) for p, s in zip(pointers, steps, strict=True)]
        nest(e.body, stack, moving, lambda: product.write(e, pointers))

    low.step(product.reads, [product.operands[2], product.scratch], emit, multiply_adds=product.multiply_adds)


def rows_together(low: Lowering, a: Placement) -> Placement:
    """Return a place of a first matrix that kernels can read: the elements of each row next to each other."""
    return a if a.is_forward and (a.strides[-1] == 1 or a.shape[-1] == 1) else low.dense(a)


def prepare_product(
    low: Lowering, operands: Sequence[Placement], second: tuple[str, str], epilogue: Formula
) -> Product:
    """Return a product, with B in panels: of A, the result and further operands; `second` is B and the bias."""
    a, output, *extras = operands
    kernel = _kernel(a, output, low.type(second[0]).shape[-2], is_finished_apart=is_long(epilogue))
    b = _packed(low, second[0], kernel, second[1])
    stack = output.shape[:-2]
    leading = b.shape[:-3] if stack else ()
    b = broadcast(_viewed(ops.Reshape((*leading, *b.shape[-3:])), b), (*stack, *b.shape[-3:]))
    return Product(kernel, epilogue, (a, b, output, *extras), low.scratch(kernel.scratch_bytes))


def _join_rows(placements: Sequence[Placement]) -> list[Placement] | None:
    """Return stacks of matrices as single ones, if their rows lie at regular distances."""
    joined = [reshaped(p, (math.prod(p.shape[:-1]), p.shape[-1])) for p in placements]
    return None if None in joined else [p for p in joined if p is not None]


def _kernel(a: Placement, output: Placement, depth: int, *, is_finished_apart: bool) -> TileKernel:
    rows, columns = output.shape[-2:]
    tiling = choose_tiling(rows, depth, columns)
    return TileKernel(
        rows=1,
        pixels=rows,
        channels=columns,
        window=Window(depth),
        a=Walk(a.byte_stride(len(a.shape) - 2), 0),
        c=walk(output, None, len(output.shape) - 2, len(output.shape) - 1),
        tile_pixels=tiling.tile_pixels,
        panel_vectors=tiling.panel_vectors,
        is_panel_outside=tiling.is_panel_outside,
        is_finished_apart=is_finished_apart,
    )


def _packed(low: Lowering, name: str, kernel: TileKernel, bias_name: str) -> Placement:
    """Return B and the bias in panels, with the stacks of B in front: packed now if constant, else by steps."""
    numbers, bias_numbers = low.value_of(name), low.value_of(bias_name)
    *stack, depth, columns = low.type(name).shape
    shape = (*stack, kernel.panels, 1 + depth, kernel.panel_channels)
    if numbers is not None and bias_numbers is not None:
        matrices = np.asarray(numbers, np.float32).reshape(-1, depth, columns)
        panels = np.concatenate([pack_panels(kernel, matrix, bias_numbers) for matrix in matrices])
        return dense(low.constant(panels, heads=1), DType.F32, shape)
    b, bias = low.placement(name), low.placement(bias_name)
    target = low.place(TensorType(DType.F32, shape), Layout.row_major(len(shape)))
    zeros = (0,) * len(stack)
    ones = (1,) * len(shape)
    for number, start in enumerate(kernel.panel_starts):
        width = min(kernel.panel_channels, columns)
        whole = ops.Slice((*zeros, number, 1, 0), ones, (*stack, 1, depth, width))
        part = _viewed(ops.Slice((*zeros, 0, start), ones[1:], (*stack, depth, width)), b)
        low.map(identity(DType.F32), _without(_viewed(whole, target), len(stack)), [part])
        first = ops.Slice((*zeros, number, 0, 0), ones, (*stack, 1, 1, width))
        row = _viewed(ops.Slice((start,), (1,), (width,)), bias)
        low.map(identity(DType.F32), _viewed(first, target), [row])
    return target


def _viewed(operation: ops.View, placement: Placement) -> Placement:
    result = view(operation, placement)
    assert result is not None
    return result


def _without(placement: Placement, axis: int) -> Placement:
    """Return a placement without a dimension of 1."""
    result = reshaped(placement, placement.shape[:axis] + placement.shape[axis + 1 :])
    assert result is not None
    return result
