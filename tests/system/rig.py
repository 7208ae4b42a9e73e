"""A whole fleet of real processes for the system tests: a broker, the service and agents, each of which can be killed.

Everything goes through the public commands and APIs, as an operator and a device's application use them.
"""

import json
import os
import shutil
import sqlite3
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from agent.client import ClientError, LocalClient
from controller.broker import BrokerProcess, MqttVersion, start_broker
from controller.demo.processes import Process, command
from protocol.identifiers import Digest
from tests.ports import free_ports

START_TIMEOUT_S = 30.0
ROLLOUT_TIMEOUT_S = 45.0


class CommandResult:
    """How one command ended."""

    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        self.status = done.returncode
        self.out = done.stdout
        self.err = done.stderr

    @property
    def json(self) -> Any:
        """The document on stdout."""
        return json.loads(self.out)


class Device:
    """One agent with its state folder."""

    def __init__(self, name: str, state: Path) -> None:
        self.name = name
        self.state = state
        self.log = state.parent / f"{name}.log"
        self._process: Process | None = None

    def start(self, fault: str | None = None, **env: str) -> None:
        """Start the agent and wait until its local API answers."""
        variables = {**env, **({"FLEET_FAULT": fault} if fault else {})}
        self._process = Process([command("fleet-agent"), "run", "--state", str(self.state)], self.log, variables)
        if fault is None:
            wait_for(f"{self.name} answers\n{self.tail()}", self.is_answering)

    def is_answering(self) -> bool:
        """Return whether the local API answers."""
        try:
            self.status()
        except ClientError:
            return False
        return True

    def is_alive(self) -> bool:
        """Return whether the process runs."""
        return self._process is not None and self._process.is_alive()

    def wait_killed(self) -> None:
        """Wait until the fault point killed the process."""
        assert self._process is not None
        self._process.wait_killed(ROLLOUT_TIMEOUT_S)

    def kill(self) -> None:
        """Pull the plug."""
        assert self._process is not None
        self._process.kill()

    def stop(self) -> None:
        """Ask the agent to end."""
        if self._process is not None:
            self._process.stop()

    def status(self) -> Any:
        """Return what `fleet-agent status --json` prints, without a process."""
        with self.client() as client:
            return client.status()

    def client(self) -> LocalClient:
        """Return a client of the local API."""
        return LocalClient(self.state / "agent.sock")

    def infer(self, model: str, value: float) -> tuple[str, float]:
        """Run a model of the affine kind; return the release that answered, and its answer."""
        with self.client() as client:
            answer = client.infer(model, {"x": struct.pack("<f", value)})
        return answer.version, answer.outputs["y"].values[0]

    def tail(self) -> str:
        """Return the end of the log, for a test's message."""
        return self.log.read_text()[-2000:] if self.log.exists() else ""


