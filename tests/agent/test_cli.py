"""The commands of `fleet-agent` on a device that answers, and on one that does not."""

import io
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cli import default_state_dir, main
from agent.errors import PolicyError
from agent.logs import follow, last_lines, start_logging
from agent.policy import MAX_FILE_BYTES, MAX_LINE_BYTES, Policy, capacity_of, load_policy
from controller.broker import BrokerProcess
from protocol.topics import Topics
from tests.agent.conftest import new_agent, new_backend
from tests.agent.signing import bundle


@pytest.fixture(scope="module")
def state(broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder of a device that runs one model."""
    backend = new_backend(broker)
    agent = new_agent(broker, backend, tmp_path_factory.mktemp("device") / "state")
    release = bundle()
    backend.release(release)
    backend.assign(release)
    agent.start()
    backend.wait_end(release)
    yield agent.state_dir
    agent.stop()
    backend.close()


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    status = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.needs("mosquitto")
def test_status_is_a_table_or_json(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table is for a person, the document for a program; both say the same."""
    status, text, _ = run(capsys, "status", "--state", state)
    assert 0 == status
    assert "connected" in text
    assert ["scale", "1.0.0", "-", "-", "committed"] == text.splitlines()[-1].split()[:5]
    document = json.loads(run(capsys, "status", "--json", "--state", state)[1])
    assert ("scale", "1.0.0") == (document["models"][0]["model"], document["models"][0]["active"])
    assert {"is_connected", "director_version", "unsent_receipts", "session"} <= set(document)


INPUTS: dict[str, Any] = {
    "named.json": b'{"x": [4.0]}',
    "list.json": b"[4.0]",
    "raw.bin": struct.pack("<f", 4.0),
}


@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize("name", INPUTS)
def test_infer_takes_json_and_raw_bytes(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A dictionary of inputs, a bare list, or raw bytes."""
    (tmp_path / name).write_bytes(INPUTS[name])
    status, out, _ = run(capsys, "infer", "scale", "--input", tmp_path / name, "--json", "--state", state)
    assert 0 == status
    assert [8.0] == json.loads(out)["outputs"]["y"]["values"]


@pytest.mark.needs("mosquitto")
def test_infer_reads_standard_input(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe does as well as a file; without --json the answer is for a person."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[4.0]")))
    assert (0, "scale 1.0.0\n  y FP32[1]: 8\n", "") == run(capsys, "infer", "scale", "--input", "-", "--state", state)


@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize(
    ("model", "content", "message"),
    [
        ("scale", b"not json", "expected JSON"),
        ("scale", b'["\xff"]', "expected JSON"),
        ("scale", b"[" * 100_000, "expected JSON"),
        ("scale", b'{"z": [1]}', "unknown input"),
        ("scale", b"[1, 2, 3]", "x"),
        ("missing", b"[1]", "no release of 'missing'"),
    ],
)
def test_infer_says_what_is_wrong(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, content: bytes, message: str
) -> None:
    """A bad input ends with status 1 and a sentence."""
    (tmp_path / "input.json").write_bytes(content)
    status, _, err = run(capsys, "infer", model, "--input", tmp_path / "input.json", "--state", state)
    assert 1 == status
    assert message in err


@pytest.mark.needs("mosquitto")
def test_infer_answers_a_series_one_after_another(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines of a file, files of a folder; what cannot be answered is named and passed over, and the status is 1."""
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "a.json").write_bytes(b"[4.0]")
    (folder / "b.bin").write_bytes(struct.pack("<f", 5.0))
    (folder / "c.jsonl").write_bytes(b'[6.0]\n\n{"x": [7.0]}\n')
    (folder / "notes.txt").write_text("not an input")
    status, out, err = run(capsys, "infer", "scale", "--input", folder, "--json", "--state", state)
    answers = [json.loads(line) for line in out.splitlines()]
    assert (0, "") == (status, err)
    assert [8.0, 10.0, 12.0, 14.0] == [answer["outputs"]["y"]["values"][0] for answer in answers]
    assert [f"{folder}/c.jsonl:1", f"{folder}/c.jsonl:3"] == [answer["input"] for answer in answers[2:]]
    (folder / "c.jsonl").write_bytes(b"[6.0]\n[1,\n[1, 2]\n[7.0]\n")
    status, out, err = run(capsys, "infer", "scale", "--input", folder / "c.jsonl", "--state", state)
    assert (1, 2, 2) == (status, out.count("scale 1.0.0"), len(err.splitlines()))
    assert f"{folder}/c.jsonl:3: input 'x'" in err
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    status, _, err = run(capsys, "infer", "scale", "--input", tmp_path / "empty.jsonl", "--state", state)
    assert (1, True) == (status, "holds no inputs" in err)


@pytest.mark.needs("mosquitto")
def test_logs_are_lines_or_json(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last lines, oldest first."""
    _, text, _ = run(capsys, "logs", "-n", 2, "--state", state)
    assert 2 == len(text.splitlines())
    assert "succeeded" in text
    _, raw, _ = run(capsys, "logs", "-n", 1, "--json", "--state", state)
    assert {"at", "level", "part", "message", "event", "fields"} == set(json.loads(raw))


@pytest.mark.needs("mosquitto")
def test_log_names_no_secret(state: Path) -> None:
    """Neither the key nor anything of a payload is ever in the log."""
    key = (state / "identity/device.key").read_text().splitlines()[1]
    log = (state / "agent.log").read_text()
    assert key not in log
    assert "BEGIN" not in log


def test_commands_without_an_agent_say_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 4 and the next step, as it has to be typed."""
    status, _, err = run(capsys, "status", "--state", tmp_path / "the device")
    assert (4, True) == (status, err.endswith(f"start it with: fleet-agent run --state '{tmp_path}/the device'\n"))
    monkeypatch.setenv("FLEET_AGENT_STATE", str(tmp_path))
    status, _, err = run(capsys, "status")
    assert (4, True) == (
        status,
        err.endswith("start it with: fleet-agent run, or name its state folder with --state\n"),
    )


def test_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that was mistyped is told without an error's number."""
    status, _, err = run(capsys, "replay", "x.capture", "--state", tmp_path)
    assert (1, True) == (status, f"no capture x.capture, neither in {tmp_path}/captures nor as a file" in err)
    assert f"see: fleet-agent captures --state {tmp_path}" in err
    assert (1, "", f"fleet-agent: {tmp_path}: Is a directory\n") == run(capsys, "replay", tmp_path)


def test_there_may_be_no_captures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list is empty, and a person hears where one would ask for some."""
    status, out, err = run(capsys, "captures", "--state", tmp_path)
    assert (0, "", True) == (status, out, "max_captures in policy.toml" in err)


def test_unit_is_for_one_folder_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """It is the one that systemd gives to the service: another one is refused, not passed over."""
    with pytest.raises(SystemExit):
        main(["systemd-unit", "--state", "elsewhere"])
    assert "unrecognized arguments: --state elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize("exists", [True, False])
def test_run_without_an_identity_says_to_paste_an_invite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, exists: bool
) -> None:
    """Exit status 3 and the next step."""
    state = tmp_path if exists else tmp_path / "missing"
    status, _, err = run(capsys, "run", "--state", state)
    assert 3 == status
    assert "fleetctl devices invite" in err


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` of each command ends with something to copy."""
    for command in ("enroll", "run", "status", "infer", "logs"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"Example: fleet-agent {command}" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["-1", "many", "10000000"])
def test_count_of_log_lines_is_checked(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A number out of range is named by argparse."""
    with pytest.raises(SystemExit):
        main(["logs", f"-n={text}"])
    assert "expected a number" in capsys.readouterr().err


def test_state_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """FLEET_AGENT_STATE, else the system's folder for root, else the user's."""
    monkeypatch.setenv("FLEET_AGENT_STATE", str(tmp_path))
    assert tmp_path == default_state_dir()
    monkeypatch.delenv("FLEET_AGENT_STATE")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert Path("/var/lib/fleet-agent") == default_state_dir()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert tmp_path / "fleet-agent" == default_state_dir()


def test_log_lines_survive_rotation_and_a_line_that_was_cut_off(tmp_path: Path) -> None:
    """The newest lines are found across files; half a line is left out."""
    (tmp_path / "agent.log.1").write_text('{"at":"1","level":"info","part":"p","message":"old"}\n')
    (tmp_path / "agent.log").write_text('{"at":"2","level":"info","part":"p","message":"new"}\n{"at":"3","le')
    assert ["old", "new"] == [line.message for line in last_lines(tmp_path, 10)]
    assert ["new"] == [line.message for line in last_lines(tmp_path, 1)]


def test_new_log_lines_are_followed_across_a_rotation(tmp_path: Path) -> None:
    """Lines come once each, whole, also from the file that takes the place of a full one."""
    log = tmp_path / "agent.log"
    log.write_text('{"at":"1","level":"info","part":"p","message":"before"}\n')
    lines = follow(tmp_path, poll_s=0.001)
    with log.open("a") as file:
        file.write('{"at":"2","level":"info","part":"p","message":"one"}\n{"at":"3","level":"info","part":"p","mess')
        file.flush()
        assert "one" == next(lines).message
        file.write('age":"two"}\n')
    assert "two" == next(lines).message
    log.rename(tmp_path / "agent.log.1")
    log.write_text('{"at":"4","level":"info","part":"p","message":"three"}\n')
    assert "three" == next(lines).message


def test_policy_has_defaults_and_bounds(tmp_path: Path) -> None:
    """No file means the defaults; a file sets what it names."""
    assert Policy() == load_policy(tmp_path, Topics())
    (tmp_path / "policy.toml").write_text("max_deadline_ms = 5\n")
    policy = load_policy(tmp_path, Topics())
    assert 5 == policy.max_deadline_ms
    assert 5 == capacity_of(policy).max_deadline_ms


@pytest.mark.parametrize(
    "text",
    [
        "=",
        "max_deadline_ms = 0",
        "max_deadline_ms = 'x'",
        "typo = 1",
        "mqtt_protocol='4'",
        "max_queue = -1",
        "max_queue = 65",
        "max_queue = 1.5",
        "nan_outputs = true",
        "nan_outputs = 'refuse'",
        "max_queue = " + "1" * 5_000,
        "max_queue = " + "[" * 20_000,
        "max_queue = " + "[\n" * 20_000,
        "max_queue = " + "{a = " * 800,
        "http_address = '0.0.0.0:8000'",
        "http_address = '8000'",
    ],
    ids=lambda text: text[:20],
)
def test_policy_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """A misspelt limit must not silently be no limit, nor end an agent that reads it while it runs."""
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(PolicyError, match=r"policy\.toml"):
        load_policy(tmp_path, Topics())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("# a key\n" + "a." * 20_000 + "a = 1", "line 2: expected at most 4,096 bytes, got 40,005"),
        ("[" + "a." * 20_000 + "a]\n", "line 1: expected at most 4,096 bytes, got 40,003"),
        ("a = 1\n" * 11_000, "expected a file of at most 65,536 bytes, got more"),
        ("# \ud800", "can't decode byte"),
    ],
    ids=["key", "table", "file", "not UTF-8"],
)
def test_policy_that_would_take_long_to_read_is_refused_at_once(tmp_path: Path, text: str, reason: str) -> None:
    """A parser takes seconds for a key of 20,000 parts; the line is named before it is tried."""
    (tmp_path / "policy.toml").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(PolicyError, match=f"policy\\.toml: .*{reason}.*Correct it"):
        load_policy(tmp_path, Topics())


def test_policy_is_read_up_to_its_bounds(tmp_path: Path) -> None:
    """Long lines of comments and many of them are an owner's good right, in UTF-8 and with either end of line."""
    line = "# " + "é" * (MAX_LINE_BYTES // 2 - 2) + "\r\n"
    text = line * (MAX_FILE_BYTES // MAX_LINE_BYTES - 1) + "max_queue = 3\r\n"
    (tmp_path / "policy.toml").write_bytes(text.encode())
    assert 3 == load_policy(tmp_path, Topics()).max_queue


def test_log_goes_to_the_file_and_to_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One event is one JSON line in the file and one readable line on standard error."""
    import logging  # noqa: PLC0415 - only here

    handlers = start_logging(tmp_path)
    logger = logging.getLogger("agent.test")
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("it failed")
    for handler in handlers:
        handler.close()
    logging.getLogger("agent").handlers.clear()
    logging.getLogger("agent").propagate = True
    (line,) = last_lines(tmp_path, 10)
    assert ("error", "test", "it failed") == (line.level, line.part, line.message)
    assert "ValueError: broken" in line.error
    assert "test: it failed" in capsys.readouterr().err
