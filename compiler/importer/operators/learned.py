"""Operators of `ai.onnx.ml` but trees: linear models, support vectors, and the preparation of features.

There are no text tensors: a classifier with text labels gives the index of its class, and the module says what that
means.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compiler.dtypes import DType
from compiler.formula import Term, formula_of
from compiler.importer.context import NodeContext
from compiler.importer.operators.linear import multiply
from compiler.importer.registry import operator
from compiler.ir import operations as ops

Array = NDArray[Any]
ML: Final = "ai.onnx.ml"


def floats(n: NodeContext, name: str) -> Array:
    """Return numbers that are an attribute."""
    return np.asarray(n.attribute(name, ()), np.float32)


def _rows(n: NodeContext, position: int = 0) -> str:
    """Return an input as floats with one row for each sample."""
    value = n.graph.cast(DType.F32, n[position])
    shape = n.graph.shape(value)
    return (
        value if len(shape) == 2 else n.graph.reshape(value, (1, math.prod(shape)) if len(shape) < 2 else _flat(shape))
    )


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _softmax(n: NodeContext, scores: str) -> str:
    return n.graph.add(ops.Softmax(False), scores)


def _softmax_zero(n: NodeContext, scores: str) -> str:
    """A softmax in which scores of zero stay zero."""
    top = n.graph.reduce("max", scores, [1])
    spread = n.graph.reshape(top, (*n.graph.shape(top), 1))

    def power(x: Term, t: Term) -> Term:
        return (x.apply("abs") < 1e-7).choose(x * 0, (x - t).apply("exp"))

    powers = n.map(power, scores, spread)
    total = n.graph.reduce("add", powers, [1])
    return n.map(lambda p, s: p / s, powers, n.graph.reshape(total, n.graph.shape(spread)))


_TRANSFORMS: Final[dict[str, Callable[[NodeContext, str], str]]] = {
    "NONE": lambda _, scores: scores,
    "LOGISTIC": lambda n, scores: n.graph.apply("sigmoid", scores),
    "SOFTMAX": _softmax,
    "SOFTMAX_ZERO": _softmax_zero,
}


def transform(n: NodeContext, scores: str) -> str:
    """Return scores as the node wants them."""
    name = n.attribute("post_transform", "NONE")
    if name not in _TRANSFORMS:
        raise n.refuse(f"the transform {name} of scores is not implemented")
    return _TRANSFORMS[name](n, scores)


class Classes:
    """The labels of a classifier: numbers, or texts that indices stand for."""

    def __init__(
        self, n: NodeContext, integers: str = "classlabels_int64s", texts: str = "classlabels_strings"
    ) -> None:
        names = [text.decode() for text in n.attribute(texts, ())]
        self.texts = tuple(names)
        self.numbers = np.arange(len(names)) if names else np.asarray(n.attribute(integers, ()), np.int64)

    def set(self, n: NodeContext, index: str, scores: str) -> None:
        """Set the results: the label at an index, and the scores."""
        if self.texts:
            n.graph.labels[scores] = self.texts
        label = n.graph.take(n.graph.constant(self.numbers), index, 0)
        n.set(label, scores)


def set_two_classes(n: NodeContext, classes: Classes, score: str, *, is_probability: bool) -> None:
    """Set the results of a classifier that computes one score (rows, 1), that of its second class."""
    is_logistic = n.attribute("post_transform", "NONE") == "LOGISTIC"
    if is_probability:
        first = n.map(lambda s: 1 - s, score)
    elif is_logistic:
        first = n.map(lambda s: (-s).apply("sigmoid"), score)
    else:
        first = n.graph.apply("neg", score)
    second = n.graph.apply("sigmoid", score) if is_logistic and not is_probability else score
    limit = 0.5 if is_probability else 0.0
    index = n.map(lambda s: (s > limit).cast(DType.I64), n.graph.reshape(score, n.graph.shape(score)[:1]))
    classes.set(n, index, n.graph.add(ops.Concat(1), first, second))


@operator("LinearRegressor", domain=ML)
def linear_regressor(n: NodeContext) -> None:
    """A product and a sum."""
    n.set(transform(n, _linear(n, n.integer("targets", 1))))


def _linear(n: NodeContext, count: int) -> str:
    x = _rows(n)
    weights = floats(n, "coefficients").reshape(count, -1).T
    product = multiply(n, x, n.graph.constant(np.ascontiguousarray(weights)))
    shift = floats(n, "intercepts")
    return n.graph.apply("add", product, n.graph.constant(shift)) if shift.size else product


@operator("LinearClassifier", domain=ML)
def linear_classifier(n: NodeContext) -> None:
    """The class with the greatest product."""
    classes = Classes(n, "classlabels_ints")
    features = n.graph.shape(_rows(n))[1]
    count = floats(n, "coefficients").size // features
    scores = _linear(n, count)
    if count == 1 and len(classes.numbers) == 2:
        return set_two_classes(n, classes, scores, is_probability=False)
    index = n.graph.add(ops.Extreme(True, False), scores)
    return classes.set(n, index, transform(n, scores))


_KERNELS: Final[dict[str, Callable[[Term, float, float, float], Term]]] = {
    "LINEAR": lambda x, _g, _c, _d: x,
    "POLY": lambda x, gamma, shift, degree: (x * gamma + shift).apply("pow", degree),
    "SIGMOID": lambda x, gamma, shift, _: (x * gamma + shift).apply("tanh"),
}


@operator("SVMRegressor", domain=ML)
def support_vector_regressor(n: NodeContext) -> None:
    """A sum over the support vectors of a kernel."""
    kind, x = n.attribute("kernel_type", "LINEAR"), _rows(n)
    gamma, shift, degree = (float(v) for v in (*floats(n, "kernel_params"), 0.0, 0.0, 0.0)[:3])
    weights = floats(n, "coefficients")
    count = n.integer("n_supports", 0)
    if not count:
        kind, vectors, weights = "LINEAR", weights.reshape(1, -1), np.ones(1, np.float32)
    else:
        vectors = floats(n, "support_vectors").reshape(count, -1)
    if kind == "RBF":
        rows, features = n.graph.shape(x)
        difference = formula_of(lambda a, b: (a - b) * (a - b), DType.F32, DType.F32)
        finish = formula_of(lambda t: (t * -gamma).apply("exp"), DType.F32)
        wide = n.graph.reshape(x, (rows, 1, features))
        values = n.graph.add(ops.Reduce((2,), difference, "add", finish), wide, n.graph.constant(vectors))
    else:
        product = multiply(n, x, n.graph.constant(np.ascontiguousarray(vectors.T)))
        values = n.map(lambda v: _KERNELS[kind](v, gamma, shift, degree), product)
    total = multiply(n, values, n.graph.constant(weights.reshape(-1, 1)))
    result = n.graph.apply("add", total, n.graph.constant(floats(n, "rho")[:1]))
    if n.integer("one_class", 0):
        result = n.map(lambda t: (t > 0).choose(t * 0 + 1, -1), result)
    n.set(transform(n, result))


@operator("Scaler", domain=ML)
def scaler(n: NodeContext) -> None:
    """(x - offset) * scale, for each feature."""
    value = n.graph.cast(DType.F32, n[0])
    offset, scale = (n.graph.constant(floats(n, name)) for name in ("offset", "scale"))
    n.set(n.map(lambda x, o, s: (x - o) * s, value, offset, scale))


@operator("Normalizer", domain=ML)
def normalizer(n: NodeContext) -> None:
    """Each row divided by a norm of it; rows of zeros stay."""
    value = n.graph.cast(DType.F32, n[0])
    axis = len(n.graph.shape(value)) - 1
    combine, element, finish = {
        "L1": ("add", lambda x: x.apply("abs"), lambda t: t),
        "L2": ("add", lambda x: x * x, lambda t: t.apply("sqrt")),
        "MAX": ("max", lambda x: x, lambda t: t),
    }[n.attribute("norm", "MAX")]
    operation = ops.Reduce((axis,), formula_of(element, DType.F32), combine, formula_of(finish, DType.F32))
    total = n.graph.add(operation, value)
    norm = n.graph.reshape(total, (*n.graph.shape(total), 1))
    n.set(n.map(lambda x, t: x / t.apply("eq", 0).choose(t * 0 + 1, t), value, norm))


@operator("Imputer", domain=ML)
def imputer(n: NodeContext) -> None:
    """Missing values, by a number or NaN, replaced by those of their feature."""
    is_float = n.dtype().is_float
    suffix = "float" if is_float else "int64"
    values = np.asarray(n.attribute(f"imputed_value_{suffix}s"), n.dtype().numpy)
    missing = n.attribute(f"replaced_value_{suffix}", 0)
    if is_float and math.isnan(missing):
        return n.set(n.map(lambda x, v: x.apply("is_nan").choose(v, x), n[0], n.graph.constant(values)))
    return n.set(n.map(lambda x, v: x.apply("eq", missing).choose(v, x), n[0], n.graph.constant(values)))


@operator("OneHotEncoder", domain=ML)
def one_hot_encoder(n: NodeContext) -> None:
    """A one where the value is the category; a further axis."""
    if n.attribute("cats_strings"):
        raise n.refuse("categories that are texts do not occur in modules")
    if not n.integer("zeros", 1):
        raise n.refuse("zeros=0 asks for an error while it runs, which a module cannot give")
    value = n.graph.cast(DType.I64, n[0])
    categories = n.graph.constant(np.asarray(n.attribute("cats_int64s"), np.int64))
    wide = n.graph.reshape(value, (*n.graph.shape(value), 1))
    n.set(n.map(lambda x, c: x.apply("eq", c).cast(DType.F32), wide, categories))


@operator("LabelEncoder", domain=ML)
def label_encoder(n: NodeContext) -> None:
    """A value for a key."""
    keys, values, default = (_table(n, name) for name in ("keys", "values", "default"))
    if keys is None or values is None or keys.dtype != n.dtype().numpy:
        raise n.refuse("keys or values that are texts do not occur in modules")
    if default is None:
        default = np.asarray(-1 if values.dtype.kind == "i" else -0.0, values.dtype)
    wide = n.graph.reshape(n[0], (*n.shape(), 1))
    key = n.graph.constant(keys)

    def is_equal(x: Term, k: Term) -> Term:
        both_nan = x.apply("is_nan").apply("and", k.apply("is_nan")) if x.dtype.is_float else None
        equal = x.apply("eq", k)
        return (equal if both_nan is None else equal.apply("or", both_nan)).cast(DType.U8)

    found = n.map(is_equal, wide, key)
    axis = len(n.graph.shape(found)) - 1
    index = n.graph.add(ops.Extreme(True, False), found)
    any_ = n.graph.reduce("max", found, [axis])
    chosen = n.graph.take(n.graph.constant(values), index, 0)
    other = n.graph.constant(default.astype(values.dtype).reshape(-1)[:1].reshape(()))
    n.set(n.map(lambda a, v, d: (a > 0).choose(v, d), any_, chosen, other))


def _table(n: NodeContext, what: str) -> Array | None:
    for suffix, dtype in (
        ("tensor", None),
        ("int64s", np.int64),
        ("floats", np.float32),
        ("int64", np.int64),
        ("float", np.float32),
    ):
        name = f"{what}_{suffix}"
        if n.attribute(name) is None:
            continue
        table = n.tensor(name) if dtype is None else np.asarray(n.attribute(name), dtype)
        return None if table.dtype.kind in "OSU" else table
    return None


@operator("Binarizer", domain=ML)
def binarizer(n: NodeContext) -> None:
    """One above the threshold, else zero."""
    limit = n.number("threshold", 0.0)
    n.set(n.map(lambda x: (x > limit).choose(x * 0 + 1, 0), n[0]))


@operator("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor(n: NodeContext) -> None:
    """Some of the last axis."""
    value = n[0] if n.type().rank > 1 else n.graph.reshape(n[0], (1, n.type().elements))
    axis = len(n.graph.shape(value)) - 1
    n.set(n.graph.take(value, n.graph.reshape(n[1], (n.type(1).elements,)), axis))


@operator("FeatureVectorizer", domain=ML)
def feature_vectorizer(n: NodeContext) -> None:
    """All inputs side by side."""
    parts = [_rows(n, position) for position in range(n.count)]
    n.set(n.graph.add(ops.Concat(1), *parts) if len(parts) > 1 else parts[0])


@operator("ZipMap", domain=ML)
def zip_map(n: NodeContext) -> None:
    """The scores as they are: which class each belongs to, the labels of the module say."""
    texts = tuple(text.decode() for text in n.attribute("classlabels_strings", ()))
    if texts:
        n.graph.labels[n[0]] = texts
    n.set(n[0])
