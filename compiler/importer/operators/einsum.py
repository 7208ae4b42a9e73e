"""Sums of products by Einstein's convention: a matrix product where it is one, otherwise a reduction."""

import math
import re

from compiler.dtypes import DType
from compiler.formula import formula_of, identity
from compiler.importer.context import NodeContext
from compiler.importer.operators.linear import multiply
from compiler.importer.registry import operator
from compiler.ir import operations as ops


@operator("Einsum")
def einsum(n: NodeContext) -> None:
    """For any number of operands; a letter that occurs twice in one of them is its diagonal."""
    terms, result = _parse(n)
    sizes = {letter: d for p, term in enumerate(terms) for letter, d in zip(term, n.shape(p), strict=True)}
    values = [_diagonal(n, value, term) for value, term in zip(n.all(), terms, strict=True)]
    terms = ["".join(dict.fromkeys(term)) for term in terms]
    while len(values) > 1:  # the first two become one, with the letters that are needed later
        needed = set(result).union(*terms[2:])
        kept = "".join(dict.fromkeys(c for c in terms[0] + terms[1] if c in needed))
        product = _product(n, values[0], values[1], (terms[0], terms[1], kept), sizes)
        values, terms = [product, *values[2:]], [kept, *terms[2:]]
    [term] = terms
    summed = [axis for axis, letter in enumerate(term) if letter not in result]
    value = n.graph.reduce("add", values[0], summed) if summed else values[0]
    left = [letter for letter in term if letter in result]
    n.set(n.graph.transpose(value, [left.index(letter) for letter in result]))


def _parse(n: NodeContext) -> tuple[list[str], str]:
    """Return the letters of each operand and of the result; an ellipsis becomes letters of its own."""
    equation = re.sub(r"\s", "", n.attribute("equation", ""))
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != n.count:
        raise n.refuse(f"the equation {equation!r} is for {len(terms)} operands, there are {n.count}")
    spare = "0123456789"  # which no equation has
    widths = [n.type(p).rank - len(t.replace("...", "")) for p, t in enumerate(terms) if "..." in t]
    dots = spare[: max(widths, default=0)]
    expanded = []
    for p, term in enumerate(terms):
        width = n.type(p).rank - len(term.replace("...", ""))
        expanded.append(term.replace("...", dots[len(dots) - width :] if width else ""))
    if not arrow:
        letters = "".join(expanded)
        right = dots + "".join(sorted(c for c in set(letters) - set(dots) if letters.count(c) == 1))
    return expanded, right.replace("...", dots)


def _diagonal(n: NodeContext, value: str, letters: str) -> str:
    """Return a value with each of its letters once, in the order in which they come first."""
    for letter in dict.fromkeys(letters):
        while letters.count(letter) > 1:
            first, second = letters.index(letter), letters.rindex(letter)
            rest = [a for a in range(len(letters)) if a not in {first, second}]
            turned = n.graph.transpose(value, [first, second, *rest])
            length, *others = n.graph.shape(turned)[1:]
            flat = n.graph.reshape(turned, (length * length, *others))
            steps = (length + 1, *[1] * len(others))
            cut = n.graph.slice(flat, [0] * len(steps), (length, *others), steps)
            letters = letters[:second] + letters[second + 1 :]
            order = [a + 1 if a < first else a for a in range(len(letters))]
            order[first] = 0
            value = n.graph.transpose(cut, order)
    return value


def _product(n: NodeContext, a: str, b: str, letters: tuple[str, str, str], sizes: dict[str, int]) -> str:
    """Return the product of two values, summed over the letters that only they have."""
    first, second, kept = letters
    stack = [c for c in first if c in second and c in kept]
    rows = [c for c in first if c not in second]
    columns = [c for c in second if c not in first]
    depth = [c for c in first if c in second and c not in kept]
    if any(c not in kept for c in (*rows, *columns)) or not depth:
        return _reduced(n, a, b, letters)
    left = _ordered(n, a, first, [stack, rows, depth], sizes)
    right = _ordered(n, b, second, [stack, depth, columns], sizes)
    product = multiply(n, left, right)
    order = [*stack, *rows, *columns]
    whole = n.graph.reshape(product, [sizes[c] for c in order])
    return n.graph.transpose(whole, [order.index(c) for c in kept])


def _ordered(n: NodeContext, value: str, letters: str, groups: list[list[str]], sizes: dict[str, int]) -> str:
    """Return a value with its letters in an order, each group but the first as one dimension."""
    turned = n.graph.transpose(value, [letters.index(c) for group in groups for c in group])
    stack, *rest = groups
    shape = [sizes[c] for c in stack] + [math.prod(sizes[c] for c in group) for group in rest]
    return n.graph.reshape(turned, shape)


def _reduced(n: NodeContext, a: str, b: str, letters: tuple[str, str, str]) -> str:
    """Return the product as a reduction over everything at once."""
    first, second, kept = letters
    summed = [c for c in dict.fromkeys(first + second) if c not in kept]
    order = [*kept, *summed]
    values = []
    for value, term in ((a, first), (b, second)):
        turned = n.graph.transpose(value, [term.index(c) for c in order if c in term])
        shape = iter(n.graph.shape(turned))
        values.append(n.graph.reshape(turned, [next(shape) if c in term else 1 for c in order]))
    dtype: DType = n.graph.type(a).dtype
    product = formula_of(lambda x, y: x * y, dtype, dtype)
    if not summed:
        return n.graph.map(product, *values)
    axes = tuple(range(len(kept), len(order)))
    return n.graph.add(ops.Reduce(axes, product, "add", identity(dtype)), *values)
