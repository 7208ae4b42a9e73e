"""One controller and many devices: reports a second, a rollout to all of them, and what commands cost.

python -m benchmarks.scale [--devices 500 2000]

`fleetctl up` runs as it does for everybody: one process, SQLite, mosquitto where it is installed. The devices are
voices, not agents: each has a key of its own, and every birth, batch of telemetry and batch of receipts is signed,
published over MQTT and acknowledged as the protocol has it. One connection speaks for all of them, so that the
controller is measured and not thousands of clients on the same machine. (The embedded broker gives a wildcard at most
100 retained messages: without mosquitto, take no more devices.) Their rows are written into the database
before the service starts. The last column says how a figure grew with the fleet.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import insert

from controller.api.schema import RolloutRequest
from controller.client import FleetClient
from controller.delivery.mqtt import LinkSettings, MqttLink, Outgoing
from controller.store import outbox
from controller.store.models import DeviceRow
from controller.workspace import Workspace, create_workspace
from protocol.identifiers import parse_device_id
from protocol.topics import Topics, Uplink
from tests.controller.cli.fleets import Server, fleetctl
from tests.controller.service.fleet import HAPPY, Clock, ScriptedDevice, bundle, open_core
from tests.controller.wat_models import DOUBLE, wasm

LIMIT_S = 300
STEPS = (HAPPY[:3], HAPPY[3:7], HAPPY[7:])
"""The batches in which a device tells of one deployment: it was told, it runs it, it committed it."""
RELEASE = bundle().manifest
COMMANDS = (
    ("--version",),
    ("devices",),
    ("devices", "--json"),
    ("query", "fleet-status", "--json"),
    ("query", "latency", "--json"),
)
Figures = dict[str, float]


class Voices:
    """All devices of a fleet: what they say, and how many were answered."""

    def __init__(self, mqtt_url: str, topics: Topics, devices: list[ScriptedDevice]) -> None:
        self.devices = devices
        self._topics = topics
        self._heard: dict[str, set[str]] = {"director": set(), "ack": set()}
        is_up = threading.Event()
        settings = LinkSettings(max_unread=10 * len(devices) + 1_000)
        self._link = MqttLink(mqtt_url, "voices", on_message=self._hear, on_up=is_up.set, settings=settings)
        anybody = topics.director(parse_device_id("anybody")).replace("/anybody/", "/+/")
        self._link.subscribe(*(anybody.replace("director", kind) for kind in self._heard))
        self._link.start()
        assert is_up.wait(LIMIT_S)

    def close(self) -> None:
        """Leave the broker."""
        self._link.close()

    def _hear(self, topic: str, _payload: bytes, _retained: bool) -> None:
        *_, device, _, kind = topic.split("/")
        self._heard[kind].add(device)

    def forget(self, kind: str) -> None:
        """Count what comes from now on."""
        self._heard[kind] = set()

    def wait_for(self, kind: str) -> None:
        """Wait until every device was told of it."""
        wait_until(lambda: len(self._heard[kind]) == len(self.devices))

    def say(self, uplink: Uplink, payloads: Iterable[bytes]) -> None:
        """Publish one message of each device."""
        topics = (self._topics.up(device.id, uplink) for device in self.devices)
        self._link.publish_all(Outgoing(*pair) for pair in zip(topics, payloads, strict=True))


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for a condition, with a deadline."""
    deadline_s = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@contextlib.contextmanager
def timed(figures: Figures, name: str) -> Iterator[None]:
    """Note how many seconds the block took."""
    began_s = time.perf_counter()
    yield
    figures[name] = time.perf_counter() - began_s


def fill(folder: Path, number: int) -> list[ScriptedDevice]:
    """Make a fleet that many devices have joined."""
    now = datetime.now(UTC)
    create_workspace(folder / "fleet", now=now, api_port=0, enroll_port=0, mqtt_port=0)
    devices = [ScriptedDevice(f"dev-{n:05}") for n in range(number)]
    joined = {"certificate_serial": "1", "enrolled_at_ms": 1}
    keys = {device.id: device.key.public_key().public_bytes_raw() for device in devices}
    with open_core(folder, Clock(now)) as fleet, fleet.core.store.write() as session:
        session.execute(insert(DeviceRow), [{"id": id_, "public_key": key, **joined} for id_, key in keys.items()])
        outbox.mark(session, "assign", keys)
    return devices


