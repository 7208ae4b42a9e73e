"""What the service manager hears, the unit that it runs, and the form of the log that it reads."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli import main
from agent.logs import LogFormat, last_lines, named, start_logging
from agent.systemd import Systemd, unit
from tests.agent.rig import Agent, Backend, wait_for
from tests.agent.signing import bundle


class Manager:
    """The listening end of a NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[str] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(20)

    def has(self, line: str) -> bool:
        """Return whether a message with that line came; waits for the next one if none did yet."""
        if not any(line in message.splitlines() for message in self.heard):
            self.heard.append(self.socket.recv(4096).decode())
        return any(line in message.splitlines() for message in self.heard)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.socket.close()


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Give the log back as it was: a handler that was closed opens its file again for the next line."""
    logger = logging.getLogger("agent")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def test_manager_hears_ready_alive_reloading_and_stopping(manager: Manager) -> None:
    """Each in the words of sd_notify(3), the sign of life no more often than a third of what the manager waits."""
    environ = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    systemd = Systemd(environ)
    assert {} == environ
    assert 1_000 == systemd.interval_ms
    systemd.ready("one\nmodel")
    for now_ms in (5_000, 5_400, 5_999, 6_000, 7_500):
        systemd.alive(now_ms)
    systemd.reloading()
    systemd.stopping()
    heard = [manager.socket.recv(4096).decode() for _ in range(6)]
    assert ["READY=1\nSTATUS=one model", *["WATCHDOG=1"] * 3] == heard[:4]
    assert heard[4].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert "STOPPING=1\nSTATUS=stopping" == heard[5]


def test_abstract_sockets_are_spoken_to() -> None:
    """A name that begins with @ stands for one without a file."""
    name = f"fleet-agent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(20)
        Systemd({"NOTIFY_SOCKET": f"@{name}"}).ready("up")
        assert b"READY=1\nSTATUS=up" == listener.recv(4096)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "1000"},
        {"NOTIFY_SOCKET": "/nonexistent"},
        {"NOTIFY_SOCKET": "/nonexistent", "WATCHDOG_USEC": "x"},
        {"NOTIFY_SOCKET": "/nonexistent", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "x" * 500},
    ],
)
def test_no_manager_is_no_problem(environ: dict[str, str]) -> None:
    """Started by hand, by another manager or for another process: nothing happens."""
    systemd = Systemd(dict(environ))
    assert systemd.interval_ms is None
    systemd.ready("up")
    systemd.alive(1)
    systemd.stopping()


@pytest.mark.needs("mosquitto")
def test_agent_tells_its_manager_the_whole_life(
    agent: Agent, backend: Backend, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real agent: ready, alive again and again, reloading and ready again, stopping; then it ends with 0."""
    first = bundle()
    backend.release(first)
    backend.assign(first)
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    agent.start()
    assert any(manager.has("READY=1") for _ in range(50))
    backend.wait_end(first)
    manager.heard.clear()
    for _ in range(3):
        assert any(manager.has("WATCHDOG=1") for _ in range(50))
        manager.heard.clear()
    (agent.state_dir / "policy.toml").write_text("max_captures = 3\nmax_stack_kib = 256\n")
    agent.process.send_signal(signal.SIGHUP)
    assert any(manager.has("RELOADING=1") for _ in range(50))
    assert any(manager.has("READY=1") for _ in range(50))
    wait_for("the log", lambda: "policy read again; these wait for the next start: max_stack_kib" in agent.log())
    manager.heard.clear()
    (agent.state_dir / "policy.toml").write_text("max_captures = -3\n")
    agent.process.send_signal(signal.SIGHUP)
    assert any(manager.has("READY=1") for _ in range(50))
    wait_for("the log", lambda: "the policy stays as it was" in agent.log())
    assert ("1.0.0", 2.0) == agent.infer()
    assert 0 == agent.stop()
    assert any(manager.has("STOPPING=1") for _ in range(50))
    events = [line.event for line in last_lines(agent.state_dir, 1_000)]
    assert ["started", "connected", "deployment"] == [e for e in dict.fromkeys(events) if e][:3]
    assert "stopping" == events[-1]


