"""Trees and linear models that scikit-learn trained, converted to ONNX, against onnxruntime."""

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from sklearn import datasets, ensemble, linear_model, pipeline, preprocessing, svm, tree

from compiler import CompiledModel, CompileOptions, compile_model
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import Array, ModelWriter, run_onnxruntime

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from skl2onnx import to_onnx

ROWS = 8
IRIS_X, IRIS_Y = datasets.load_iris(return_X_y=True)
X = IRIS_X.astype(np.float32)
BATCH = X[:: len(X) // ROWS][:ROWS]


def converted(model: Any, y: Array) -> bytes:
    """Return a model, trained and converted; probabilities as a tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, y)
        options = {"zipmap": False} if hasattr(model, "predict_proba") else None
        return bytes(to_onnx(model, X[:1], options=options).SerializeToString())


def compiled(model: bytes) -> CompiledModel:
    return compile_model(model, CompileOptions(input_shapes={"X": (ROWS, X.shape[1])}))


def compare(model: bytes) -> None:
    assert_close(run_compiled(compiled(model), {"X": BATCH}), run_onnxruntime(model, {"X": BATCH}))


CLASSIFIERS = [
    tree.DecisionTreeClassifier(max_depth=4, random_state=0),
    ensemble.RandomForestClassifier(n_estimators=9, random_state=0),
    ensemble.GradientBoostingClassifier(n_estimators=5, random_state=0),
    linear_model.LogisticRegression(max_iter=500),
    linear_model.SGDClassifier("log_loss", random_state=0),
    svm.LinearSVC(random_state=0),
    pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression()),
    pipeline.make_pipeline(preprocessing.Normalizer("l1"), tree.DecisionTreeClassifier(random_state=0)),
]
REGRESSORS = [
    tree.DecisionTreeRegressor(random_state=0),
    ensemble.RandomForestRegressor(n_estimators=9, random_state=0),
    ensemble.GradientBoostingRegressor(n_estimators=9, random_state=0),
    linear_model.LinearRegression(),
    linear_model.Ridge(),
    svm.SVR(kernel="rbf"),
    svm.SVR(kernel="poly", degree=2),
    svm.SVR(kernel="linear"),
    svm.SVR(kernel="sigmoid"),
]


def name_of(model: Any) -> str:
    return type(model[-1] if isinstance(model, pipeline.Pipeline) else model).__name__


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("model", CLASSIFIERS, ids=name_of)
def test_classifiers(model: Any, classes: int) -> None:
    """Labels are equal, scores close; two classes have rules of their own."""
    compare(converted(model, np.minimum(IRIS_Y, classes - 1)))


@pytest.mark.parametrize("model", REGRESSORS, ids=name_of)
def test_regressors(model: Any) -> None:
    """With one target."""
    compare(converted(model, IRIS_X[:, 0] * IRIS_X[:, 1] + IRIS_X[:, 2]))


def test_labels_that_are_texts() -> None:
    """The label is an index, and the module says what the scores are of."""
    names = np.array(["setosa", "versicolor", "virginica"])
    model = converted(ensemble.RandomForestClassifier(n_estimators=5, random_state=0), names[IRIS_Y])
    module = compiled(model)
    label, scores = run_compiled(module, {"X": BATCH})
    want_label, want_scores = run_onnxruntime(model, {"X": BATCH})
    assert want_label.tolist() == names[label].tolist()
    assert_close([scores], [want_scores])
    assert {module.spec.outputs[1].name: tuple(names)} == module.spec.labels


@pytest.mark.parametrize("mode", ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"])
@pytest.mark.parametrize("is_missing_true", [0, 1])
def test_every_kind_of_branch(mode: str, is_missing_true: int) -> None:
    """Smaller, equal, greater and missing values, in trees of different depths."""
    model = ml(
        "TreeEnsembleRegressor", [5, 2], [5, 1], (F32, F32),
        nodes_treeids=[0, 0, 0, 1, 1, 1, 1, 1, 2], nodes_nodeids=[0, 1, 2, 0, 1, 2, 3, 4, 0],
        nodes_featureids=[0, 0, 0, 1, 0, 0, 0, 0, 0], nodes_values=[1.0, 0, 0, 2.0, 0, 1.0, 0, 0, 0],
        nodes_modes=[mode, "LEAF", "LEAF", mode, "LEAF", mode, "LEAF", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0, 1, 0, 3, 0, 0, 0], nodes_falsenodeids=[2, 0, 0, 2, 0, 4, 0, 0, 0],
        nodes_missing_value_tracks_true=[is_missing_true] * 9, n_targets=1,
        target_treeids=[0, 0, 1, 1, 1, 2], target_nodeids=[1, 2, 1, 3, 4, 0], target_ids=[0] * 6,
        target_weights=[1.0, 2.0, 10.0, 20.0, 30.0, 100.0],
    )  # fmt: skip
    x = np.array([[0, 3], [1, 2], [2, 1], [np.nan, 2], [1, np.nan]], np.float32)
    assert_close(run_compiled(compile_model(model), {"x": x}), run_onnxruntime(model, {"x": x}))


@pytest.mark.parametrize("how", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_every_way_to_put_trees_together(how: str) -> None:
    """Trees of one leaf, with a base value."""
    model = ml(
        "TreeEnsembleRegressor", [1, 1], [1, 2], (F32, F32), aggregate_function=how, base_values=[0.5, 0.25],
        nodes_treeids=[0, 1], nodes_nodeids=[0, 0], nodes_featureids=[0, 0], nodes_values=[0.0, 0.0],
        nodes_modes=["LEAF", "LEAF"], nodes_truenodeids=[0, 0], nodes_falsenodeids=[0, 0], n_targets=2,
        target_treeids=[0, 0, 1, 1], target_nodeids=[0, 0, 0, 0], target_ids=[0, 1, 0, 1],
        target_weights=[1.0, 2.0, 5.0, -3.0],
    )  # fmt: skip
    x = np.zeros((1, 1), np.float32)
    assert_close(run_compiled(compile_model(model), {"x": x}), run_onnxruntime(model, {"x": x}))


def ml(op_type: str, shape: list[int], result: list[int], kinds: tuple[int, int], **attributes: Any) -> bytes:
    """Return a model of one node of `ai.onnx.ml`."""
    w = ModelWriter()
    y = w.node(op_type, w.input("x", shape, kinds[0]), domain="ai.onnx.ml", **attributes)
    return w.model(y, domains={"ai.onnx.ml": 3}, types={y: (kinds[1], result)})


F32, I64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.mark.parametrize(
    "model",
    [
        ml("Scaler", [2, 3], [2, 3], (F32, F32), offset=[1.0, 2.0, 3.0], scale=[0.5, 1.0, 2.0]),
        ml("Binarizer", [2, 3], [2, 3], (F32, F32), threshold=0.5),
        ml("Normalizer", [2, 3], [2, 3], (F32, F32), norm="L2"),
        ml("Normalizer", [2, 3], [2, 3], (F32, F32), norm="MAX"),
        ml("Imputer", [2, 3], [2, 3], (F32, F32), imputed_value_floats=[7.0, 8.0, 9.0], replaced_value_float=1.0),
        ml("OneHotEncoder", [2, 3], [2, 3, 4], (I64, F32), cats_int64s=[0, 1, 2, 5]),
        ml("LabelEncoder", [2, 3], [2, 3], (I64, F32), keys_int64s=[1, 2], values_floats=[0.5, 2.5], default_float=9.0),
        ml("FeatureVectorizer", [2, 3], [2, 3], (F32, F32), inputdimensions=[3]),
        ml("LinearRegressor", [2, 3], [2, 2], (F32, F32), coefficients=[1.0] * 6, intercepts=[0.0, 1.0], targets=2),
    ],
    ids=lambda model: str(onnx.load_from_string(model).graph.node[0].op_type),
)
def test_features(model: bytes) -> None:
    """Each operator of the preparation of features."""
    spec = compile_model(model).spec.inputs[0]
    numbers = np.array([[0, 1, 2], [5, 3, 1]])
    inputs: dict[str, Array] = {"x": numbers.astype(np.float32 if spec.datatype == "FP32" else np.int64)}
    assert_close(run_compiled(compile_model(model), inputs), run_onnxruntime(model, inputs))
