"""A graph being changed: nodes replaced or dropped, constants added; then put together again."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.ir import Graph, Node
from compiler.ir.graph import TensorType, type_of


class Edit:
    """Changes to one graph. Positions of nodes stay as they were until the graph is made."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[Node | None] = list(graph.nodes)
        self.types: dict[str, TensorType] = dict(graph.types)
        self.constants: dict[str, NDArray[Any]] = dict(graph.constants)
        self._graph = graph
        self._position = {name: n for n, node in enumerate(graph.nodes) for name in node.outputs}
        self._users: dict[str, set[int]] = {}
        for position, node in enumerate(graph.nodes):
            for name in node.inputs:
                self._users.setdefault(name, set()).add(position)

    def positions(self) -> Iterator[tuple[int, Node]]:
        """Yield each node that is still there, as it is when its turn comes."""
        for position in range(len(self.nodes)):
            node = self.nodes[position]
            if node is not None:
                yield position, node

    def producer(self, name: str) -> tuple[int, Node] | None:
        """Return the node that computes a value."""
        position = self._position.get(name)
        node = None if position is None else self.nodes[position]
        return None if position is None or node is None else (position, node)

    def is_read_only_by(self, name: str, positions: set[int]) -> bool:
        """Whether only the nodes at some positions read a value, and the model does not give it out."""
        return positions.issuperset(self._users.get(name, ())) and name not in self._graph.outputs

    def is_used_once(self, name: str) -> bool:
        """Whether one node alone reads a value, and the model does not give it out."""
        return len(self._users.get(name, ())) == 1 and name not in self._graph.outputs

    def replace(self, position: int, node: Node | None) -> None:
        """Put another node in the place of one, or none."""
        old = self.nodes[position]
        if old is not None:
            for name in old.inputs:
                self._users[name].discard(position)
            for name in old.outputs:
                self._position.pop(name, None)
        self.nodes[position] = node
        if node is not None:
            for name in node.inputs:
                self._users.setdefault(name, set()).add(position)
            for name in node.outputs:
                self._position[name] = position

    def constant(self, array: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        array = np.asarray(array)
        name = self._new_name()
        self.constants[name] = array
        self.types[name] = type_of(array)
        return name

    def graph(self) -> Graph:
        """Return the changed graph, without what nobody needs."""
        needed = {*self._graph.outputs, *self._graph.inputs}
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if node is not None and needed.intersection(node.outputs):
                kept.append(node)
                needed.update(node.inputs)
        made = {name for node in kept for name in node.outputs}
        return Graph(
            nodes=tuple(reversed(kept)),
            types={name: kind for name, kind in self.types.items() if name in needed or name in made},
            constants={name: array for name, array in self.constants.items() if name in needed},
            inputs=self._graph.inputs,
            outputs=self._graph.outputs,
        )

    def _new_name(self) -> str:
        """Return a name that no value has."""
        number = len(self.types)
        while f"e{number}" in self.types:
            number += 1
        return f"e{number}"