@pytest.mark.needs("systemd")
def test_unit_is_valid_and_hardened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd finds nothing to complain of, and little that the service could still do to the machine."""
    program = Path(sys.executable).with_name("fleet-agent")
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert 0 == main(["systemd-unit"])
    path = tmp_path / "fleet-agent.service"
    path.write_text(capsys.readouterr().out)
    assert f"ExecStart={program} run --state /var/lib/fleet-agent" in path.read_text()
    analyze = shutil.which("systemd-analyze") or ""
    checked = subprocess.run([analyze, "verify", path], capture_output=True, text=True, check=False)
    assert (0, "", "") == (checked.returncode, checked.stdout, checked.stderr)
    rated = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=20", path], capture_output=True, text=True, check=False
    )
    assert 0 == rated.returncode, rated.stdout[-300:]


def test_unit_names_the_program_that_is_asked_for() -> None:
    """Nothing of the template's path is left."""
    text = unit(Path("/usr/local/bin/fleet-agent"))
    assert "ExecStart=/usr/local/bin/fleet-agent run" in text
    assert "/opt/fleet" not in text


@pytest.mark.needs("systemd")
@pytest.mark.parametrize("folder", ["a b", "100%", "%h $HOME", "a;b"])
def test_unit_may_name_any_folder(tmp_path: Path, folder: str) -> None:
    """What systemd would take for something else is quoted, so that it finds the program. It refuses quotes itself."""
    program = tmp_path / folder / "fleet-agent"
    program.parent.mkdir()
    program.touch(0o755)
    path = tmp_path / "fleet-agent.service"
    path.write_text(unit(program))
    analyze = shutil.which("systemd-analyze") or ""
    checked = subprocess.run([analyze, "verify", path], capture_output=True, text=True, check=False)
    assert (0, "") == (checked.returncode, checked.stderr)


@pytest.mark.parametrize(("folder", "is_hidden"), [("/home/me/.venv", True), ("/root", True), ("/opt/fleet", False)])
def test_program_that_the_service_would_not_see_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: str, is_hidden: bool
) -> None:
    """The unit hides the folders of users; systemd would only say 203/EXEC."""
    monkeypatch.setattr(sys, "argv", [f"{folder}/bin/fleet-agent"])
    assert 0 == main(["systemd-unit"])
    assert is_hidden == ("install it elsewhere" in capsys.readouterr().err)


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize(
    ("form", "journal", "expected"),
    [
        ("text", "", " warning daemon: low\n"),
        ("json", "", '"level":"warning","part":"daemon","message":"low","event":"disk","fields":{"free_bytes":5}}\n'),
        ("journal", "", "<4>daemon: low\n"),
        ("auto", "", " warning daemon: low\n"),
        ("auto", "here", "<4>daemon: low\n"),
        ("auto", "1:2", " warning daemon: low\n"),
    ],
)
def test_log_has_the_form_that_its_reader_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: LogFormat, journal: str, expected: str
) -> None:
    """Text for a person, JSON for a program, priorities where the journal reads; the file is always JSON."""
    with (tmp_path / "stderr").open("w+") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}" if journal == "here" else journal)
        monkeypatch.setattr(sys, "stderr", stream)
        handlers = start_logging(tmp_path, form)
        logging.getLogger("agent.daemon").warning("low", extra=named("disk", free_bytes=5))
        for handler in handlers:
            handler.close()
        stream.seek(0)
        assert stream.read().endswith(expected)
    (line,) = last_lines(tmp_path, 5)
    assert ("disk", {"free_bytes": 5}) == (line.event, line.fields)
    assert "event" in json.loads((tmp_path / "agent.log").read_text())


@pytest.mark.usefixtures("own_logging")
def test_every_line_of_an_error_has_its_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal cuts at line ends; a traceback must not become a notice."""
    with (tmp_path / "stderr").open("w+") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        handlers = start_logging(tmp_path, "journal")
        try:
            raise ValueError("inner")
        except ValueError:
            logging.getLogger("agent.daemon").exception("outer")
        for handler in handlers:
            handler.close()
        stream.seek(0)
        lines = stream.read().splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)