def measure_reports(voices: Voices, client: FleetClient, figures: Figures) -> None:
    """Births, and a minute's telemetry of all, until the service has stored and acknowledged them."""
    births = [device.liveness() for device in voices.devices]
    with timed(figures, "births"):
        voices.say("liveness", births)
        wait_until(lambda: all(device.liveness == "online" for device in client.devices()))
    for name in ("telemetry, the first of each", "telemetry"):
        batches = [device.telemetry(device.record((RELEASE, [900, 1_000, 1_100]))) for device in voices.devices]
        voices.forget("ack")
        with timed(figures, name):
            voices.say("telemetry", batches)
            voices.wait_for("ack")


def measure_rollout(voices: Voices, client: FleetClient, figures: Figures) -> None:
    """A rollout to all devices: started, told to each, and followed until each has reported its end."""
    voices.forget("director")
    with timed(figures, "rollout: the command"):
        rollout = client.start_rollout(RolloutRequest(model=RELEASE.model, version=RELEASE.version))
    with timed(figures, "rollout: documents of all"):
        voices.wait_for("director")
    ids = {deployment.device: deployment.id for deployment in rollout.deployments}
    told = [[device.report(ids[device.id], RELEASE, states) for device in voices.devices] for states in STEPS]
    speaking = threading.Thread(target=lambda: [voices.say("receipts", payloads) for payloads in told])
    events = 0
    with timed(figures, "rollout: three reports of all"):
        speaking.start()
        for seen in client.rollout_events(rollout.id, silence_s=LIMIT_S):
            events += seen is not None
            if seen is not None and seen.finished_at is not None:
                break
    speaking.join()
    assert {"succeeded": len(voices.devices)} == client.rollout(rollout.id).counts
    figures["rollout: events of a follower"] = events


def measure_commands(home: Path, figures: Figures) -> None:
    """What a person types, each as a process of its own; the first one only starts and ends."""
    for command in COMMANDS:
        with timed(figures, f"fleetctl {' '.join(command)}"):
            done = fleetctl("--home", str(home), *command)
        assert done.returncode == 0, done.stderr


def measure(folder: Path, number: int) -> Figures:
    """Return the figures of a fleet of that many devices."""
    figures: Figures = {}
    devices = fill(folder, number)
    fleet = Workspace(folder / "fleet")
    module = folder / "double.wasm"
    module.write_bytes(wasm(DOUBLE))
    server = Server(fleet.path, "up", "--telemetry-interval", "86400")
    voices = Voices(server.running["mqtt_url"], fleet.server.topics, devices)
    try:
        voices.wait_for("director")
        with FleetClient(server.running["api_url"], fleet.operator.api_token, timeout_s=LIMIT_S) as client:
            measure_reports(voices, client, figures)
            pushed = ("push", str(module), "--model", RELEASE.model, "--to", devices[0].id)
            done = fleetctl("--home", str(fleet.path), *pushed, "--no-wait")
            assert done.returncode == 0, done.stderr
            measure_rollout(voices, client, figures)
        measure_commands(fleet.path, figures)
        figures["memory of the service, MB"] = peak_mb(server.process.pid)
        figures["processor of the service, s"] = processor_s(server.process.pid)
    finally:
        voices.close()
        server.stop()
    return figures


def peak_mb(pid: int) -> float:
    """Return the most memory that a process had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def processor_s(pid: int) -> float:
    """Return how long a process had a processor; field 14 and 15 of proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="Measure one controller with many devices.")
    parser.add_argument("--devices", type=int, nargs="+", default=[500, 2000])
    numbers = parser.parse_args().devices
    found = []
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder), number))
    say = sys.stdout.write
    say(f"{'devices':<32}{''.join(f'{n:>10}' for n in numbers)}  grew\n")
    for name, last in found[-1].items():
        columns = "".join(f"{figures[name]:>10.2f}" for figures in found)
        say(f"{name:<32}{columns}{last / found[0][name]:>6.1f}\n")


if __name__ == "__main__":
    main()
