"""Tests of `fleetctl up` and `fleetctl serve` as processes: start, stop, crash, and what is in the way."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from controller.broker import start_broker
from tests.controller.cli.fleets import ENVIRONMENT, Fleet, Server, call, fleetctl, wait_until
from tests.controller.wat_models import TRIPLE, wasm


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A new fleet whose ports are any free ones."""
    path = tmp_path / "fleet"
    assert 0 == call("init", str(path), "--api-port=0", "--enroll-port=0", "--mqtt-port=0").returncode
    return path


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Servers that are ended with the test."""
    started: list[Server] = []
    yield started
    for server in started:
        server.stop()


def is_listening(url: str) -> bool:
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex((address.hostname, address.port)) == 0


def test_up_starts_everything_and_ends_it(home: Path, servers: list[Server]) -> None:
    """The document says where everything is; a second service is refused; Ctrl-C ends service and broker, cleanly."""
    servers.append(server := Server(home, "up"))
    urls = [server.running[name] for name in ("api_url", "enroll_url", "mqtt_url")]
    assert [True] * 3 == [is_listening(url) for url in urls]
    assert server.running["broker"] in ("mosquitto", "embedded")
    assert 0 == call("--home", str(home), "devices").returncode
    broker_files = sorted((home / "server" / "broker").iterdir())
    for command in ("serve", "up"):
        refused = fleetctl("--home", str(home), command)
        assert (1, "") == (refused.returncode, refused.stdout)
        assert f"error: another service runs on {home / 'server'}" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert broker_files == sorted((home / "server" / "broker").iterdir())  # no second broker came near them
    assert 0 == server.stop(signal.SIGINT)
    assert [False] * 3 == [is_listening(url) for url in urls]
    assert "Traceback" not in (home.parent / "up.log").read_text()
    assert not (home / "server" / "endpoints.json").exists()


def test_up_says_what_is_where(home: Path) -> None:
    """People read addresses and the next two commands."""
    command = [sys.executable, "-c", "from controller.entry import main; main()", "--home", str(home), "up"]
    with subprocess.Popen(
        [*command, "--broker", "embedded"], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        shown = [process.stdout.readline().rstrip() for _ in range(8)]
        process.terminate()
    assert f"the fleet in {home} is up" == shown[0]
    assert ["operator API", "enrolment", "broker"] == [line.split("  ")[0] for line in shown[1:4]]
    assert shown[3].endswith("(embedded, started here)")
    assert f"  fleetctl --home {home} devices invite      a line to paste on a device" == shown[6]


def test_a_broker_dies_with_its_service(home: Path, servers: list[Server]) -> None:
    """A service that is killed leaves no broker behind."""
    servers.append(server := Server(home, "up"))
    server.stop(signal.SIGKILL)
    wait_until(lambda: not is_listening(server.running["mqtt_url"]), "the broker to end")


def test_serve_needs_only_the_server_folder(home: Path, servers: list[Server], tmp_path: Path) -> None:
    """The operator's keys may be on another machine; commands reach the service by address and token."""
    elsewhere = tmp_path / "laptop"
    elsewhere.mkdir()
    (home / "operator").rename(elsewhere / "operator")
    with start_broker("auto", port=0, directory=tmp_path / "broker") as broker:
        servers.append(server := Server(home, "serve", "--mqtt-url", broker.url))
        assert (broker.url, None) == (server.running["mqtt_url"], server.running["broker"])
        done = call("--home", str(elsewhere), "--api-url", server.running["api_url"], "models")
        assert (0, "") == (done.returncode, done.stderr)


def test_serve_waits_for_its_broker(home: Path, servers: list[Server], doubler: Path) -> None:
    """Without a broker a release is made, and the operator is told why devices do not get it yet."""
    servers.append(server := Server(home, "serve", "--mqtt-url", "mqtt://127.0.0.1:9"))
    done = call("--home", str(home), "push", str(doubler))
    assert (0, True) == (done.returncode, "warning: no connection to the broker" in done.stderr)
    assert 0 == server.stop()


def test_a_port_that_is_taken_is_said(home: Path) -> None:
    """The message names the port; the broker that was started already is gone again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = home / "server" / "config.toml"
        config.write_text(
            config.read_text().replace('host = "127.0.0.1"\nport = 0', f'host = "127.0.0.1"\nport = {port}', 1)
        )
        done = fleetctl("--home", str(home), "up")
    assert (1, "") == (done.returncode, done.stdout)
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_up_does_not_start_a_broker_for_another_machine(home: Path) -> None:
    """Where the settings name a broker elsewhere, `serve` is the command."""
    config = home / "server" / "config.toml"
    config.write_text(config.read_text().replace("mqtt://127.0.0.1:0", "mqtts://broker.example:8883"))
    done = fleetctl("--home", str(home), "up")
    assert (1, "") == (done.returncode, done.stdout)
    assert "broker.example" in done.stderr
    assert f"`fleetctl --home {home} serve`" in done.stderr


@pytest.mark.parametrize("command", ["up", "serve"])
def test_without_a_server_folder_nothing_starts(home: Path, command: str) -> None:
    """The operator's folder alone is no service."""
    shutil.rmtree(home / "server")
    done = fleetctl("--home", str(home), command)
    assert (1, "") == (done.returncode, done.stdout)
    assert "config.toml is missing" in done.stderr


