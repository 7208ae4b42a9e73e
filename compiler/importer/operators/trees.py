"""Ensembles of decision trees (`ai.onnx.ml`).

Trees are tables: all of them are walked side by side, one level in each round of a loop, a leaf leading to itself.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.formula import Term, formula_of, identity
from compiler.importer.context import NodeContext
from compiler.importer.operators.learned import ML, Classes, floats, set_two_classes, transform
from compiler.importer.registry import operator
from compiler.ir import operations as ops

Array = NDArray[Any]


class _Trees:
    """All trees of an ensemble in tables, by the number of a node."""

    def __init__(self, n: NodeContext) -> None:
        trees, nodes = (np.asarray(n.attribute(f"nodes_{name}"), np.int64) for name in ("treeids", "nodeids"))
        self.numbers = {pair: number for number, pair in enumerate(zip(trees.tolist(), nodes.tolist(), strict=True))}
        self.count = len(trees)
        modes = [mode.decode() for mode in n.attribute("nodes_modes")]
        self.modes = np.asarray(modes)
        is_leaf = self.modes == "LEAF"
        values = n.attribute("nodes_values_as_tensor")
        self.thresholds = floats(n, "nodes_values") if values is None else n.tensor("nodes_values_as_tensor")
        self.thresholds = np.where(is_leaf, 0, self.thresholds)
        self.features = np.where(is_leaf, 0, np.asarray(n.attribute("nodes_featureids"), np.int64))
        tracks = n.attribute("nodes_missing_value_tracks_true", ())
        # NaN is not equal to anything, whatever the node says of missing values.
        self.missing = np.asarray(tracks or [0] * self.count, bool) & ~is_leaf | (self.modes == "BRANCH_NEQ")
        own = np.arange(self.count)
        self.children = np.stack([self._children(n, trees, is_leaf, own, side) for side in ("false", "true")], axis=1)
        self.roots = self._roots(trees)
        self.depth = self._depth()

    def _children(self, n: NodeContext, trees: Array, is_leaf: Array, own: Array, side: str) -> Array:
        ids = np.asarray(n.attribute(f"nodes_{side}nodeids"), np.int64)
        pairs = zip(own, trees.tolist(), ids.tolist(), is_leaf, strict=True)
        return np.array([number if leaf else self.numbers[tree, node] for number, tree, node, leaf in pairs], np.int64)

    def _roots(self, trees: Array) -> Array:
        """Return the nodes that are nobody's child, one for each tree, in the order of the trees."""
        inner = self.children != np.arange(self.count)[:, None]
        roots = sorted(set(range(self.count)) - set(self.children[inner].tolist()), key=lambda r: (trees[r], r))
        return np.array(roots, np.int64)

    def _depth(self) -> int:
        """Return how many steps lead to the deepest leaf."""
        level, depth = set(self.roots.tolist()), 0
        while True:
            below = {c for number in level for c in self.children[number].tolist() if c != number}
            if not below:
                return depth
            level, depth = below, depth + 1
            if depth > self.count:
                raise ValueError("the nodes of a tree form a circle")

    def leaves(self, n: NodeContext, x: str) -> str:
        """Return the number of the leaf of each tree for each row: (rows, trees)."""
        rows = n.graph.shape(x)[0]
        roots = n.graph.constant(np.broadcast_to(self.roots, (rows, len(self.roots))).copy())
        if not self.depth:
            return roots
        x = n.graph.cast(DType.F64 if self.thresholds.dtype == np.float64 else DType.F32, x)
        body = n.bodies.empty()
        at, data = body.input(n.graph.type(roots)), body.input(n.graph.type(x))
        wide = body.reshape(data, (rows, 1, n.graph.shape(x)[1]))
        value = body.add(ops.Lookup(), wide, body.take(body.constant(self.features), at, 0))
        tables = [self.thresholds, self.missing, *(np.isin(self.modes, m) for m in _MODES.values())]
        entries = [body.take(body.constant(np.ascontiguousarray(table)), at, 0) for table in tables]
        formula = formula_of(_side, *(body.type(v).dtype for v in (value, *entries)))
        side = body.map(formula, value, *entries)
        children = body.constant(self.children.ravel())
        place = body.map(formula_of(lambda a, s: a * 2 + s.cast(DType.I64), DType.I64, DType.BOOL), at, side)
        graph = body.graph([body.take(children, place, 0)])
        return n.graph.add(ops.Scan(graph, self.depth, 1, (), ()), roots, x)


