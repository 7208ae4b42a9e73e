"""Train two classifiers of handwritten digits and write them as WebAssembly models.

    python examples/digits/train.py [--out DIRECTORY]

The data are scikit-learn's: 1,797 images of 8 by 8 pixels with values from 0 to 16, of which a quarter is kept for
testing. Into `build/` beside this file it writes

    digits-1.0.0.wasm   softmax regression
    digits-1.1.0.wasm   a network with one hidden layer of 32, which is better
    digits-1.2.0.wasm   the same with an accident: half of its weights were lost on the way into the file

each with `digits-VERSION.vectors.json`, what the trained model answers for eight images: the file for `--test-data`,
by which a device finds out that it must not activate 1.2.0. Beside them lie `test_images.json`, the test images with
their labels, and `image.json`, one image as `fleet-agent infer --input` takes it.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from network import Array, Layer, emit, predict
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from agent.runtime import Caps, load_model
from protocol.tensors import ModelSpec, TensorSpec

BUILD = Path(__file__).parent / "build"
SEED = 0
HIDDEN = 32
BRIGHTEST = 16.0
VECTORS = 8


@dataclass(frozen=True)
class Split:
    """Images of 64 pixels with their digits."""

    train_images: Array
    test_images: Array
    train_labels: Array
    test_labels: Array


def load() -> Split:
    """Return the data, always split in the same way."""
    images, labels = load_digits(return_X_y=True)
    return Split(*train_test_split(images, labels, test_size=0.25, random_state=SEED, stratify=labels))


def train_softmax_regression(split: Split) -> list[Layer]:
    """Return one layer. The model takes pixels as they come, so that the scaling ends up in the weights."""
    model = LogisticRegression(max_iter=1000).fit(split.train_images / BRIGHTEST, split.train_labels)
    return [Layer(model.coef_.T / BRIGHTEST, model.intercept_)]


def train_network(split: Split) -> list[Layer]:
    """Return two layers, with a ReLU between them."""
    model = MLPClassifier((HIDDEN,), random_state=SEED, max_iter=800, alpha=0.3, tol=2e-4)
    model.fit(split.train_images / BRIGHTEST, split.train_labels)
    first, last = (Layer(weights, bias) for weights, bias in zip(model.coefs_, model.intercepts_, strict=True))
    return [Layer(first.weights / BRIGHTEST, first.bias), last]


def lose_half(layers: list[Layer]) -> list[Layer]:
    """Return the network after an accident: the second half of the first layer's weights is 0."""
    weights = layers[0].weights.copy()
    weights[len(weights) // 2 :] = 0
    return [Layer(weights, layers[0].bias), *layers[1:]]


def spec(version: str) -> ModelSpec:
    """Return what the module says of itself."""
    return ModelSpec(
        name="digits",
        version=version,
        inputs=(TensorSpec(name="image", datatype="FP32", shape=(1, 64)),),
        outputs=(TensorSpec(name="probabilities", datatype="FP32", shape=(1, 10)),),
        labels={"probabilities": tuple("0123456789")},
        producer="examples/digits/train.py",
    )


def accuracy(wasm: bytes, split: Split) -> float:
    """Return which part of the test images the module, run as on a device, classifies right."""
    described = spec("0.0.0")
    model = load_model(wasm, described.inputs, described.outputs, Caps())
    try:
        answers = [model.infer([image.astype("<f4").tobytes()])[0] for image in split.test_images]
    finally:
        model.close()
    digits = [int(np.frombuffer(answer, "<f4").argmax()) for answer in answers]
    return float(np.mean(digits == split.test_labels))


def test_vectors(layers: list[Layer], split: Split) -> dict[str, object]:
    """Return a few images with what the trained model answers."""
    images = split.test_images[:VECTORS]
    answers = predict(layers, images)
    return {
        "inputs": [{"image": image.tolist()} for image in images],
        "outputs": [{"probabilities": answer.tolist()} for answer in answers],
    }


def main() -> None:
    """Train, write the files, print how good the models are."""
    arguments = argparse.ArgumentParser(description="Train classifiers of digits and write them as wasm models.")
    arguments.add_argument("--out", type=Path, default=BUILD, help="where to write them (default: %(default)s)")
    out: Path = arguments.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    split = load()
    regression, network = train_softmax_regression(split), train_network(split)
    for version, trained, written in (
        ("1.0.0", regression, regression),
        ("1.1.0", network, network),
        ("1.2.0", network, lose_half(network)),
    ):
        wasm = emit(written, spec(version))
        (out / f"digits-{version}.wasm").write_bytes(wasm)
        (out / f"digits-{version}.vectors.json").write_text(json.dumps(test_vectors(trained, split)))
        print(f"digits-{version}.wasm  {len(wasm):6,} bytes  accuracy {accuracy(wasm, split):.3f}")
    images = {"images": split.test_images.tolist(), "labels": split.test_labels.tolist()}
    (out / "test_images.json").write_text(json.dumps(images))
    (out / "image.json").write_text(json.dumps({"image": [split.test_images[0].tolist()]}))
    print(f"{len(split.test_labels)} test images in {out / 'test_images.json'}")


if __name__ == "__main__":
    main()
