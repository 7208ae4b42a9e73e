"""Which value a name of the file stands for, inside a graph and inside the bodies of its branches and loops.

A body sees the names around it. What it reads of them becomes an input of the body; constants are simply known there.
"""

from typing import Final

from compiler.errors import InternalError
from compiler.ir import GraphBuilder

UNKNOWN: Final = "?"
"""The value of what lies behind a problem."""


class Scope:
    """The names of one graph. A value is None for an input of a definition that was left out."""

    def __init__(self, builder: GraphBuilder, outer: "Scope | None" = None) -> None:
        self.builder = builder
        self.captured: list[str] = []
        """Values of the graph around this one, in the order of the inputs that they became."""
        self._outer = outer
        self._values: dict[str, str | None] = {}

    def bind(self, name: str, value: str | None) -> None:
        """Let a name stand for a value."""
        self._values[name] = value

    def lookup(self, name: str) -> str | None:
        """Return the value of a name, or UNKNOWN."""
        if name not in self._values and self._outer is not None:
            self._values[name] = self._captured(self._outer.lookup(name))
        return self._values.get(name, UNKNOWN)

    def value(self, name: str) -> str:
        """Return the value of a name that has one."""
        value = self.lookup(name)
        if value is None or value == UNKNOWN:
            raise InternalError(f"{name!r} has no value")
        return value

    def _captured(self, value: str | None) -> str | None:
        assert self._outer is not None  # asked for only then
        around = self._outer.builder
        if value is None or value == UNKNOWN or around is self.builder:
            return value
        numbers = around.value_of(value)
        if numbers is not None:
            return self.builder.constant(numbers)
        self.captured.append(value)
        return self.builder.input(around.type(value))
