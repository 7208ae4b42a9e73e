"""A caller of a device's model in a process of its own: `python caller.py SOCKET OUTPUT AGENT_PID`.

Asks over one kept connection until SIGTERM, and then writes what it measured: for each answer five little-endian
doubles, when it was asked (s, CLOCK_MONOTONIC), how long the answer took (s), 1 if it was the right one, else 0, and
for how long of that time the caller and the agent's thread that answers it were ready to run and had no processor (s).
"""

import array
import contextlib
import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

INPUTS = 3072
WARM_UP = 200


def main(socket_path: str, output: Path, agent_pid: int) -> None:
    """Ask until told to stop."""
    connection = http.client.HTTPConnection("device")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(socket_path)
    header, body = _request()

    def ask() -> bool:
        connection.request("POST", "/v2/models/digits/infer", body, header)
        answer = connection.getresponse()
        answer.read()
        return answer.status == 200

    thread = _answering_thread(agent_pid, ask)
    found = array.array("d")
    is_told: list[int] = []  # an exception would be lost in a finalizer
    signal.signal(signal.SIGTERM, lambda number, _: is_told.append(number))
    with Path("/proc/thread-self/schedstat").open("rb") as ours, (thread / "schedstat").open("rb") as its:
        while not is_told:
            waited_s = _waited_s(ours.fileno()), _waited_s(its.fileno())
            start = time.monotonic()
            is_right = ask()
            end = time.monotonic()
            found.extend((start, end - start, is_right, _waited_s(ours.fileno()), _waited_s(its.fileno())))
            found[-2] -= waited_s[0]
            found[-1] -= waited_s[1]
    output.write_bytes(found.tobytes())


def _answering_thread(pid: int, ask: Callable[[], bool]) -> Path:
    """Return the folder of the thread that has most to do while we ask."""
    before = _times_ns(pid)
    for _ in range(WARM_UP):
        ask()
    after = _times_ns(pid)
    return max(after, key=lambda thread: after[thread] - before.get(thread, 0))


def _times_ns(pid: int) -> dict[Path, int]:
    """Return how long each thread of a process ran."""
    times = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            times[thread] = int((thread / "schedstat").read_bytes().split()[0])
    return times


def _waited_s(schedstat: int) -> float:
    """Return how long a thread has waited for a processor. Source: Documentation/scheduler/sched-stats.rst of Linux."""
    return int(os.pread(schedstat, 100, 0).split()[1]) / 1e9


def _request() -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a request with binary tensors."""
    size = 4 * INPUTS
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [INPUTS],
        "parameters": {"binary_data_size": size},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return {"Inference-Header-Content-Length": str(len(head))}, head + array.array("f", [0.5] * INPUTS).tobytes()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
