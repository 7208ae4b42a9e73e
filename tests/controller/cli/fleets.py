"""A real fleet for tests of the command line: `fleetctl up` and `fleet-agent run` as processes, on free ports."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from controller.cli.app import app
from tests import docs_cli

TIMEOUT_S = 60
_PYTHON = [sys.executable, "-c"]
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("FLEET_") and k != "COLUMNS"}
_CLEAN = dict.fromkeys(("FLEET_HOME", "FLEET_API_URL", "FLEET_TOKEN_FILE", "COLUMNS"))

Done = subprocess.CompletedProcess[str]


def fleetctl(*args: str, stdin: str = "", cwd: Path | None = None) -> Done:
    """Run `fleetctl ARGS` as a process of its own."""
    return subprocess.run(
        [*_PYTHON, "from controller.entry import main; main()", *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=ENVIRONMENT,
        cwd=cwd,
    )


def call(*args: str, stdin: str = "") -> Done:
    """Run `fleetctl ARGS` in this process, which is faster: words and exit codes are the same."""
    result = CliRunner().invoke(app, args, input=stdin, env=_CLEAN, prog_name="fleetctl")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    # Whatever a command advises can be typed: the words of every test are looked at.
    assert {} == docs_cli.problems(docs_cli.commands_in(f"{result.stdout}\n{result.stderr}"))
    return Done(args, result.exit_code, result.stdout, result.stderr)


def fleet_agent(*args: str) -> list[str]:
    """Return the command line of `fleet-agent ARGS`."""
    return [*_PYTHON, "from agent.entry import main; main()", *args]


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, f"waited {TIMEOUT_S} s for {what}"
        time.sleep(0.02)


class Server:
    """A running `fleetctl up` or `serve`; `running` is the document that it wrote when it was ready."""

    def __init__(self, home: Path, *args: str) -> None:
        self.home = home
        command = [*_PYTHON, "from controller.entry import main; main()", "--home", str(home), *args, "--json"]
        self.log = (home.parent / f"{args[0]}.log").open("w")
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=ENVIRONMENT, start_new_session=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended at once: {Path(self.log.name).read_text()}"
        self.running = json.loads(line)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it and return its exit code; a second time does nothing."""
        assert self.process.stdout is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(TIMEOUT_S)
        self.process.stdout.close()
        self.log.close()
        return code


class Fleet:
    """A workspace with its running service, and devices that are real agents."""

    def __init__(self, folder: Path, *up: str) -> None:
        self.home = folder / "fleet"
        done = fleetctl("init", str(self.home), "--api-port=0", "--enroll-port=0", "--mqtt-port=0")
        assert 0 == done.returncode, done.stderr
        self.server = Server(self.home, "up", *up)
        self._agents: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        """End every process."""
        for agent in self._agents:
            agent.terminate()
        for agent in self._agents:
            agent.wait(TIMEOUT_S)
        self.server.stop()

    def run(self, *args: str) -> Done:
        """Run `fleetctl ARGS` for this fleet, in this process."""
        return call("--home", str(self.home), *args)

    def ask(self, *args: str, code: int = 0) -> Any:
        """Return the document that `fleetctl ARGS --json` prints."""
        done = self.run(*args, "--json")
        assert code == done.returncode, done.stderr
        return json.loads(done.stdout)

    def enroll(self, name: str, *groups: str, policy: str = "") -> Path:
        """Let a new device join and return its folder; its agent is not started."""
        state = self.home.parent / name
        invited = self.ask("devices", "invite", name, *(f"--group={group}" for group in groups))
        command = fleet_agent("enroll", invited["invite"], "--state", str(state))
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S, env=ENVIRONMENT)
        (state / "policy.toml").write_text(policy)
        return state

    def start_device(self, name: str, *groups: str, policy: str = "") -> None:
        """Let a new device join, and wait until it is online."""
        self.start_agent(name, self.enroll(name, *groups, policy=policy))

    def start_agent(self, name: str, state: Path) -> None:
        """Start the agent of an enrolled device, and wait until it is online."""
        agent = subprocess.Popen(
            fleet_agent("run", "--state", str(state)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        self._agents.append(agent)
        wait_until(lambda: self.ask("devices", "show", name)["liveness"] == "online", f"{name} to be online")
