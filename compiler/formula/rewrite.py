"""Formulas made from formulas: numbers put in place of operands, one formula put into another."""

from collections.abc import Mapping, Sequence

from compiler.dtypes import DType
from compiler.formula.formula import Formula, Number, Writer


def with_numbers(formula: Formula, numbers: Mapping[int, Number]) -> Formula:
    """Return a formula with numbers in place of some of its operands, which are then gone."""
    kept = [n for n in range(len(formula.args)) if n not in numbers]
    writer = Writer([formula.args[n] for n in kept])
    args = [
        writer.const(formula.args[n], numbers[n]) if n in numbers else writer.arg(kept.index(n))
        for n in range(len(formula.args))
    ]
    return writer.formula(writer.inline(formula, args))


def fused(
    outer: Formula, outer_inputs: Sequence[str], name: str, inner: Formula, inner_inputs: Sequence[str]
) -> tuple[Formula, tuple[str, ...]]:
    """Return the formula in which `inner` is computed in place of operand `name` of `outer`, and its operands.

    The operands of `inner` come first, in their order; equal ones become one.
    """
    types: dict[str, DType] = dict(zip(inner_inputs, inner.args, strict=True))
    types.update({n: t for n, t in zip(outer_inputs, outer.args, strict=True) if n != name})
    names = tuple(types)
    writer = Writer(list(types.values()))
    value = writer.inline(inner, [writer.arg(names.index(n)) for n in inner_inputs])
    args = [value if n == name else writer.arg(names.index(n)) for n in outer_inputs]
    return writer.formula(writer.inline(outer, args)), names


def without_unused(formula: Formula, inputs: Sequence[str], keep: int = 0) -> tuple[Formula, tuple[str, ...]]:
    """Return a formula without the operands that it does not read, but for the first `keep`."""
    read = {int(i.value) for i in formula.instructions if i.operation == "arg"}
    kept = [n for n in range(len(formula.args)) if n in read or n < keep]
    writer = Writer([formula.args[n] for n in kept])
    args = [writer.arg(kept.index(n)) if n in kept else -1 for n in range(len(formula.args))]
    return writer.formula(writer.inline(formula, args)), tuple(inputs[n] for n in kept)
