"""Tests of what works, or fails well, where no service runs."""

import json
import struct
from pathlib import Path

import pytest

from agent.runtime.module import assemble
from tests.controller.cli.fleets import Done, call, fleetctl
from tests.controller.wat_models import SIDECAR, TRAP, wasm, wat


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def words(done: Done) -> list[str]:
    return done.stdout.splitlines()


def error_of(done: Done, code: int = 1) -> str:
    assert (code, "") == (done.returncode, done.stdout)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_without_a_fleet_it_says_how_to_make_one(tmp_path: Path) -> None:
    """A command in an empty folder points at `fleetctl init`."""
    said = error_of(fleetctl("devices", cwd=tmp_path))
    assert "error: there is no fleet in fleet\nhint: run `fleetctl init fleet`, or name another folder\n" == said


def test_without_a_service_it_says_how_to_start_one(tmp_path: Path) -> None:
    """A fleet that is not served points at `fleetctl up`."""
    call("init", "--api-port=1")
    said = error_of(call("models"))
    assert "error: no service answers at http://127.0.0.1:1\n" in said
    assert "`fleetctl up`" in said


def test_an_error_is_a_document_too(tmp_path: Path) -> None:
    """A program that asked for JSON gets JSON: the code is stable, the words are for people."""
    done = call("devices", "--json")
    expected = {
        "code": "workspace",
        "message": "there is no fleet in fleet",
        "hint": "run `fleetctl init fleet`, or name another folder",
    }
    assert (1, {"error": expected}) == (done.returncode, json.loads(done.stdout))
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["push"], "Missing argument"),
        (["devices", "show"], "Missing argument"),
        (["push", "x.wasm", "--timeout", "soon"], "Invalid value for '--timeout'"),
        (["query", "latency", "--sql", "SELECT 1"], "expected a NAME or --sql, got both"),
        (["releases", "yank", "m", "1.0.0"], "Missing option '--reason'"),
        (["devices", "invite", "Not A Name"], "expected a device id"),
        (["devices", "invite", "--group", "all"], "'all' is reserved"),
        (["devices", "group", "cam-1", "--add", "a b"], "expected a group name"),
        (["rollouts", "start", "digits", "newest"], "Invalid value for 'VERSION': expected a version"),
        (["rollouts", "start", "Digits!"], "Invalid value for 'MODEL': expected a model name"),
        (["releases", "show", "digits", "1.0"], "Invalid value for 'VERSION': expected a version"),
        (["releases", "retire", "digits", "v1"], "Invalid value for 'VERSION': expected a version"),
        (["models", "undeploy", "x/y"], "Invalid value for 'MODEL': expected a model name"),
    ],
)
def test_a_misspelt_command_is_usage(args: list[str], said: str) -> None:
    """What was not understood ends with exit code 2 and a word on how to get help."""
    assert said in error_of(call(*args), 2)


def test_a_token_file_that_is_missing_is_said(tmp_path: Path) -> None:
    """The path is in the message."""
    said = error_of(call("--api-url=http://127.0.0.1:1", "--token-file=no.token", "models"))
    assert "no.token is missing" in said


def test_init_says_what_it_made_and_what_comes_next(tmp_path: Path) -> None:
    """The folder has both halves; the advice on keys and the next command are on the screen."""
    done = call("init")
    assert (0, "") == (done.returncode, done.stderr)
    assert "next: fleetctl up" == words(done)[-1]
    assert "The root keys decide who may sign" in done.stdout
    assert {"operator", "server"} == {path.name for path in (tmp_path / "fleet").iterdir()}


def test_init_elsewhere_says_how_to_go_there(tmp_path: Path) -> None:
    """The next command carries --home when the folder is not the default one."""
    done = call("--home", str(tmp_path / "b fleet"), "init")
    assert f"next: fleetctl --home '{tmp_path / 'b fleet'}' up" == words(done)[-1]


def test_init_never_overwrites(tmp_path: Path) -> None:
    """A second fleet in the same place is an error, and the first keeps its keys."""
    call("init")
    key = tmp_path / "fleet" / "operator" / "keys" / "image-targets.pem"
    before = key.read_bytes()
    assert "exists and is not empty" in error_of(call("init"))
    assert before == key.read_bytes()


def test_init_as_json(tmp_path: Path) -> None:
    """The document names both halves and carries the advice."""
    made = json.loads(call("init", "site-b", "--json").stdout)
    home = tmp_path / "site-b"
    assert [str(home), str(home / "operator"), str(home / "server")] == [
        made[k] for k in ("path", "operator", "server")
    ]
    assert made["advice"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--host", "two words"], "expected a host name or an IP address"),
        (["--mqtt-port", "70000"], "expected a port from 0"),
        (["--prefix", "a/#"], "expected a topic prefix"),
    ],
)
def test_init_refuses_what_cannot_be_a_setting(tmp_path: Path, args: list[str], said: str) -> None:
    """Nothing is left behind by an init that failed."""
    assert said in error_of(call("init", *args))
    assert [] == list(tmp_path.iterdir())


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "labelled.wasm"
    path.write_bytes(wasm(labels={"y": ("even", "odd")}))
    return path


