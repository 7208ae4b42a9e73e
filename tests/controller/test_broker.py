"""The broker that `fleetctl up` starts: where it listens, how it ends, and what it says when it cannot."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controller.broker import BrokerProcess, find_mosquitto, start_broker
from controller.errors import BrokerError

DEADLINE_S = 20.0


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.needs("mosquitto")), "embedded"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which broker."""
    return request.param


@pytest.fixture
def broker(kind: str, tmp_path: Path) -> Iterator[BrokerProcess]:
    """A running broker."""
    with start_broker(kind, port=0, directory=tmp_path / "broker") as broker:
        yield broker


def port_of(broker: BrokerProcess, version: str = "3.1.1") -> int:
    return int(broker.url_for(version).rpartition(":")[2])


def accepts(host: str, port: int) -> bool:
    """Return whether anything listens there."""
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except OSError:
        return False


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    """Wait for a condition; fail when it does not come."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:.0f} s for: {what}"
        time.sleep(0.01)


def test_it_answers_when_it_is_returned(broker, kind):
    """Both versions of MQTT have a listener from the first moment."""
    assert kind == broker.kind
    assert broker.is_alive()
    assert broker.url == broker.url_for("3.1.1")
    for version in ("3.1.1", "5"):
        assert accepts("127.0.0.1", port_of(broker, version))


def test_it_listens_on_this_machine_alone(broker):
    """Nobody else on the network reaches a broker that lets everybody in."""
    for version in ("3.1.1", "5"):
        port = f"{port_of(broker, version):04X}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        listening = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port}")]
        assert [f"0100007F:{port}"] == listening


def test_stopping_it_frees_its_ports(broker):
    """Stop waits for the end, and may be repeated; so may kill."""
    broker.stop()
    assert not broker.is_alive()
    for version in ("3.1.1", "5"):
        assert not accepts("127.0.0.1", port_of(broker, version))
    broker.stop()
    broker.kill()


def test_a_killed_broker_is_seen_to_be_dead(broker):
    """Kill is what a crash would be."""
    broker.kill()
    assert not broker.is_alive()


def test_a_taken_port_is_named(broker, kind, tmp_path):
    """The message says which port, the hint what to do; the other broker is not taken for ours."""
    with pytest.raises(BrokerError, match=f"port {port_of(broker)} on 127.0.0.1 cannot be used: .*in use") as caught:
        start_broker(kind, port=port_of(broker), directory=tmp_path / "second")
    assert "choose another port" in caught.value.hint


def test_an_address_of_another_machine_is_refused(kind, tmp_path):
    """One can listen only where one lives."""
    with pytest.raises(BrokerError, match=r"203\.0\.113\.1"):
        start_broker(kind, host="203.0.113.1", port=0, directory=tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, kind):
    """A broker needs a folder for its configuration and log."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(BrokerError, match="cannot make the broker's folder"):
        start_broker(kind, port=0, directory=tmp_path / "file" / "broker")
    (tmp_path / "broker.log").mkdir()
    with pytest.raises(BrokerError, match=f"cannot write to the broker's folder {tmp_path}"):
        start_broker(kind, port=0, directory=tmp_path)


@pytest.mark.needs("mosquitto")
def test_a_broker_that_ends_at_once_says_why(tmp_path):
    """With a damaged store mosquitto ends: the last line of its log is the message, the hint names the log."""
    (tmp_path / "mosquitto.db").write_bytes(b"this is no database")
    with pytest.raises(BrokerError, match=r"the mosquitto broker ended .*Error.*\) when it started") as caught:
        start_broker("mosquitto", port=0, directory=tmp_path)
    assert f"its log is {tmp_path}/broker.log" == caught.value.hint


