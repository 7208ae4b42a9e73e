"""Tests of reading model files: wasm, WAT, and what describes them."""

import os
from pathlib import Path

import pytest

from agent.runtime.module import assemble
from controller.bundling.errors import BundleError, ModelFileError, ModelSpecError, PreflightError
from controller.bundling.source import parse_source, read_source
from protocol.manifest import FileRef
from tests.controller.wat_models import SIDECAR, X, Y, spec, wasm, wat


def test_a_module_with_a_section_describes_itself() -> None:
    """The spec inside the module is taken, and the file is named by its own bytes."""
    raw = wasm(name="doubler", producer="a test")
    source = parse_source("a.wasm", raw)
    assert ("doubler", "fleet.model", "a test") == (source.spec.name, source.spec_origin, source.tool)
    assert (raw, FileRef.of(raw)) == (source.wasm, source.file)


def test_text_is_assembled_and_described_beside(tmp_path: Path) -> None:
    """A .wat file becomes wasm; provenance names the text, and model.toml says the tensors."""
    (tmp_path / "doubler.wat").write_text(wat())
    (tmp_path / "model.toml").write_text(SIDECAR)
    source = read_source(tmp_path / "doubler.wat")
    assert (assemble(wat()), FileRef.of(wat().encode())) == (source.wasm, source.file)
    assert ((X,), (Y,), "model.toml") == (source.spec.inputs, source.spec.outputs, source.spec_origin)
    assert source.tool.startswith("wasmtime/")


def test_a_sidecar_named_like_the_module_wins(tmp_path: Path) -> None:
    """Two models in one folder have a TOML file each."""
    (tmp_path / "doubler.wat").write_text(wat())
    (tmp_path / "doubler.toml").write_text('name = "its-own"\n' + SIDECAR)
    (tmp_path / "model.toml").write_text('name = "shared"\n' + SIDECAR)
    assert "its-own" == read_source(tmp_path / "doubler.wat").spec.name


def test_the_section_wins_over_a_sidecar(tmp_path: Path) -> None:
    """What travels with the module is what holds."""
    (tmp_path / "doubler.wasm").write_bytes(wasm(name="inside"))
    (tmp_path / "model.toml").write_text('name = "beside"\n' + SIDECAR)
    assert "inside" == read_source(tmp_path / "doubler.wasm").spec.name


@pytest.mark.parametrize(
    ("raw", "kind", "words"),
    [
        (b"\x89PNG\r\n\x1a\n", ModelFileError, r"not a wasm file: expected it to start with \\0asm, got b'\\x89PNG"),
        (b"(module (func", ModelFileError, "not valid WebAssembly text"),
        (b"(module \xff)", ModelFileError, "utf-8"),
        (b"\0asm\x0d\0\x01\0", BundleError, "not a core wasm module"),
        (wasm()[:-3], BundleError, "cut off"),
    ],
    ids=["not-wasm", "bad-text", "not-text", "component", "cut-off"],
)
def test_what_is_no_module_is_refused(raw: bytes, kind: type[BundleError], words: str) -> None:
    """The message says what was expected, and the hint what to give."""
    with pytest.raises(kind, match=words) as caught:
        parse_source("model.wasm", raw)
    assert caught.value.hint


def test_an_onnx_file_is_not_silently_another_thing() -> None:
    """The hint says what has to happen to it first."""
    with pytest.raises(ModelFileError, match="not a wasm file") as caught:
        parse_source("model.onnx", b"\x08\x07\x12\x07pytorch")
    assert "fleetctl build" in caught.value.hint


def test_missing_exports_are_said_before_a_missing_spec() -> None:
    """A module that is no model is told what to export: describing its tensors would not help."""
    with pytest.raises(PreflightError, match="missing: fleet_input, fleet_output, fleet_infer") as caught:
        parse_source("model.wasm", assemble('(module (memory (export "memory") 1 1))'))
    assert "abi" == caught.value.code
    assert "docs/PROTOCOL.md" in caught.value.hint


def test_a_missing_spec_shows_one_to_write() -> None:
    """The hint holds a model.toml that works."""
    with pytest.raises(ModelSpecError, match="nothing says which tensors") as caught:
        parse_source("model.wasm", assemble(wat()))
    example = caught.value.hint.partition("\n\n")[2]
    assert "model.toml" == parse_source("model.wasm", assemble(wat()), "model.toml", example).spec_origin


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[inputs", "model.toml: "),
        (SIDECAR.replace("FP32", "float32"), "float32"),
        (SIDECAR.replace("shape = [1, 2]", "shape = [0]"), "at least 1"),
        (SIDECAR.replace("datatype", "dtype"), "unknown keys .'dtype'."),
        ("deadline = 5\n" + SIDECAR, "unknown keys .'deadline'."),
        ("deadline_ms = 0\n" + SIDECAR, "deadline_ms"),
        ('inputs = ["x"]', "model.toml"),
        ("inputs = 1", "model.toml"),
        ("", "inputs"),
    ],
)
def test_a_bad_sidecar_is_refused(text: str, words: str) -> None:
    """Every mistake in model.toml is named, also a key that does not exist."""
    with pytest.raises(ModelSpecError, match=words) as caught:
        parse_source("model.wasm", assemble(wat()), "model.toml", text)
    assert caught.value.hint


def test_a_damaged_section_is_refused() -> None:
    """A section that is not a spec is not skipped."""
    damaged = wasm().replace(b'"FP32"', b'"FP99"')
    with pytest.raises(ModelSpecError, match="FP99"):
        parse_source("model.wasm", damaged)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.wasm", "No such file"),
        ("folder.wasm", "it is a folder"),
        (".", "it is a folder"),
        ("..", "it is a folder"),
        ("/", "it is a folder"),
        ("pipe.wasm", "it is a device, pipe or socket"),
        ("/dev/zero", "it is a device, pipe or socket"),
    ],
)
def test_files_that_cannot_be_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    """A path that leads to no file is an error with the system's words, and nothing is waited for."""
    monkeypatch.chdir(tmp_path)
    Path("folder.wasm").mkdir()
    os.mkfifo("pipe.wasm")
    with pytest.raises(ModelFileError, match=f"cannot read .*{words}"):
        read_source(Path(name))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    """A file of no bytes is no model."""
    (tmp_path / "model.wasm").write_bytes(b"")
    with pytest.raises(ModelFileError, match="is empty"):
        read_source(tmp_path / "model.wasm")


def test_spec_fields_reach_the_source() -> None:
    """Limits of the spec are those of the module."""
    raw = wasm(stack_kib=256, deadline_ms=50)
    assert (256, 50) == (parse_source("a.wasm", raw).spec.stack_kib, spec(deadline_ms=50).deadline_ms)
