"""A device for the benchmarks: a real agent process, over TLS to a real mosquitto, with releases of one small model.

The model is a linear classifier of 3,072 numbers (12 KB) into 10 classes, one SIMD loop over 123 KB of weights. What
stands in the controller's place signs real documents and speaks to a second, open listener of the broker.
"""

import contextlib
import getpass
import random
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from agent.identity import AUTHORITY, CERTIFICATE, identity_folder
from agent.runtime import Caps, assemble, load_model, record_vectors
from benchmarks.installed import environment, install_agent
from controller.broker import find_mosquitto
from controller.trust.authority import create_authority
from protocol.manifest import Contract, FileRef, Manifest, Provenance, SelfTest, Variant
from protocol.tensors import TensorSpec
from tests.agent.rig import Agent, Backend
from tests.agent.signing import Bundle, Signing
from tests.system.rig import free_ports

INPUTS: Final = 3072
CLASSES: Final = 10
X: Final = TensorSpec(name="x", datatype="FP32", shape=(INPUTS,))
Y: Final = TensorSpec(name="y", datatype="FP32", shape=(CLASSES,))
SAMPLE: Final = struct.pack(f"<{INPUTS}f", *([0.5] * INPUTS))
MEMORY_BYTES: Final = 3 * 65_536
CAPS: Final = Caps(memory_bytes=MEMORY_BYTES)
START_TIMEOUT_S: Final = 60.0

_WEIGHTS_AT, _OUTPUT_AT = 16_384, 15_360


def classifier(seed: int, *, passes: int = 1, functions: int = 0) -> bytes:
    """Return the model as wasm; `passes` repeats its work, `functions` adds code that is only there to be compiled."""
    rng = random.Random(seed)
    weights = struct.pack(f"<{INPUTS * CLASSES}f", *(rng.gauss(0, 0.02) for _ in range(INPUTS * CLASSES)))
    data = "".join(f"\\{byte:02x}" for byte in weights)
    return assemble(
        f"""(module (memory (export "memory") 3 3) (data (i32.const {_WEIGHTS_AT}) "{data}")
      (func (export "fleet_input") (param i32) (result i32) (i32.const 0))
      (func (export "fleet_output") (param i32) (result i32) (i32.const {_OUTPUT_AT}))
      (func $dot (param $w i32) (result f32) (local $i i32) (local $a v128) (local $b v128)
        (loop $l
          (local.set $a (f32x4.relaxed_madd (v128.load (local.get $i))
            (v128.load (i32.add (local.get $w) (local.get $i))) (local.get $a)))
          (local.set $b (f32x4.relaxed_madd (v128.load offset=16 (local.get $i))
            (v128.load offset=16 (i32.add (local.get $w) (local.get $i))) (local.get $b)))
          (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 32))) (i32.const {4 * INPUTS}))))
        (local.set $a (f32x4.add (local.get $a) (local.get $b)))
        (f32.add (f32.add (f32x4.extract_lane 0 (local.get $a)) (f32x4.extract_lane 1 (local.get $a)))
                 (f32.add (f32x4.extract_lane 2 (local.get $a)) (f32x4.extract_lane 3 (local.get $a)))))
      (func $dense (export "fleet_infer") (result i32) (local $c i32) (local $n i32)
        (loop $again
          (local.set $c (i32.const 0))
          (loop $l
            (f32.store offset={_OUTPUT_AT} (i32.shl (local.get $c) (i32.const 2)) (call $dot
              (i32.add (i32.const {_WEIGHTS_AT}) (i32.mul (local.get $c) (i32.const {4 * INPUTS})))))
            (br_if $l (i32.lt_u (local.tee $c (i32.add (local.get $c) (i32.const 1))) (i32.const {CLASSES}))))
          (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const {passes}))))
        (i32.const 0)) {_ballast(functions)})"""
    )


def _ballast(functions: int) -> str:
    """Return functions of a hundred instructions each, all different, as a generated model has them."""
    steps = "".join(
        f"(local.set $a (f32x4.add (f32x4.mul (local.get $a) (v128.load offset={16 * n} (local.get $p)))"
        " (local.get $a)))"
        for n in range(20)
    )
    return "".join(
        f"(func (param $p i32) (result v128) (local $a v128) {steps}"
        f" (v128.xor (local.get $a) (v128.const i32x4 {n} 0 0 1)))"
        for n in range(functions)
    )