def test_run_prints_outputs_and_labels(labelled: Path) -> None:
    """The best labels come first; latency and memory are there."""
    (labelled.parent / "in.json").write_text('{"x": [1, 2]}')
    done = call("run", str(labelled), "--input", str(labelled.parent / "in.json"))
    assert ["y  FP32 [1, 2]", "  label  value", "  odd        4", "  even       2"] == words(done)[:4]
    assert "64 KiB of memory" in words(done)[-1]


def test_run_as_json_reads_stdin(labelled: Path) -> None:
    """A bare list is the only input; the document has every number."""
    result = json.loads(call("run", str(labelled), "--input", "-", "--json", stdin="[[3, 0.5]]").stdout)
    assert ([6.0, 1.0], [["even", 6.0], ["odd", 1.0]]) == (result["outputs"][0]["data"], result["outputs"][0]["top"])
    assert ("-", 65_536) == (result["input"], result["memory_bytes"])


def test_run_takes_raw_bytes(labelled: Path) -> None:
    """A .bin file is the tensor itself."""
    (labelled.parent / "in.bin").write_bytes(struct.pack("<2f", 4, 5))
    done = call("run", str(labelled), "--input", str(labelled.parent / "in.bin"), "--json")
    assert [8.0, 10.0] == json.loads(done.stdout)["outputs"][0]["data"]


def test_run_needs_no_input(labelled: Path) -> None:
    """Without one it makes up numbers, the same ones every time."""
    first, second = (json.loads(call("run", str(labelled), "--json").stdout) for _ in range(2))
    assert first["outputs"] == second["outputs"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("in.json", b'{"x": [1]}', "flat list of 2 numbers, got a list of 1"),
        ("in.json", b'{"z": [1, 2]}', "expected the keys ['x'], got ['z']"),
        ("in.json", b"{", "in.json: "),
        ("in.bin", b"1234", "expected the bytes of the only input (x 8), got 4"),
        ("none.json", None, "cannot read"),
    ],
)
def test_run_refuses_bad_input(labelled: Path, name: str, content: bytes | None, said: str) -> None:
    """What is wrong with the input is said in words."""
    path = labelled.parent / name
    if content is not None:
        path.write_bytes(content)
    assert said in error_of(call("run", str(labelled), "--input", str(path)))


def test_run_shows_where_a_model_trapped(tmp_path: Path) -> None:
    """A model that traps is an error with the function's name, not a crash."""
    (tmp_path / "trap.wasm").write_bytes(wasm(TRAP))
    said = error_of(call("run", str(tmp_path / "trap.wasm")))
    assert "error: trap.wasm: " in said
    assert "run" in said


def test_inspect_shows_what_a_module_declares(labelled: Path) -> None:
    """Tensors, caps, exports and the verdict are on the screen."""
    done = call("inspect", str(labelled))
    shown = {line.split("  ")[0]: line for line in words(done) if line}
    assert "inputs    x FP32 [1, 2]" == shown["inputs"]
    assert "outputs   y FP32 [1, 2] with 2 labels" == shown["outputs"]
    assert "memory    64 KiB, fixed" == shown["memory"]
    assert words(done)[-1].startswith("✓ a device can load it")


def test_inspect_says_why_a_device_would_refuse(tmp_path: Path) -> None:
    """A module that is no model is shown all the same, with what it lacks."""
    (tmp_path / "lib.wasm").write_bytes(assemble('(module (import "env" "f" (func)) (memory 3000))'))
    found = json.loads(call("inspect", str(tmp_path / "lib.wasm"), "--json").stdout)
    assert ["env"] == [i["module"] for i in found["module"]["imports"]]
    assert (2, True) == (len(found["problems"]), "env.f" in found["problems"][0])


def test_inspect_reads_text_and_its_sidecar(tmp_path: Path) -> None:
    """A .wat file is assembled; the spec beside it is found."""
    (tmp_path / "m.wat").write_text(wat())
    (tmp_path / "model.toml").write_text(SIDECAR)
    found = json.loads(call("inspect", str(tmp_path / "m.wat"), "--json").stdout)
    assert ("model.toml", []) == (found["spec_origin"], found["problems"])


def test_inspect_refuses_what_is_no_module(tmp_path: Path) -> None:
    """A picture is not a model."""
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "not a wasm file" in error_of(call("inspect", str(tmp_path / "cat.png")))
