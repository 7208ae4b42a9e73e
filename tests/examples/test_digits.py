"""The digits example: trained by its script, run on the device runtime, classified, and the broken release caught."""

import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agent.runtime.errors import SelfTestError
from agent.runtime.instance import Caps, LoadedModel, load_model
from agent.runtime.selftest import run_self_test
from compiler.section import read_model_section
from protocol.manifest import FileRef, SelfTest
from protocol.tensors import ModelSpec

FOLDER = Path(__file__).parents[2] / "examples" / "digits"


class Vectors(msgspec.Struct):
    """The file for `--test-data`."""

    inputs: list[dict[str, list[float]]]
    outputs: list[dict[str, list[float]]]


class Split(msgspec.Struct):
    """The test split."""

    images: list[list[float]]
    labels: list[int]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the script as a user does, once."""
    out = tmp_path_factory.mktemp("digits")
    printed = train(out)
    assert "digits-1.1.0.wasm" in printed
    return out


def train(out: Path) -> str:
    """Run train.py and return what it prints."""
    command = [sys.executable, str(FOLDER / "train.py"), "--out", str(out)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def described(wasm: bytes) -> ModelSpec:
    """Return what the module says of itself."""
    spec = read_model_section(wasm)
    assert spec is not None
    return spec


def load(wasm: bytes) -> LoadedModel:
    """Return the module ready to run, in no more memory than it needs."""
    spec = described(wasm)
    return load_model(wasm, spec.inputs, spec.outputs, Caps(memory_bytes=65536))


def self_test(build: Path, version: str) -> None:
    """Run the module against the vectors beside it."""
    vectors = msgspec.json.decode((build / f"digits-{version}.vectors.json").read_bytes(), type=Vectors)
    raw = b"".join(
        struct.pack("<64f", *x["image"]) + struct.pack("<10f", *y["probabilities"])
        for x, y in zip(vectors.inputs, vectors.outputs, strict=True)
    )
    model = load((build / f"digits-{version}.wasm").read_bytes())
    try:
        run_self_test(model, SelfTest(file=FileRef.of(raw), count=len(vectors.inputs)), raw)
    finally:
        model.close()


@pytest.mark.parametrize(("version", "least"), [("1.0.0", 0.96), ("1.1.0", 0.97)])
def test_accuracy(build: Path, version: str, least: float) -> None:
    """Both classify the images that they were not trained on."""
    wasm = (build / f"digits-{version}.wasm").read_bytes()
    split = msgspec.json.decode((build / "test_images.json").read_bytes(), type=Split)
    model = load(wasm)
    right = 0
    try:
        for image, label in zip(split.images, split.labels, strict=True):
            probabilities = struct.unpack("<10f", model.infer([struct.pack("<64f", *image)])[0])
            assert sum(probabilities) == pytest.approx(1, abs=1e-5)
            right += max(range(10), key=probabilities.__getitem__) == label
    finally:
        model.close()
    assert 450 == len(split.images)
    assert right / 450 >= least


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_the_module_computes_what_was_trained(build: Path, version: str) -> None:
    """The vectors come from the trained network in 64 bits; the module meets them within the default tolerance."""
    self_test(build, version)


def test_the_broken_release_fails_its_self_test(build: Path) -> None:
    """It is a valid module that answers; only its answers are wrong."""
    with pytest.raises(SelfTestError, match="probabilities"):
        self_test(build, "1.2.0")


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0", "1.2.0"])
def test_the_module_describes_itself(build: Path, version: str) -> None:
    """Push needs nothing but the file."""
    spec = described((build / f"digits-{version}.wasm").read_bytes())
    assert ("digits", version) == (spec.name, spec.version)
    assert (1, 64) == spec.inputs[0].shape
    assert tuple("0123456789") == spec.labels["probabilities"]


def test_training_again_gives_the_same_files(build: Path, tmp_path: Path) -> None:
    """The same data, split and seed: the same bytes."""
    train(tmp_path)
    for path in sorted(build.iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
