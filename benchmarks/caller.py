"""A caller of a device's model in a process of its own: `python caller.py SOCKET OUTPUT [PAUSE_US]`.

Asks over one kept connection until SIGTERM, and then writes what it measured: for each answer three little-endian
doubles, when it was asked (s, CLOCK_MONOTONIC), how long the answer took (s), and 1 if it was the right one, else 0.
"""

import array
import http.client
import json
import signal
import socket
import sys
import time
from pathlib import Path

INPUTS = 3072


def main(socket_path: str, output: Path, pause_s: float) -> None:
    """Ask until told to stop."""
    connection = http.client.HTTPConnection("device")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(socket_path)
    header, body = _request()
    found = array.array("d")
    is_told: list[int] = []  # an exception would be lost in a finalizer
    signal.signal(signal.SIGTERM, lambda number, _: is_told.append(number))
    while not is_told:
        start = time.monotonic()
        connection.request("POST", "/v2/models/digits/infer", body, header)
        answer = connection.getresponse()
        answer.read()
        found.extend((start, time.monotonic() - start, float(answer.status == 200)))
        if pause_s:
            time.sleep(pause_s)
    output.write_bytes(found.tobytes())


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
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]) / 1e6 if len(sys.argv) > 3 else 0.0)
