"""What is done to a graph before it is lowered: each pass returns a graph that means the same."""

from collections.abc import Callable

from compiler.ir import Graph

PASSES: tuple[Callable[[Graph], Graph], ...] = ()
"""In the order in which they run."""