@pytest.mark.timeout(240)
def test_a_push_is_followed_through_a_crash_of_the_service(tmp_path: Path, doubler: Path) -> None:
    """SIGKILL the service in the middle of a rollout: the command waits, and the rollout ends well."""
    fleet = Fleet(tmp_path)
    try:
        fleet.start_device("cam-1")
        config = fleet.home / "server" / "config.toml"
        api, mqtt = (urlsplit(fleet.server.running[name]).port for name in ("api_url", "mqtt_url"))
        text = config.read_text().replace('host = "127.0.0.1"\nport = 0', f'host = "127.0.0.1"\nport = {api}', 1)
        config.write_text(text.replace("mqtt://127.0.0.1:0", f"mqtt://127.0.0.1:{mqtt}"))
        pushed = fleet.ask("push", str(doubler), "--soak-ms", "3000", "--no-wait")
        command = ["--home", str(fleet.home), "rollouts", "watch", pushed["rollout"]["id"], "--timeout", "120"]
        with subprocess.Popen(
            [sys.executable, "-c", "from controller.entry import main; main()", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        ) as watching:
            assert watching.stdout is not None
            while not watching.stdout.readline().startswith("cam-1"):
                assert watching.poll() is None
            fleet.server.stop(signal.SIGKILL)
            fleet.server = Server(fleet.home, "up")
            out, err = watching.communicate(timeout=130)
        assert (0, True) == (watching.returncode, "1 of 1 device ended well" in out)
        assert "the rollout goes on without it" in " ".join(err.split())
    finally:
        fleet.close()


def brokers_of(server: Server) -> list[int]:
    """Return the process ids of the brokers that `up` has started and that live."""
    children = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    return [int(pid) for path in children for pid in path.read_text().split()]


def kill_broker(server: Server) -> None:
    """Kill the broker, as a crash would, and wait until there is another or none is coming."""
    (old,) = brokers_of(server)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: old not in brokers_of(server), "the broker to be dead")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=pytest.mark.needs("mosquitto")), "embedded"])
def test_a_broker_that_dies_is_started_again(tmp_path: Path, doubler: Path, kind: str) -> None:
    """The operator is told, devices come back, and a release that nobody fetched before is there to be fetched."""
    fleet = Fleet(tmp_path, "--broker", kind)
    try:
        late = fleet.enroll("late")
        pushed = fleet.ask("push", str(doubler), "--soak-ms", "0", "--no-wait")
        kill_broker(fleet.server)
        wait_until(lambda: is_listening(fleet.server.running["mqtt_url"]), "the next broker")
        fleet.start_agent("late", late)
        watched = fleet.run("rollouts", "watch", pushed["rollout"]["id"], "--timeout", "60")
        assert 0 == watched.returncode, watched.stdout
        kill_broker(fleet.server)
        wait_until(lambda: is_listening(fleet.server.running["mqtt_url"]), "the next broker")
        doubler.write_bytes(wasm(TRIPLE))
        pushed = fleet.ask("push", str(doubler), "--soak-ms", "0", "--wait", "--timeout", "60")
        assert "finished" == pushed["rollout"]["state"]
        said = " ".join((tmp_path / "up.log").read_text().split())
        assert 2 == said.count(f"warning: the {kind} broker was killed by SIGKILL; starting it again")
        assert 2 == said.count(f"warning: the {kind} broker is back at {fleet.server.running['mqtt_url']}")
    finally:
        fleet.close()


def take_port(server: Server) -> socket.socket:
    """Kill the broker and take its port before the next one does."""
    address = urlsplit(server.running["mqtt_url"])
    while True:
        for broker in brokers_of(server):
            os.kill(broker, signal.SIGKILL)
        try:
            return socket.create_server((str(address.hostname), int(address.port or 0)))
        except OSError:
            time.sleep(0.01)


@pytest.mark.slow
def test_a_broker_that_cannot_come_back_ends_up(home: Path, servers: list[Server]) -> None:
    """Another program takes its port: `up` tries for a while, then says so and ends with 1."""
    servers.append(server := Server(home, "up", "--broker", "embedded"))
    with take_port(server):
        assert 1 == server.process.wait(60)
    said = " ".join((home.parent / "up.log").read_text().split())
    assert "error: the broker died 6 times in a row, and is not started again: port " in said
    assert "hint: stop what uses it" in said
    assert "Traceback" not in said
    assert not (home / "server" / "endpoints.json").exists()
