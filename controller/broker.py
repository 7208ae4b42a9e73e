"""A broker of one's own for development: mosquitto where it is installed, else the embedded one.

It listens on one address (127.0.0.1 unless told otherwise), asks nobody who he is, and dies with the process that
started it. A fleet in the field needs a broker that its operator runs; this one refuses nothing.

The embedded broker (rumqttd, from the package iotcore) speaks MQTT 3.1.1 on its port and MQTT 5 on another one. It
keeps everything in memory, and a subscription with a wildcard receives at most 100 retained messages.
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

from controller.child import tied
from controller.errors import BrokerError

Kind = Literal["auto", "embedded", "mosquitto"]
MqttVersion = Literal["3.1.1", "5"]

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.02
_FREE_PORT_TRIES = 5
_DAEMON_FOLDERS = ["/usr/sbin", "/usr/local/sbin"]
_PORT_HINT = "stop what uses it, or choose another port for the broker (port 0 takes any free one)"

# `user` matters only to who starts mosquitto as root: it would become another user, who cannot write to the folder.
_MOSQUITTO_CONF = """\
listener {port} {host}
allow_anonymous true
user root
persistence true
persistence_location {directory}/
autosave_interval 30
max_packet_size {max_message_bytes}
max_inflight_messages 100
max_queued_messages 100000
set_tcp_nodelay true
sys_interval 0
log_dest stderr
log_type error
log_type warning
"""

# The log of one subscription filter holds at most max_segment_count segments, of one message or max_segment_size
# bytes each; what a session that is away did not read before that is lost. The defaults would take 1 GB a filter.
_EMBEDDED_TOML = """\
id = 0

