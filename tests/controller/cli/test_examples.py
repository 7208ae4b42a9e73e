"""The example that ends every command's help, typed as it stands in the folder of a running fleet."""

import json
import shlex
from pathlib import Path

import pytest

from controller.cli.reference import commands, help_of
from tests import docs_cli
from tests.controller.cli.fleets import Fleet, call
from tests.controller.wat_models import DOUBLE, TRIPLE, wasm

ELSEWHERE = ("up", "serve", "demo", "build", "restore", "model.onnx")
"""What stays, takes a minute or needs files of another kind has tests of its own, which run it."""
LAST = ("retire", "backup")
"""What cannot be taken back."""


def examples() -> list[str]:
    """Return the example lines of every command's help, each once."""
    lines = [line.strip() for words in commands() for line in help_of(words).partition("Example:")[2].splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


@pytest.mark.parametrize("line", examples())
def test_an_example_is_whole(line: str) -> None:
    """It parses, with every argument that the command needs."""
    assert docs_cli.problem(line) is None


@pytest.mark.slow
def test_every_example_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fleet with the device, groups and releases that the examples name, each ends with 0."""
    monkeypatch.chdir(tmp_path)
    fleet = Fleet(tmp_path)
    try:
        invite = "fleetctl devices invite cam-1 --group site-a"
        ended = {invite: (call(*invite.split()[1:]).returncode, "")}
        fleet.enroll("cam-1", "site-a", "lab")
        for version, infer in (("1.0.0", DOUBLE), ("1.1.0", TRIPLE)):
            Path("model.wasm").write_bytes(wasm(infer, name="digits", version=version))
            fleet.ask("push", "model.wasm", "--no-wait")
        Path("sample.json").write_text("[1, 2]")
        lines = [
            line for line in examples() if line != invite and not any(word in shlex.split(line) for word in ELSEWHERE)
        ]
        assert len(lines) > 25
        lines.remove("fleetctl init")  # it made this very fleet
        for line in sorted(lines, key=lambda line: any(word in line for word in LAST)):
            newest = fleet.ask("rollouts")[0]["id"]
            words = shlex.split(line.replace("ROLLOUT", newest).replace("--timeout 60", "--timeout 1"))
            done = call(*words[1:], stdin="y\n")
            ended[line] = (done.returncode, done.stderr)
        # Nobody runs the agent of cam-1: a rollout that is watched does not end.
        assert {"fleetctl rollouts watch ROLLOUT --timeout 60": 3} == {k: c for k, (c, _) in ended.items() if c}, ended
        assert [] == [line for line, (_, said) in ended.items() if "error" in said]
        assert json.loads(call("devices", "--json").stdout)
    finally:
        fleet.close()
