"""The demo as a user runs it: what it prints, what it needs, and what it leaves behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from controller.demo.processes import command

TIMEOUT_S = 110
FIELDS = [
    "devices", "succeeded", "failed", "inferences", "lost_inferences", "interrupted", "accuracy", "swap_ms_p50",
    "seconds",
]  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: the socket of a device lies three folders below it, and its path has a limit."""
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/tmp") as name:
        yield Path(name)


def environment(folder: Path) -> dict[str, str]:
    """Return an environment with a temporary folder of its own, and no program but the project's on its PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEET")}
    return kept | {"TMPDIR": str(folder), "PATH": str(Path(sys.executable).parent)}


@contextmanager
def usual_ports_in_use() -> Iterator[None]:
    """Hold the ports that a fleet has by default, unless another program does so already."""
    with ExitStack() as stack:
        for port in (1883, 8470, 8471):
            holder = stack.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if holder.connect_ex(("127.0.0.1", port)) != 0:
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


def running_in(folder: Path) -> list[str]:
    """Return the command lines of the processes that have to do with a folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has just ended
        if str(folder) in line:
            lines.append(line)
    return lines


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_shows_the_main_job_in_one_line(folder: Path) -> None:
    """With --json stdout is one line; no default port, no mosquitto, and nothing is left of it afterwards."""
    with usual_ports_in_use():
        done = subprocess.run(
            [command("fleetctl"), "demo", "--json"],
            capture_output=True, text=True, timeout=280, check=False, env=environment(folder), cwd=folder,
        )  # fmt: skip
    assert (0, "") == (done.returncode, done.stderr)
    (line,) = done.stdout.splitlines()
    shown = json.loads(line)
    assert FIELDS == list(shown)
    assert [3, 6, 3, 0] == [shown[name] for name in ("devices", "succeeded", "failed", "lost_inferences")]
    assert shown["accuracy"] > 0.95
    assert shown["inferences"] > 1_000
    assert [] == list(folder.iterdir())
    assert [] == running_in(folder)


def wait_for_agents(process: "subprocess.Popen[str]", folder: Path) -> None:
    """Wait until the demo has started an agent."""
    deadline = time.monotonic() + TIMEOUT_S
    while not any("fleet-agent run" in line for line in running_in(folder)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_stopped_in_the_middle_it_leaves_nothing(folder: Path, number: signal.Signals) -> None:
    """Ctrl-C, even twice, ends every process first, removes the folder, says so, and is exit code 130."""
    process = subprocess.Popen(
        [command("fleetctl"), "demo"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(folder), cwd=folder,
    )  # fmt: skip
    wait_for_agents(process, folder)
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (130, "") == (process.returncode, err)
    assert out.endswith("\nstopped; nothing runs any more\n")
    assert [] == list(folder.iterdir())
    assert [] == running_in(folder)


@pytest.mark.slow
def test_killed_it_takes_its_processes_along(folder: Path) -> None:
    """After SIGKILL of the demo neither an agent, nor the controller, nor the broker lives on."""
    with subprocess.Popen(
        [command("fleetctl"), "demo"], stdout=subprocess.DEVNULL, env=environment(folder), cwd=folder, text=True
    ) as process:
        wait_for_agents(process, folder)
        process.kill()
    deadline = time.monotonic() + TIMEOUT_S
    while left := running_in(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