[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 64
"""

_EMBEDDED_LISTENER_TOML = """
[{protocol}.1]
name = "{protocol}"
listen = "{address}"
next_connection_delay_ms = 1

[{protocol}.1.connections]
connection_timeout_ms = 60000
max_payload_size = {max_message_bytes}
max_inflight_count = 100
dynamic_filters = true
"""


class BrokerProcess:
    """A running broker; stop it, or use it as a context manager. `url` is where it speaks MQTT 3.1.1."""

    def __init__(self, kind: Kind, process: subprocess.Popen[bytes], urls: dict[MqttVersion, str], log: Path) -> None:
        self.kind = kind
        self.url = urls["3.1.1"]
        self.port = urlsplit(self.url).port or 0
        self.log = log
        self._urls = urls
        self._process = process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def url_for(self, version: MqttVersion) -> str:
        """Return where the broker speaks this version of MQTT."""
        return self._urls[version]

    def is_alive(self) -> bool:
        """Return whether the broker runs."""
        return self._process.poll() is None

    def ending(self) -> str:
        """Return in words how the broker ended; the last line of its log says why, unless it was killed."""
        code = self._process.wait()
        if code < 0:
            return f"the {self.kind} broker was killed by {signal.Signals(-code).name}"
        said = self.log.read_text(errors="replace").strip().splitlines()
        return f"the {self.kind} broker ended with status {code} ({said[-1] if said else 'it said nothing'})"

    def stop(self) -> None:
        """Let the broker end, and wait until it has; a second time does nothing."""
        if self.is_alive():
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Hold the broker still, with its connections open, as long as the block lasts."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # it may go on for a moment
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the broker, as a crash would."""
        self._process.kill()
        self._process.wait()


def start_broker(kind: Kind = "auto", *, host: str = "127.0.0.1", port: int = 1883, directory: Path) -> BrokerProcess:
    """Return a broker that answers at `host`:`port` (0: any free port) and keeps its files in `directory`.

    Linux kills it when the thread that called this ends: call it from one that lives as long as the broker must.

    Raises:
        BrokerError: the port is taken, the broker is not installed, or it does not come up.
    """
    program = find_mosquitto()
    if kind == "auto":
        kind = "mosquitto" if program else "embedded"
    if kind == "mosquitto" and program is None:
        raise BrokerError(
            "mosquitto is not installed", hint="install it (apt install mosquitto), or use the embedded broker"
        )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BrokerError(f"cannot make the broker's folder {directory}: {error.strerror}") from error
    directory = directory.resolve()
    for _ in range(_FREE_PORT_TRIES - 1 if port == 0 else 0):
        try:
            return _start(kind, program, host, _free_port(host), directory)
        except BrokerError:
            continue  # another process took the free port between our look and the broker's
    return _start(kind, program, host, port or _free_port(host), directory)


def find_mosquitto() -> str | None:
    """Return the path of mosquitto, or None; daemons live in /usr/sbin, which not every PATH has."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_DAEMON_FOLDERS])
    return shutil.which("mosquitto", path=path)


def _start(kind: Kind, program: str | None, host: str, port: int, directory: Path) -> BrokerProcess:
    _check_free(host, port)
    ports: dict[MqttVersion, int] = {"3.1.1": port, "5": port if kind == "mosquitto" else _free_port(host)}
    config, log = directory / f"{kind}.conf", directory / "broker.log"
    if kind == "mosquitto" and program:
        text, command = _mosquitto_conf(host, port, directory), [program, "-c", str(config)]
    else:
        config = config.with_suffix(".toml")  # the broker looks at the suffix
        text, command = _embedded_toml(host, ports), [sys.executable, "-P", "-m", "controller.broker", str(config)]
    try:
        config.write_text(text)
        if log.is_file():
            log.replace(log.with_suffix(".log.1"))  # the last words of the broker before this one
        output = log.open("wb")
    except OSError as error:
        raise BrokerError(f"cannot write to the broker's folder {directory}: {error.strerror}") from error
    with output:
        # The command is a program that we found and a path that we wrote; nothing in it comes from outside.
        process = subprocess.Popen(  # noqa: S603
            tied(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C in a terminal reaches the service, which then stops the broker
        )
    urls: dict[MqttVersion, str] = {version: f"mqtt://{_address(host, ports[version])}" for version in ports}
    broker = BrokerProcess(kind, process, urls, log)
    try:
        _wait_until_ready(broker, host, ports)
    except BaseException:
        broker.kill()
        raise
    return broker


def _mosquitto_conf(host: str, port: int, directory: Path) -> str:
    return _MOSQUITTO_CONF.format(host=host, port=port, directory=directory, max_message_bytes=MAX_MESSAGE_BYTES)


def _embedded_toml(host: str, ports: dict[MqttVersion, int]) -> str:
    protocols: dict[MqttVersion, str] = {"3.1.1": "v4", "5": "v5"}
    listeners = [
        _EMBEDDED_LISTENER_TOML.format(
            protocol=protocols[version], address=_address(host, port), max_message_bytes=MAX_MESSAGE_BYTES
        )
        for version, port in ports.items()
    ]
    return _EMBEDDED_TOML + "".join(listeners)


def _wait_until_ready(broker: BrokerProcess, host: str, ports: dict[MqttVersion, int]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        is_ready = all(_accepts_connect(host, port, version) for version, port in ports.items())
        # Asked after the look: another broker that took the port in between would have answered, and ended ours.
        if not broker.is_alive():
            raise BrokerError(f"{broker.ending()} when it started", hint=f"its log is {broker.log}")
        if is_ready:
            return
        time.sleep(_POLL_S)
    raise BrokerError(
        f"the {broker.kind} broker does not answer at {broker.url} after {_START_TIMEOUT_S:.0f} s",
        hint=f"its log is {broker.log}",
    )


def _accepts_connect(host: str, port: int, version: MqttVersion) -> bool:
    """Return whether a broker accepts a CONNECT. Source: MQTT 3.1.1 and 5.0, sections 3.1 and 3.2."""
    client_id = f"probe-{secrets.token_hex(6)}".encode()
    level_clean_keepalive = b"\x04\x02\x00\x0a" if version == "3.1.1" else b"\x05\x02\x00\x0a\x00"
    body = b"\x00\x04MQTT" + level_clean_keepalive + len(client_id).to_bytes(2, "big") + client_id
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection:
            connection.sendall(bytes([0x10, len(body)]) + body)
            kind, _, _, code = connection.recv(4, socket.MSG_WAITALL)
            connection.sendall(b"\xe0\x00")
    except (OSError, ValueError):  # ValueError: fewer than four bytes came
        return False
    return (kind, code) == (0x20, 0)


def _check_free(host: str, port: int) -> None:
    try:
        with _bound(host, port):
            return
    except OSError as error:
        raise BrokerError(
            f"port {port} on {host} cannot be used: {error.strerror or error}", hint=_PORT_HINT
        ) from error


def _free_port(host: str) -> int:
    try:
        with _bound(host, 0) as listener:
            return int(listener.getsockname()[1])
    except OSError as error:
        raise BrokerError(f"cannot listen on {host}: {error.strerror or error}") from error


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _run_embedded(config: str) -> None:
    try:
        from iotcore import IotCoreBroker  # noqa: PLC0415 - an extra, which mosquitto makes unnecessary
    except ModuleNotFoundError:
        sys.exit("the embedded broker is not installed: pip install 'wasmfleet[embedded]', or install mosquitto")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    # rumqttd writes a record of level ERROR for every packet that it routes.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    IotCoreBroker(config_path=config).run_forever()


if __name__ == "__main__":
    _run_embedded(sys.argv[1])
