"""Tests of `fleetctl build`, and of `push` with a model that has to be compiled first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from agent.runtime.module import check_abi, inspect
from protocol.manifest import Manifest
from tests.compiler.onnx_models import ModelWriter, small_cnn
from tests.controller.cli.fleets import Done, Fleet, call

_MAIN = "from controller.entry import main; main()"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cnn(tmp_path: Path) -> Path:
    path = tmp_path / "Small CNN-1.2.0.onnx"
    path.write_bytes(small_cnn())
    return path


def dense() -> bytes:
    w = ModelWriter()
    return w.model(w.node("Relu", w.node("MatMul", w.input("pixels", ["batch", 3, 2]), w.weights(2, 2))))


def error_of(done: Done, code: int = 1) -> str:
    assert code == done.returncode, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_model_becomes_a_module_beside_us(cnn: Path) -> None:
    """Each phase is on the screen; the module has no imports and runs at once."""
    done = call("build", str(cnn), "--report")
    assert 0 == done.returncode, done.stderr
    lines = done.stdout.splitlines()
    assert ["✓ read", "✓ import", "✓ optimise", "✓ compile"] == [" ".join(line.split()[:2]) for line in lines[:4]]
    assert any(line.startswith("Conv_4 ") and "903,168" in line for line in lines)
    module = Path("Small CNN-1.2.0.wasm")
    facts = inspect(module.read_bytes())
    check_abi(facts)
    assert () == facts.imports
    assert "softmax10  FP32 [1, 10]" == call("run", str(module)).stdout.splitlines()[0]


def test_the_document_says_what_was_built(cnn: Path) -> None:
    """Sizes, tensors and work; layers when they are asked for."""
    built = json.loads(call("build", str(cnn), "-o", "m.wasm", "--simd", "simd128", "--report", "--json").stdout)
    assert ("m.wasm", "small-cnn", "simd128") == (built["file"], built["spec"]["name"], built["simd"])
    assert (Path("m.wasm").stat().st_size, 1_050_560) == (built["size_bytes"], built["multiply_adds"])
    assert "Conv_0" == built["layers"][0]["name"]


def test_a_module_is_written_as_text_too(cnn: Path) -> None:
    """Beside the module; it runs as it stands and gives the same answer."""
    built = json.loads(call("build", str(cnn), "-o", "m.wasm", "--wat", "--json").stdout)
    assert ("m.wasm", "m.wat") == (built["file"], built["text_file"])
    assert "(func $Conv_4 " in Path("m.wat").read_text()
    image = json.dumps(np.random.default_rng(7).random(built["spec"]["inputs"][0]["shape"]).tolist())
    answers = [call("run", file, "--input", "-", "--json", stdin=image) for file in ("m.wasm", "m.wat")]
    assert [0, 0] == [answer.returncode for answer in answers], answers[1].stderr
    binary, text = (json.loads(answer.stdout)["outputs"] for answer in answers)
    assert binary == text


def test_a_module_is_written_as_text_alone(cnn: Path) -> None:
    """A name that ends in .wat says so."""
    done = call("build", str(cnn), "-o", "m.wat")
    assert 0 == done.returncode, done.stderr
    assert ["m.wat"] == [path.name for path in Path().iterdir() if path != cnn and path.name != cnn.name]
    assert Path("m.wat").read_text().startswith("(module\n")
    assert "next: fleetctl run m.wat" in done.stdout
    assert "next: fleetctl run 'm 2.wat'" in call("build", str(cnn), "-o", "m 2.wat").stdout
    assert 0 == call("run", "m.wat").returncode


def test_inspect_shows_layers_and_plan(cnn: Path) -> None:
    """Each layer with its work and code, and how the memory is used."""
    call("build", str(cnn), "-o", "m.wasm")
    shown = call("inspect", "m.wasm").stdout
    rows = [line.split() for line in shown.splitlines()]
    assert ["Conv_4", "903,168"] == next(row for row in rows if row[:1] == ["Conv_4"])[:2]
    assert ["work", "1,050,560", "multiply-adds", "a", "call"] in rows
    assert any(row[:1] == ["plan"] and "of constants" in " ".join(row) for row in rows)
    module = json.loads(call("inspect", "m.wasm", "--json").stdout)["module"]
    named = {f["index"]: f["name"] for f in module["functions"]}
    assert "Conv_0" == named[module["plan"]["layers"][0][0]]


def test_the_same_bytes_in_every_process(cnn: Path) -> None:
    """Whatever the hashes of strings are, for each target."""
    for simd in ("relaxed", "simd128"):
        digests = set()
        for seed in ("1", "2"):
            done = subprocess.run(
                [sys.executable, "-c", _MAIN, "build", str(cnn), "--json", "--simd", simd],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                check=True,
            )
            digests.add(json.loads(done.stdout)["digest"])
        assert 1 == len(digests)


def test_open_shapes_are_asked_for_and_given(tmp_path: Path) -> None:
    """The error has the option to type; with it the model is built."""
    (tmp_path / "dense.onnx").write_bytes(dense())
    said = error_of(call("build", "dense.onnx"), 1)
    assert "pixels [batch, 3, 2]; give them numbers, for example: --input-shape pixels=1x3x2" in said
    built = json.loads(call("build", "dense.onnx", "--input-shape", "pixels=4x3x2", "--json").stdout)
    assert [4, 3, 2] == built["spec"]["inputs"][0]["shape"]


def test_pixels_are_normalised_inside(tmp_path: Path) -> None:
    """The input is bytes; each channel has its own mean and deviation."""
    w = ModelWriter()
    (tmp_path / "same.onnx").write_bytes(w.model(w.node("Identity", w.input("pixels", [1, 3, 2]))))
    call("build", "same.onnx", "--uint8-input", "pixels", "--normalize", "1:2:3,0.5:1:2")
    pixels = np.arange(6, dtype=np.uint8).reshape(1, 3, 2)
    done = call("run", "same.wasm", "--input", "-", "--json", stdin=json.dumps(pixels.tolist()))
    expected = (pixels - np.array([[1.0], [2], [3]])) / np.array([[0.5], [1], [2]])
    [output] = json.loads(done.stdout)["outputs"]
    assert expected.ravel().tolist() == output["data"]


def test_a_setting_becomes_a_number(tmp_path: Path) -> None:
    """An input given by a value is no input of the module."""
    w = ModelWriter()
    rate = w.input("rate", [], TensorProto.INT64)
    sum_ = w.node("Add", w.input("x", [2]), w.node("Cast", rate, to=TensorProto.FLOAT))
    (tmp_path / "m.onnx").write_bytes(w.model(sum_))
    built = json.loads(call("build", "m.onnx", "--input-value", "rate=16000", "--json").stdout)
    assert ["x"] == [t["name"] for t in built["spec"]["inputs"]]


def test_a_state_is_kept_inside(tmp_path: Path) -> None:
    """The module is stateful, and neither takes the state nor gives it out."""
    w = ModelWriter()
    x, h = w.input("x", [2]), w.input("h", [2])
    (tmp_path / "m.onnx").write_bytes(w.model(w.node("Mul", x, h), w.node("Add", x, h)))
    spec = json.loads(call("build", "m.onnx", "--state", "h=add1", "--json").stdout)["spec"]
    assert (["x"], ["mul0"], True) == (
        [t["name"] for t in spec["inputs"]],
        [t["name"] for t in spec["outputs"]],
        spec["stateful"],
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--input-shape", "1x3"], "expected NAME=VALUE"),
        (["--input-shape", "x=1x-3"], "expected a shape like 1x3x224x224"),
        (["--input-value", "x=many"], "expected a number"),
        (["--normalize", "1,2"], "inputs named with --uint8-input"),
        (["--uint8-input", "x", "--normalize", "1"], "expected MEAN,STD"),
        (["--uint8-input", "x", "--normalize", "1,0"], "a STD other than 0"),
        (["--simd", "avx"], "Invalid value for '--simd'"),
        (["--input-shape", "x=1x2", "--input-shape", "x=1x3"], "'x' is given twice"),
        (["-o", "Small CNN-1.2.0.onnx"], "is the model itself, which would be lost"),
        (["-o", "./linked.wasm"], "is the model itself, which would be lost"),
        (["--version", "one"], "expected a version like 1.2.0 or 2.0.0-rc.1, got 'one'"),
        (["--name", "Bad Name"], "expected a model name"),
    ],
)
def test_misspelt_options_are_usage(cnn: Path, args: list[str], said: str) -> None:
    """What was not understood ends with exit code 2, before the file is read; and the model is never written over."""
    Path("linked.wasm").symlink_to(cnn)
    assert said in " ".join(error_of(call("build", str(cnn), *args), 2).split())


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--input-shape", "pixels=1x4x2"], "bad_option", "input pixels [batch, 3, 2] cannot have"),
        (["--input-shape", "pixel=1x3x2"], "bad_option", "the model has no inputs ['pixel']; it has ['pixels']"),
        (["--uint8-input", "pixel"], "bad_option", "no inputs ['pixel']"),
        (["--uint8-input", "pixels", "--normalize", "1:2,3"], "bad_option", "2 channels"),
        (["--input-shape", "pixels=999999999x3x2"], "too_large", "expected at most"),
        (["-o", "/nowhere/m.wasm"], "bad_model_file", "cannot write /nowhere/m.wasm"),
    ],
)
def test_what_does_not_fit_the_model_is_said(tmp_path: Path, args: list[str], code: str, said: str) -> None:
    """The code is stable, the words name what is wrong, and no module is left behind."""
    (tmp_path / "dense.onnx").write_bytes(dense())
    given = [] if "--input-shape" in args else ["--input-shape", "pixels=1x3x2"]
    done = call("build", "dense.onnx", *given, *args, "--json")
    failure = json.loads(done.stdout)["error"]
    assert (1, code) == (done.returncode, failure["code"])
    assert said in failure["message"]
    assert not list(tmp_path.glob("*.wasm"))


def test_a_pipe_stays_a_pipe(cnn: Path) -> None:
    """What is no plain file, such as a device, is written into and not replaced."""
    os.mkfifo("pipe")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE) as reader:
        done = call("build", str(cnn), "-o", "pipe", "--json")
        assert reader.stdout is not None
        received = reader.stdout.read()
    assert 0 == done.returncode, done.stderr
    assert json.loads(done.stdout)["size_bytes"] == len(received)
    assert Path("pipe").is_fifo()


def test_nobody_waits_for_a_pipe() -> None:
    """A model is a plain file."""
    os.mkfifo("pipe.onnx")
    for command in ("build", "push", "bench"):
        assert "cannot read pipe.onnx: it is a device, pipe or socket" in error_of(call(command, "pipe.onnx"))


def test_a_file_that_is_not_there_is_no_damaged_model() -> None:
    """The hint is about the path."""
    said = error_of(call("build", "nothing.onnx"))
    assert "cannot read nothing.onnx" in said
    assert "give the path of a model file" in said


def test_everything_unsupported_is_said_at_once(tmp_path: Path) -> None:
    """One line for each node, and where the list of operators is."""
    w = ModelWriter()
    x = w.input("x", [4, 4])
    (tmp_path / "odd.onnx").write_bytes(w.model(w.node("Det", x), w.node("Unique", x)))
    said = error_of(call("build", "odd.onnx"))
    assert "Det (Det_0, opset 17)" in said
    assert "Unique (Unique_1, opset 17)" in said
    assert "docs/COMPILER.md" in said


def test_a_module_takes_no_compiler_options(tmp_path: Path, cnn: Path) -> None:
    """Shapes are fixed in it."""
    call("build", str(cnn), "-o", "m.wasm")
    assert "compiled already" in error_of(call("push", "m.wasm", "--input-shape", "x=1"), 2)


@pytest.mark.slow
def test_push_compiles_for_devices_and_browsers(fleet: Fleet, cnn: Path) -> None:
    """The release has a variant for each, and a device runs the fast one."""
    fleet.start_device("compiled-1", "compiled")
    done = fleet.run("push", str(cnn), "--to", "compiled", "--wait")
    assert 0 == done.returncode, done.stderr
    assert 2 == done.stdout.count("✓ compile")
    shown = fleet.ask("releases", "show", "small-cnn", "1.2.0")
    [stored] = (fleet.home / "server").rglob(shown["manifest_digest"])
    manifest = Manifest.from_bytes(stored.read_bytes())
    assert [("simd128", "relaxed_simd"), ("simd128",)] == [v.requires for v in manifest.variants]
    assert "already" in fleet.run("push", str(cnn), "--to", "compiled", "--wait").stdout


def test_states_and_labels(tmp_path: Path) -> None:
    """A state is kept in the module; labels come from the lines of a file."""
    w = ModelWriter()
    total = w.named("Add", w.input("x", [1, 2]), "total_next", w.input("total", [1, 2]))
    Path("sum.onnx").write_bytes(w.model(total, w.named("Identity", total, "y")))
    Path("names.txt").write_text("left\nright\n")
    done = call("build", "sum.onnx", "--state", "total=total_next", "--labels", "y=names.txt", "--json")
    spec = json.loads(done.stdout)["spec"]
    assert (["x"], ["y"]) == ([t["name"] for t in spec["inputs"]], [t["name"] for t in spec["outputs"]])
    assert (True, {"y": ["left", "right"]}) == (spec["stateful"], spec["labels"])
    assert "keeps state between calls" in call("inspect", "sum.wasm").stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--state", "total"], "expected NAME=VALUE, got 'total'"),
        (["--state", "total=y"], "no input 'total'"),
        (["--labels", "relu1=missing.txt"], "cannot read missing.txt: No such file"),
        (["--labels", "relu1=/dev/zero"], "expected at most 1,048,576 bytes in /dev/zero, got more"),
        (["--labels", "relu1=latin.txt"], "expected text in UTF-8"),
        (["--labels", "relu1=three.txt"], "expected a label for each index"),
    ],
)
def test_states_and_labels_that_do_not_fit(options: list[str], message: str) -> None:
    """Each is refused, and says why."""
    Path("m.onnx").write_bytes(dense())
    Path("latin.txt").write_bytes("für".encode("latin-1"))
    Path("three.txt").write_text("a\nb\nc\n")
    done = call("build", "m.onnx", "--input-shape", "pixels=1x3x2", *options)
    assert message in " ".join(error_of(done, done.returncode).replace("│", " ").split())
    assert done.returncode in (1, 2)