class Rig:
    """A fleet whose every process a test can start, stop and kill."""

    def __init__(self, folder: Path, *, broker: str = "mosquitto", mqtt: MqttVersion = "5") -> None:
        self.folder = folder
        self.home = folder / "fleet"
        self.devices: dict[str, Device] = {}
        self.broker: BrokerProcess | None = None
        self._broker_kind = broker
        self._mqtt_version = mqtt
        self._service: Process | None = None
        api, enroll, self.mqtt_port = free_ports(3)
        self.api_url = f"http://127.0.0.1:{api}"
        self.ok("init", f"--api-port={api}", f"--enroll-port={enroll}", f"--mqtt-port={self.mqtt_port}")
        self._tune()

    def _tune(self) -> None:
        config = self.home / "server" / "config.toml"
        text = config.read_text()
        config.write_text(text.replace('version = "5"', f'version = "{self._mqtt_version}"'))

    def start(self) -> None:
        """Start the broker and the service."""
        self.start_broker()
        self.start_service()

    def start_broker(self) -> None:
        """Start the broker, on the same port as before."""
        folder = self.folder / "broker"
        folder.mkdir(exist_ok=True)
        kind: Any = self._broker_kind
        self.broker = start_broker(kind, host="127.0.0.1", port=self.mqtt_port, directory=folder)

    def start_service(self) -> None:
        """Start the service and wait until it answers."""
        argv = [command("fleetctl"), "--home", str(self.home), "serve", "--telemetry-interval", "1"]
        if self.broker is not None:
            argv += ["--mqtt-url", self.broker.url_for(self._mqtt_version)]
        self._service = Process(argv, self.folder / "service.log")
        wait_for("the service answers", self._is_serving)

    def _is_serving(self) -> bool:
        assert self._service is not None
        assert self._service.is_alive(), (self.folder / "service.log").read_text()[-2000:]
        try:
            return httpx.get(f"{self.api_url}/v1/info", timeout=5).status_code == httpx.codes.UNAUTHORIZED
        except httpx.TransportError:
            return False

    def kill_service(self) -> None:
        """Pull the service's plug."""
        assert self._service is not None
        self._service.kill()

    def lose_server_and_broker(self) -> None:
        """Pull the plug of the machine that both run on, and its disk with it."""
        assert self.broker is not None
        self.kill_service()
        self.broker.stop()
        for folder in (self.folder / "broker", self.home / "server"):
            shutil.rmtree(folder)

    def enroll(self, name: str, *groups: str) -> Device:
        """Invite a device and enrol it; returns it not yet started."""
        options = [f"--group={group}" for group in groups]
        invite = self.ok("devices", "invite", name, *options)["invite"]
        device = Device(name, self.folder / name)
        done = run("fleet-agent", "enroll", invite, "--state", str(device.state))
        assert done.status == 0, done.err
        self.devices[name] = device
        return device

    def fleetctl(self, *args: str) -> CommandResult:
        """Run `fleetctl ARGS` to its end."""
        return run("fleetctl", "--home", str(self.home), *args)

    def ok(self, *args: str, status: int = 0) -> Any:
        """Run `fleetctl ARGS --json`, expect it to end with `status`, and return its document."""
        done = self.fleetctl(*args, "--json")
        assert done.status == status, f"fleetctl {' '.join(args)}: {done.status}\n{done.out}\n{done.err}"
        return done.json

    def push(self, scale: int, *options: str, status: int = 0, wait: bool = True) -> Any:
        """Push the model y = scale · x as release `scale`.0.0; return the rollout with its deployments."""
        flags = ["--wait", "--timeout", str(ROLLOUT_TIMEOUT_S)] if wait else ["--no-wait"]
        pushed = self.ok("push", str(affine(self.folder, scale)), "--soak-ms=100", *flags, *options, status=status)
        return self.ok("rollouts", "show", pushed["rollout"]["id"])

    def rollout_ended(self, rollout_id: str) -> Any:
        """Wait until a rollout ended; return it with its deployments."""
        self.fleetctl("rollouts", "watch", rollout_id, "--timeout", str(ROLLOUT_TIMEOUT_S))
        rollout = self.ok("rollouts", "show", rollout_id)
        assert rollout["finished_at"], f"{rollout}\n{[d.tail() for d in self.devices.values()]}"
        return rollout

    def published_blobs(self) -> list[Digest]:
        """Return the names of all blobs, as the service's database has them."""
        with closing(sqlite3.connect(self.home / "server" / "fleet.db")) as database:
            return [Digest(blob) for (blob,) in database.execute("SELECT blob FROM files WHERE blob IS NOT NULL")]

    def close(self) -> None:
        """End every process."""
        for device in self.devices.values():
            device.stop()
        if self._service is not None:
            self._service.stop()
        if self.broker is not None:
            self.broker.stop()


SIDECAR = """[[inputs]]
name = "x"
datatype = "FP32"
shape = [1]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [1]
"""

"""The `model.toml` of a model of one number in and one out."""


def affine(folder: Path, scale: int, name: str = "affine") -> Path:
    """Write the model y = scale · x with its sidecar; return its path."""
    home = folder / f"{name}-{scale}"
    home.mkdir(exist_ok=True)
    path = home / f"{name}.wat"
    path.write_text(
        f"""(module
  (memory (export "memory") 1 1)
  (func (export "fleet_input") (param i32) (result i32) i32.const 1024)
  (func (export "fleet_output") (param i32) (result i32) i32.const 2048)
  (func (export "fleet_infer") (result i32)
    (f32.store (i32.const 2048) (f32.mul (f32.load (i32.const 1024)) (f32.const {scale})))
    i32.const 0))
"""
    )
    (home / "model.toml").write_text(f'name = "{name}"\nversion = "{scale}.0.0"\n{SIDECAR}')
    return path


def run(name: str, *args: str) -> CommandResult:
    """Run one of the project's commands to its end."""
    done = subprocess.run(
        [command(name), *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, "COLUMNS": "160"},
    )
    return CommandResult(done)


def wait_for(what: str, is_true: Callable[[], bool], *, timeout_s: float = START_TIMEOUT_S) -> None:
    """Return as soon as `is_true`; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, f"did not happen within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)
