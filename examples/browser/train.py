"""Train a classifier of drawn digits and write it as an ONNX model.

    python examples/browser/train.py [--out DIRECTORY]

The data are scikit-learn's: 1,797 digits that people wrote, as counts of ink in 8 by 8 fields. Each is learnt in many
forms: turned, slanted, stretched, written with a thinner or a thicker pen. The model itself takes 32 by 32 pixels, one
byte each, and counts the ink in the fields. Into `build/` beside this file it writes `digit.onnx` and `labels.txt`.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper
from scipy.ndimage import affine_transform, zoom
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

Array = NDArray[Any]
BUILD = Path(__file__).parent / "build"
SIDE, FIELD, COUNT = 32, 4, 8
FORMS = 12


def fields(pictures: Array) -> Array:
    """Return the mean ink of each field, (n, 64), of pictures (n, 32, 32)."""
    return pictures.reshape(-1, COUNT, FIELD, COUNT, FIELD).mean(axis=(2, 4)).reshape(-1, COUNT * COUNT)


def another_form(picture: Array, rng: np.random.Generator) -> Array:
    """Return a digit, (32, 32), as another hand would write it."""
    turn, slant = rng.normal(0, 0.12), rng.normal(0, 0.15)
    change = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[1, 0], [slant, 1]]
    change /= rng.uniform(0.85, 1.1, (2, 1))
    middle = (SIDE - 1) / 2
    offset = middle - change @ [middle, middle] + rng.normal(0, 0.7, 2)
    ink = affine_transform(picture, change, offset, order=1)
    return np.clip((ink - rng.uniform(0.1, 0.45)) * 4 + 0.5, 0, 1)


def train() -> tuple[MLPClassifier, float]:
    """Return the network, and which part of the digits that it has not seen it reads right."""
    images, digits = load_digits(return_X_y=True)
    large = np.stack([zoom(image.reshape(COUNT, COUNT) / 16, FIELD, order=1) for image in images])
    large_train, large_test, digits_train, digits_test = train_test_split(
        large, digits, test_size=0.2, random_state=0, stratify=digits
    )
    rng = np.random.default_rng(0)
    forms = np.stack([another_form(picture, rng) for _ in range(FORMS) for picture in large_train])
    network = MLPClassifier((96,), random_state=0, max_iter=200, early_stopping=True, n_iter_no_change=5)
    network.fit(fields(np.concatenate([large_train, forms])), np.tile(digits_train, FORMS + 1))
    return network, float(network.score(fields(large_test), digits_test))


def onnx_model(network: MLPClassifier) -> bytes:
    """Return the network behind the counting of ink: `drawing` [1, 1, 32, 32] in, `digit` [1, 10] out."""
    nodes = [
        helper.make_node("AveragePool", ["drawing"], ["fields"], kernel_shape=[FIELD, FIELD], strides=[FIELD, FIELD]),
        helper.make_node("Flatten", ["fields"], ["ink"]),
        helper.make_node("Gemm", ["ink", "weights0", "bias0"], ["first"]),
        helper.make_node("Relu", ["first"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "weights1", "bias1"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["digit"], axis=1),
    ]
    numbers = {f"weights{n}": w for n, w in enumerate(network.coefs_)}
    numbers |= {f"bias{n}": b for n, b in enumerate(network.intercepts_)}
    graph = helper.make_graph(
        nodes,
        "digit",
        [helper.make_tensor_value_info("drawing", TensorProto.FLOAT, [1, 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("digit", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in numbers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def main() -> None:
    """Train, write the files, print how good the network is."""
    arguments = argparse.ArgumentParser(description="Train a classifier of drawn digits.")
    arguments.add_argument("--out", type=Path, default=BUILD, help="where to write it (default: %(default)s)")
    out: Path = arguments.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    network, accuracy = train()
    (out / "digit.onnx").write_bytes(onnx_model(network))
    (out / "labels.txt").write_text("\n".join("0123456789") + "\n")
    print(f"digit.onnx reads {accuracy:.1%} of the digits that it has not seen; it is in {out}")


if __name__ == "__main__":
    main()
