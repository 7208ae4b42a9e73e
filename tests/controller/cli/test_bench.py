"""Tests of `fleetctl bench`: what it measures is not judged here, only that it is measured and said."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

import compiler
from controller.benching.engines import load_module
from controller.benching.layers import LayerTime, folded_stacks
from tests.compiler.onnx_models import ModelWriter, run_onnxruntime, small_cnn
from tests.controller.cli.fleets import call
from tests.controller.wat_models import wasm


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cnn.onnx").write_bytes(small_cnn())


def test_a_model_with_its_layers_and_peers() -> None:
    """Every layer has a time, the stacks of a flame graph are written, and a peer that is missing is said."""
    done = call("bench", "cnn.onnx", "--layers", "--peers", "--rounds", "1", "--flame", "flame.txt")
    assert 0 == done.returncode, done.stderr
    first = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert {"wasmfleet", "onnxruntime", "rate", "peak", "Conv_0", "Conv_4", "Softmax_10"} <= set(first)
    assert "- onnxruntime-web is left out: " in done.stdout
    stacks = [line.rsplit(" ", 1) for line in Path("flame.txt").read_text().splitlines()]
    assert "cnn;Conv_0" == stacks[0][0]
    assert all(int(nanoseconds) >= 0 for _, nanoseconds in stacks)


def test_a_peer_that_cannot_run_the_model() -> None:
    """It is left out with its reason: numbers of 16 bits are 32 bits wide in a module, and not there."""
    w = ModelWriter()
    x = w.input("x", [2, 4], TensorProto.BFLOAT16)
    Path("half.onnx").write_bytes(w.model(w.node("Cast", x, to=TensorProto.FLOAT)))
    done = call("bench", "half.onnx", "--peers", "--rounds", "1")
    assert 0 == done.returncode, done.stderr
    assert "- onnxruntime is left out: onnxruntime does not run the model: " in done.stdout


def test_the_document_has_rates_and_percentiles() -> None:
    """Multiply-adds count as two operations; the share is of the peak that was measured."""
    found = json.loads(call("bench", "cnn.onnx", "--rounds", "1", "--json").stdout)
    [ours] = found["engines"]
    assert ours["fastest_ms"] <= ours["median_ms"] <= ours["p90_ms"] <= ours["p99_ms"]
    assert found["gflops"] == pytest.approx(2 * 1_050_560 / ours["median_ms"] * 1e-6)
    assert found["share_of_peak"] == pytest.approx(found["gflops"] / found["limits"]["peak_gflops"])


def test_a_module_of_somebody_else_has_times_alone() -> None:
    """Its work is not known."""
    Path("m.wasm").write_bytes(wasm())
    found = json.loads(call("bench", "m.wasm", "--rounds", "1", "--json").stdout)
    assert (None, None, []) == (found["multiply_adds"], found["gflops"], found["layers"])


@pytest.mark.parametrize("option", ["--layers", "--peers", "--input-shape=x=1", "--flame=f"])
def test_a_module_cannot_be_taken_apart(option: str) -> None:
    """Layers and peers need the model that it was compiled from."""
    Path("m.wasm").write_bytes(wasm())
    done = call("bench", "m.wasm", option)
    assert 2 == done.returncode
    assert "need the .onnx file" in " ".join(done.stderr.split())


@pytest.fixture
def words() -> None:
    """A model of two tables: of 200 words, and of 2 kinds of them."""
    w = ModelWriter()
    rows = [w.node("Gather", w.weights(n, 8), w.input(name, [1, 16], 7)) for name, n in (("ids", 200), ("kinds", 2))]
    Path("words.onnx").write_bytes(w.model(w.node("Softmax", w.node("Add", *rows))))


@pytest.mark.usefixtures("words")
def test_a_model_of_indices_into_short_tables() -> None:
    """It gets places that are there, and so do its layers and its peers."""
    done = call("bench", "words.onnx", "--layers", "--peers", "--rounds", "1")
    assert 0 == done.returncode, done.stderr
    first = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert {"wasmfleet", "onnxruntime", "Gather_0", "Gather_1", "Softmax_3"} <= first


@pytest.mark.usefixtures("words")
def test_inputs_of_a_file() -> None:
    """A model that takes no random numbers gets what the user gives, and is told where it stops for others."""
    good, bad = ({"ids": list(range(16)), "kinds": [kind] * 16} for kind in (1, 2))
    Path("good.json").write_text(json.dumps(good))
    Path("bad.json").write_text(json.dumps(bad))
    done = call("bench", "words.onnx", "--input", "good.json", "--rounds", "1")
    assert 0 == done.returncode, done.stderr
    done = call("bench", "words.onnx", "--input", "bad.json", "--rounds", "1")
    assert 1 == done.returncode
    assert "words.onnx: trap in layer 'Gather_1'" in done.stderr
    assert "--input" in done.stderr


def test_a_profiling_module_computes_the_same() -> None:
    """With -1 it runs all layers once, else one of them as often as it is told, which may be never."""
    w = ModelWriter()
    model = w.model(w.node("Exp", w.node("MatMul", w.input("x", [1, 4]), w.weights(4, 4))))
    imported = compiler.import_model(compiler.read_model(model), compiler.CompileOptions())
    profiled = compiler.generate(compiler.optimise(imported), compiler.CompileOptions(), None, is_profiled=True)
    x = struct.pack("<4f", 1, 2, 3, 4)
    with_all, never, often = (struct.pack("<2i", *pair) for pair in ((-1, 1), (0, 0), (0, 5)))
    loaded = load_module(profiled.wasm, profiled.spec)
    outputs = [loaded.infer([x, which]) for which in (never, with_all, often)]
    loaded.close()
    [want] = run_onnxruntime(model, {"x": np.frombuffer(x, np.float32).reshape(1, 4)})
    assert [bytes(16)] == outputs[0]
    np.testing.assert_allclose(np.frombuffer(outputs[1][0], np.float32), want[0], rtol=1e-4)
    assert outputs[1] == outputs[2]


def test_names_that_are_paths_become_levels() -> None:
    """A separator of the format never comes from a name."""
    layer = LayerTime(name="/block 1/a;b/Conv", microseconds=1.5, multiply_adds=1, gflops=0.0)
    assert "net;block_1;a_b;Conv 1500\n" == folded_stacks("net", [layer])