def release(version: str, counter: int, wasm: bytes) -> Bundle:
    """Return a release of the model `digits`, with vectors recorded here."""
    model = load_model(wasm, (X,), (Y,), CAPS)
    vectors = record_vectors(model, seed=1, count=4)
    model.close()
    manifest = Manifest(
        model="digits",
        version=version,
        release_counter=counter,
        inputs=(X,),
        outputs=(Y,),
        variants=(Variant(file=FileRef.of(wasm), contract=Contract(memory_bytes=MEMORY_BYTES, deadline_ms=1000)),),
        self_test=SelfTest(file=FileRef.of(vectors), count=4),
        provenance=Provenance(source=FileRef.of(wasm), source_name="digits.wat", tool="benchmark"),
    )
    return Bundle(manifest=manifest, files=(wasm, vectors))


@contextlib.contextmanager
def enrolled_device(folder: Path) -> Iterator[tuple["Device", Backend]]:
    """Give an enrolled device that does not run yet, and its fleet; everything ends with the context."""
    signing = Signing()
    tls_port, open_port, http_port = free_ports(3)
    with _broker(folder / "broker", signing, tls_port, open_port) as (pid, files):
        state = folder / "device"
        signing.enroll(state, f"mqtts://127.0.0.1:{tls_port}")
        for name, content in files.items():
            (identity_folder(state) / name).write_bytes(content)
        (state / "policy.toml").write_text(f'http_address = "127.0.0.1:{http_port}"\n')
        agent, backend = (
            Device(state, pid, install_agent(folder / "installed")),
            Backend(f"mqtt://127.0.0.1:{open_port}", signing),
        )
        try:
            yield agent, backend
        finally:
            agent.stop()
            backend.close()


@contextlib.contextmanager
def _broker(folder: Path, signing: Signing, tls_port: int, open_port: int) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Run a mosquitto with mutual TLS and an open listener; give its process and the certificates of the device."""
    folder.mkdir(parents=True)
    now = datetime.now(UTC)
    authority = create_authority(now)
    listener = authority.issue_listener_certificate("127.0.0.1", now)
    common_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ignored")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(common_name).sign(signing.device_key, None)
    certificate = authority.issue_device_certificate(csr.public_bytes(Encoding.PEM).decode(), signing.device, now)
    (folder / "ca.pem").write_bytes(authority.pair.certificate_pem)
    (folder / "listener.pem").write_bytes(listener.certificate_pem)
    (folder / "listener.key").write_bytes(listener.key_pem)
    (folder / "conf").write_text(
        f"per_listener_settings true\nuser {getpass.getuser()}\nmax_packet_size 16777216\n"
        f"listener {open_port} 127.0.0.1\nallow_anonymous true\n"
        f"listener {tls_port} 127.0.0.1\ncafile {folder}/ca.pem\ncertfile {folder}/listener.pem\n"
        f"keyfile {folder}/listener.key\nrequire_certificate true\nuse_identity_as_username true\n"
    )
    program = find_mosquitto()
    if program is None:
        raise SystemExit("this benchmark needs mosquitto: apt-get install mosquitto")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(folder / "conf")], stdout=log, stderr=log)
    try:
        _wait_for_listener(process, open_port)
        yield process.pid, {CERTIFICATE: certificate.pem.encode(), AUTHORITY: authority.pair.certificate_pem}
    finally:
        process.terminate()
        process.wait()


class Device(Agent):
    """The agent as an operator starts it."""

    def __init__(self, state_dir: Path, broker_pid: int, program: Path) -> None:
        super().__init__(state_dir)
        self.broker_pid = broker_pid
        self.program = program
        self.environment = environment(state_dir.parent)
        self.bundles: list[Bundle] = []
        """The releases that its fleet has for it."""

    def start(self, **_: object) -> None:
        """Start `fleet-agent run`."""
        argv = [self.program, "run", "--state", self.state_dir]
        with (self.state_dir / "stderr.log").open("ab") as log:
            self._process = subprocess.Popen(argv, env=self.environment, stdout=log, stderr=log)

    def classify(self) -> str:
        """Run the model once and return the version that answered."""
        with self.client() as client:
            return client.infer("digits", {"x": SAMPLE}).version


def _wait_for_listener(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.02)
    raise SystemExit("mosquitto did not start")
