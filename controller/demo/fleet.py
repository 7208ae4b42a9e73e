"""The demo's fleet: a broker, a controller and agents as real processes in one folder, driven by public commands."""

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from controller.demo.ending import undisturbed
from controller.demo.processes import DemoError, Process, command, run, wait_for

_START_TIMEOUT_S = 30.0
_COMMAND_TIMEOUT_S = 60.0


class DemoDevice:
    """One agent: its state folder, and the process that runs now."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.state = folder / name
        self.socket = self.state / "agent.sock"
        self._process: Process | None = None
        self._is_ready = False

    def start(self, fault: str | None = None) -> None:
        """Start the agent; `fault` names the point at which it is to kill itself."""
        env = {"FLEET_FAULT": fault} if fault else {}
        argv = [command("fleet-agent"), "run", "--state", str(self.state)]
        with undisturbed():
            self._process = Process(argv, self.state.with_suffix(".log"), env)
        wait_for(f"{self.name}: the local API", self._answers, timeout_s=_START_TIMEOUT_S)

    def serve(self, model: str) -> None:
        """Wait until the agent can answer for `model`; from then on every refusal counts."""
        wait_for(
            f"{self.name}: {model}", lambda: self._answers(f"/v2/models/{model}/ready"), timeout_s=_START_TIMEOUT_S
        )
        self._is_ready = True

    def is_up(self) -> bool:
        """Return whether the agent is expected to answer."""
        if self._process is None or not self._process.is_alive():
            self._is_ready = False
        return self._is_ready

    def wait_killed(self, timeout_s: float) -> None:
        """Wait until the agent killed itself at its fault point."""
        if self._process is None:
            raise DemoError(f"{self.name} was never started")
        self._process.wait_killed(timeout_s)
        self._is_ready = False

    def stop(self) -> None:
        """End the agent."""
        if self._process is not None:
            self._process.stop()

    def _answers(self, path: str = "/v2/health/live") -> bool:
        if self._process is not None and not self._process.is_alive():
            raise DemoError(f"{self.name} ended at once: see {self._process.log}\n{self._process.last_words()}")
        transport = httpx.HTTPTransport(uds=str(self.socket))
        try:
            with httpx.Client(transport=transport, timeout=2) as client:
                return client.get(f"http://device{path}").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


class DemoFleet:
    """A workspace, `fleetctl up`, and some devices; everything ends with the `with` block."""

    def __init__(self, folder: Path, devices: tuple[str, ...]) -> None:
        self.home = folder / "fleet"
        self._folder = folder
        self._up: Process | None = None
        self.devices = tuple(DemoDevice(name, folder) for name in devices)

    def __enter__(self) -> "DemoFleet":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def fleetctl(self, *args: str, accept: tuple[int, ...] = (0,)) -> str:
        """Run `fleetctl ARGS` to its end and return what it printed."""
        argv = [command("fleetctl"), "--home", str(self.home), *args]
        return run(argv, timeout_s=_COMMAND_TIMEOUT_S, accept=accept)

    def fleetctl_json(self, *args: str, accept: tuple[int, ...] = (0,)) -> Any:
        """Run `fleetctl ARGS --json` and return the document that it printed."""
        return json.loads(self.fleetctl(*args, "--json", accept=accept))

    def _start(self) -> None:
        api, enroll, mqtt = _free_ports(3)
        self.fleetctl("init", f"--api-port={api}", f"--enroll-port={enroll}", f"--mqtt-port={mqtt}")
        argv = [
            command("fleetctl"),
            "--home",
            str(self.home),
            "up",
            "--broker",
            "embedded",
            "--telemetry-interval",
            "1",
        ]
        with undisturbed():
            self._up = Process(argv, self._folder / "fleetctl-up.log")
        wait_for("the controller", self._is_serving, timeout_s=_START_TIMEOUT_S)
        for device in self.devices:
            invite = self.fleetctl_json("devices", "invite", device.name)
            argv = [command("fleet-agent"), "enroll", invite["invite"], "--state", str(device.state)]
            run(argv, timeout_s=_COMMAND_TIMEOUT_S)

    def _is_serving(self) -> bool:
        if self._up is not None and not self._up.is_alive():
            raise DemoError(f"`fleetctl up` ended at once: see {self._up.log}\n{self._up.last_words()}")
        return (self.home / "server" / "endpoints.json").exists()

    def _stop(self) -> None:
        for device in self.devices:
            device.stop()
        if self._up is not None:
            self._up.stop()


def _free_ports(count: int) -> list[int]:
    # All are held open together, so that none is handed out twice.
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