def test_an_embedded_broker_that_is_not_installed_says_so(tmp_path, monkeypatch):
    """The base installation has none: the message says what to install."""
    (tmp_path / "iotcore.py").write_text("raise ModuleNotFoundError('as if it were not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BrokerError, match=r"not installed: pip install 'wasmfleet\[embedded\]', or install mosquitto"):
        start_broker("embedded", port=0, directory=tmp_path)


def test_without_mosquitto_auto_is_the_embedded_one(tmp_path, monkeypatch):
    """`auto` takes what is there; asking for what is not there says what to install."""
    monkeypatch.setattr("controller.broker._DAEMON_FOLDERS", [])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_mosquitto() is None
    with start_broker("auto", port=0, directory=tmp_path / "broker") as broker:
        assert "embedded" == broker.kind
    with pytest.raises(BrokerError, match="mosquitto is not installed") as caught:
        start_broker("mosquitto", port=0, directory=tmp_path / "broker")
    assert "apt install mosquitto" in caught.value.hint


@pytest.mark.needs("mosquitto")
def test_with_mosquitto_auto_is_mosquitto(tmp_path):
    """`auto` prefers the broker that keeps its messages."""
    with start_broker("auto", port=0, directory=tmp_path) as broker:
        assert "mosquitto" == broker.kind


PARENT = """
    import sys, time
    from pathlib import Path
    from controller.broker import start_broker
    broker = start_broker(sys.argv[1], port=0, directory=Path(sys.argv[2]))
    print(broker._process.pid, broker.url.rpartition(":")[2], flush=True)
    time.sleep(60)
"""


def test_it_dies_with_its_parent(kind, tmp_path):
    """A service that is killed leaves no broker behind."""
    command = [sys.executable, "-c", textwrap.dedent(PARENT), kind, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pid, port = map(int, parent.stdout.readline().split())
        assert accepts("127.0.0.1", port)
        parent.kill()
    wait_until(lambda: not accepts("127.0.0.1", port), "the broker to end")
    wait_until(lambda: not is_running(pid), "its process to end")


def is_running(pid: int) -> bool:
    """Return whether a process runs; a dead one that nobody has waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ctrl_c_does_not_reach_it(broker):
    """The terminal's SIGINT goes to the service, which stops the broker when it is done with it."""
    assert os.getpgid(broker._process.pid) != os.getpgid(0)
    assert signal.getsignal(signal.SIGINT) is not None


@pytest.mark.needs("mosquitto")
def test_mosquitto_keeps_retained_messages_over_a_stop(tmp_path):
    """What was published is there when the broker comes back: it persists beside its configuration."""
    with start_broker("mosquitto", port=0, directory=tmp_path) as broker:
        port = port_of(broker)
        publish_retained(port, b"t", b"kept")
    with start_broker("mosquitto", port=port, directory=tmp_path):
        assert b"kept" in first_retained(port, b"t")


def mqtt_session(port: int) -> socket.socket:
    """Return a connection that the broker has accepted. Source: MQTT 3.1.1, section 3.1."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    connection.sendall(b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x0a\x00\x02me")
    assert b"\x20\x02\x00\x00" == connection.recv(4, socket.MSG_WAITALL)
    return connection


def publish_retained(port: int, topic: bytes, payload: bytes) -> None:
    """Publish at QoS 1 and wait for the confirmation. Source: MQTT 3.1.1, section 3.3."""
    body = len(topic).to_bytes(2, "big") + topic + b"\x00\x01" + payload
    with mqtt_session(port) as connection:
        connection.sendall(bytes([0x33, len(body)]) + body)
        assert b"\x40\x02\x00\x01" == connection.recv(4, socket.MSG_WAITALL)
        connection.sendall(b"\xe0\x00")


def first_retained(port: int, topic: bytes) -> bytes:
    """Subscribe, and return the bytes that come after the answer. Source: MQTT 3.1.1, section 3.8."""
    body = b"\x00\x01" + len(topic).to_bytes(2, "big") + topic + b"\x00"
    with mqtt_session(port) as connection:
        connection.sendall(bytes([0x82, len(body)]) + body)
        assert b"\x90\x03\x00\x01\x00" == connection.recv(5, socket.MSG_WAITALL)
        return connection.recv(2 + 2 + len(topic) + 4, socket.MSG_WAITALL)
