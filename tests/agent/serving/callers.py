"""Models, and callers that say what they like, for the tests of the local API."""

import http.client
import json
import socket
from pathlib import Path
from typing import Any

import msgspec

from agent.host import ModelHost
from agent.runtime import Caps, Zygote, assemble, load_model
from protocol.manifest import Contract, FileRef, Manifest, Provenance, SelfTest, Variant
from protocol.tensors import TensorSpec

DOUBLE = """
    (f32.store (i32.const 64) (f32.mul (f32.const 2) (f32.load (i32.const 0))))
    (f32.store (i32.const 68) (f32.mul (f32.const 2) (f32.load (i32.const 4))))
    (i32.const 0)"""
SPIN = "(loop $l (br $l)) (i32.const 0)"
SUM = """
    (f32.store (i32.const 128) (f32.add (f32.load (i32.const 128)) (f32.load (i32.const 0))))
    (f32.store (i32.const 64) (f32.load (i32.const 128)))
    (i32.const 0)"""
"""Gives the sum of the first numbers of all calls so far."""
RESET = "(f32.store (i32.const 128) (f32.const 0))"


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What a daemon might say."""

    device_id: str = "pump-1"


def activate(
    host: ModelHost,
    version: str = "1.0.0",
    infer: str = DOUBLE,
    *,
    name: str = "digits",
    n: int = 2,
    reset: str = "",
    isolation: Zygote | None = None,
    is_committed: bool = True,
) -> None:
    """Let a model of `n` floats answer; one with a `reset` is stateful."""
    wat = f"""(module (memory (export "memory") 1 1)
      (func (export "fleet_input") (param i32) (result i32) (i32.const 0))
      (func (export "fleet_output") (param i32) (result i32) (i32.const 64))
      (func $run (export "fleet_infer") (result i32) {infer})
      (func $reset (export "fleet_reset") {reset}))"""
    x, y = (TensorSpec(name=tensor, datatype="FP32", shape=(1, n)) for tensor in ("x", "y"))
    module = FileRef.of(b"module")
    manifest = Manifest(
        model=name,
        version=version,
        release_counter=1,
        inputs=(x,),
        outputs=(y,),
        variants=(Variant(file=module, contract=Contract(memory_bytes=65536)),),
        self_test=SelfTest(file=FileRef.of(bytes(8 * n)), count=1),
        provenance=Provenance(source=module, source_name="model.wat", tool="test"),
        stateful=bool(reset),
        labels={"y": ("no", "yes")} if n == 2 else {},
    )
    caps = Caps(memory_bytes=65536, deadline_ms=50)
    model = load_model(assemble(wat), (x,), (y,), caps, stateful=bool(reset), zygote=isolation)
    host.activate(manifest, model, is_committed=is_committed)


class Raw:
    """A connection on which a test says what it likes."""

    def __init__(self, path: Path | None, port: int = 0) -> None:
        self.socket = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        self.socket.connect(str(path) if path else ("127.0.0.1", port))

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and JSON of the next reply."""
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        body = response.read()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(body)

    def ask(self, method: str, target: str, body: bytes = b"", *headers: str) -> tuple[int, dict[str, str], Any]:
        head = [f"{method} {target} HTTP/1.1", "Host: agent", f"Content-Length: {len(body)}", *headers]
        self.send("\r\n".join((*head, "", "")).encode() + body)
        return self.reply()

    def is_closed(self) -> bool:
        """Return whether the service has hung up; waits for it."""
        return self.socket.recv(1) == b""


def request_body(*values: float, items: int = 1, **parameters: object) -> bytes:
    """Return a request of one item, or of a batch of as many numbers each."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [items, len(values) // items], "data": values}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
