"""Works scales and shifts into constants: a convolution or matrix product followed by either just has other weights.

This is how batch normalisation disappears.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.formula import Formula, Instruction, Writer
from compiler.formula.rewrite import without_unused
from compiler.ir import Graph, Node
from compiler.ir import operations as ops
from compiler.passes.edit import Edit

Array = NDArray[Any]


def fold_scales_and_shifts(graph: Graph) -> Graph:
    """Fold what an epilogue does first with constants for each channel into weights and bias."""
    edit = Edit(graph)
    for position, node in edit.positions():
        changed = _folded(edit, node)
        while changed is not None:
            edit.replace(position, changed)
            changed = _folded(edit, changed)
    return edit.graph()


def _folded(edit: Edit, node: Node) -> Node | None:
    """Return a node with the first step of its epilogue folded, or None when there is none to fold."""
    if not isinstance(node.operation, ops.Conv | ops.MatMul):
        return None
    weights, bias = (edit.constants.get(name) for name in node.inputs[1:3])
    epilogue, extras = node.operation.epilogue, node.inputs[3:]
    step = _first_step(epilogue)
    if weights is None or bias is None or step is None:
        return None
    other, is_first = _other_operand(epilogue, step)
    channel = -3 if isinstance(node.operation, ops.Conv) else -1
    vector = _per_channel(edit, other, extras, len(bias), channel)
    if vector is None:
        return None
    axis = 0 if isinstance(node.operation, ops.Conv) else -1
    scale, shift = _scale_and_shift(epilogue.instructions[step].operation, vector, is_first=is_first)
    shape = [len(bias) if n == axis % weights.ndim else 1 for n in range(weights.ndim)]
    with np.errstate(all="ignore"):
        new_weights = (weights * scale.reshape(shape)).astype(np.float32)
        new_bias = (bias * scale + shift).astype(np.float32)
    if not (np.isfinite(new_weights).all() and np.isfinite(new_bias).all()):
        return None  # of weights that are finite, small inputs still make finite sums
    formula, kept = without_unused(_without_step(epilogue, step), ("", *extras), keep=1)
    return msgspec.structs.replace(
        node,
        operation=msgspec.structs.replace(node.operation, epilogue=formula),
        inputs=(
            node.inputs[0],
            edit.constant(new_weights),
            edit.constant(new_bias),
            *kept[1:],
        ),
    )


def _first_step(epilogue: Formula) -> int | None:
    """Return the step that alone reads the result, if it adds, subtracts or multiplies something else."""
    results = [n for n, i in enumerate(epilogue.instructions) if i.operation == "arg" and i.value == 0]
    if len(results) != 1 or epilogue.uses()[results[0]] != 1 or epilogue.result == results[0]:
        return None
    [step] = [n for n, i in enumerate(epilogue.instructions) if results[0] in i.operands]
    return step if epilogue.instructions[step].operation in {"add", "sub", "mul"} else None


def _other_operand(epilogue: Formula, step: int) -> tuple[Instruction, bool]:
    """Return the operand of a step that is not the result, and whether the result is the first one."""
    first, second = (epilogue.instructions[n] for n in epilogue.instructions[step].operands)
    is_first = first.operation == "arg" and first.value == 0
    return (second, True) if is_first else (first, False)


def _per_channel(edit: Edit, operand: Instruction, extras: Sequence[str], channels: int, axis: int) -> Array | None:
    """Return the constant that an operand is, one number for each channel, or None."""
    if operand.operation == "const":
        return np.full(channels, operand.value, np.float64)
    if operand.operation != "arg":
        return None
    array = edit.constants.get(extras[int(operand.value) - 1])
    if array is None:
        return None
    is_vector = array.size == 1 or (array.ndim >= -axis and array.shape[axis] == array.size == channels)
    return np.broadcast_to(array.ravel().astype(np.float64), (channels,)) if is_vector else None


def _scale_and_shift(operation: str, vector: Array, *, is_first: bool) -> tuple[Array, Array]:
    """Return by what the result is multiplied and what is added then."""
    ones, zeros = np.ones_like(vector), np.zeros_like(vector)
    if operation == "mul":
        return vector, zeros
    if operation == "add":
        return ones, vector
    return (ones, -vector) if is_first else (-ones, vector)


def _without_step(formula: Formula, step: int) -> Formula:
    """Return a formula in which the result takes the place of a step."""
    writer = Writer(formula.args)
    numbers: list[int] = []
    for number, instruction in enumerate(formula.instructions):
        operands = [numbers[n] for n in instruction.operands]
        if number == step:
            numbers.append(writer.arg(0))
        else:
            numbers.append(writer.again(instruction, operands))
    return writer.formula(numbers[formula.result])
