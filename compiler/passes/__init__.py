"""What is done to a graph before it is lowered: each pass returns a graph that means the same."""

from collections.abc import Callable

from compiler.ir import Graph
from compiler.passes.affine import fold_scales_and_shifts
from compiler.passes.fusion import fuse_elementwise
from compiler.passes.numbers import put_numbers_into_formulas

PASSES: tuple[Callable[[Graph], Graph], ...] = (
    put_numbers_into_formulas,
    fuse_elementwise,
    fold_scales_and_shifts,
)
"""In the order in which they run."""