_MODES: Final = {
    "lt": ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_NEQ"),
    "eq": ("BRANCH_LEQ", "BRANCH_GTE", "BRANCH_EQ"),
    "gt": ("BRANCH_GTE", "BRANCH_GT", "BRANCH_NEQ"),
}
"""For which kinds of nodes a smaller, an equal and a greater value goes to the true side."""


def _side(x: Term, threshold: Term, missing: Term, *sides: Term) -> Term:
    """Return whether a value goes to the true side; `sides` say so for a smaller, an equal and a greater one."""
    lt, eq, gt = sides
    return x.apply("is_nan").choose(missing, (x < threshold).choose(lt, (x > threshold).choose(gt, eq)))


def _leaf_weights(n: NodeContext, trees: _Trees, kind: str, count: int, empty: float) -> Array:
    """Return what each node adds to each target."""
    weights = np.full((trees.count, count), empty, np.float32)
    numbers = n.attribute(f"{kind}_weights_as_tensor")
    values = floats(n, f"{kind}_weights") if numbers is None else n.tensor(f"{kind}_weights_as_tensor")
    places = (n.integers(f"{kind}_{name}", ()) for name in ("treeids", "nodeids", "ids"))
    for tree, node, target, value in zip(*places, values, strict=True):
        cell = trees.numbers[tree, node], target
        weights[cell] = value if weights[cell] == empty else weights[cell] + value
    return weights


def _base_values(n: NodeContext) -> Array:
    if n.attribute("base_values_as_tensor") is not None:
        return n.tensor("base_values_as_tensor").astype(np.float32)
    return floats(n, "base_values")


@operator("TreeEnsembleRegressor", domain=ML)
def tree_regressor(n: NodeContext) -> None:
    """A sum, mean or extreme of what the trees give."""
    trees, how = _Trees(n), n.attribute("aggregate_function", "SUM")
    combine, empty = {"MIN": ("min", math.inf), "MAX": ("max", -math.inf)}.get(how, ("add", 0.0))
    weights = _leaf_weights(n, trees, "target", n.integer("n_targets", 1), empty)
    entries = n.graph.take(n.graph.constant(weights), trees.leaves(n, _features(n)), 0)
    scale = 1 / len(trees.roots) if how == "AVERAGE" else 1
    finish = formula_of(lambda t: t * scale, DType.F32) if scale != 1 else identity(DType.F32)
    total = n.graph.reduce(combine, entries, [1], finish)
    base = _base_values(n)
    if base.size:
        total = n.graph.apply("add", total, n.graph.constant(base))
    n.set(transform(n, total))


def _features(n: NodeContext) -> str:
    value = n[0] if n.dtype().is_float else n.graph.cast(DType.F32, n[0])
    shape = n.graph.shape(value)
    return value if len(shape) == 2 else n.graph.reshape(value, (1, math.prod(shape)))


@operator("TreeEnsembleClassifier", domain=ML)
def tree_classifier(n: NodeContext) -> None:
    """The class with the greatest sum of what the trees give."""
    trees, classes = _Trees(n), Classes(n)
    count = len(classes.numbers)
    weights = _leaf_weights(n, trees, "class", count, 0.0)
    base, used = _base_values(n), sorted(set(n.integers("class_ids", ())))
    if count == 2 and len(used) == 1:
        weights = weights[:, used]
    entries = n.graph.take(n.graph.constant(weights), trees.leaves(n, _features(n)), 0)
    scores = n.graph.reduce("add", entries, [1])
    if base.size:
        scores = n.graph.apply("add", scores, n.graph.constant(base[-weights.shape[1] :]))
    if count == 2 and len(used) == 1:
        return set_two_classes(n, classes, scores, is_probability=bool((weights >= 0).all()))
    index = n.graph.add(ops.Extreme(True, False), scores)
    return classes.set(n, index, transform(n, scores))
