"""What runs a model in a benchmark: the device runtime, onnxruntime, and onnxruntime-web in Node; one thread each.

Peers are used where they are installed, and never needed.
"""

import base64
import importlib
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from agent.runtime.instance import Caps, LoadedModel, load_model
from compiler.kernels.peak import Load, copy_load, multiply_add_load
from controller.errors import ControllerError
from protocol.tensors import ModelSpec, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Inputs = Mapping[str, NDArray[Any]]

Run = Callable[[int], list[float]]
"""Runs a model a number of times and returns the milliseconds of each."""

ROUND_MS = 60.0
"""About how long each engine runs in one round."""
_CALL_TIME_MS = 60_000
_MEMORY_BYTES = 1 << 31
_BYTE = (TensorSpec(name="byte", datatype="UINT8", shape=(1,)),)
_WEB = Path(__file__).parent / "web.mjs"


class PeerError(ControllerError):
    """A peer is not there, or does not run the model."""

    code = "peer"


def timed(call: Callable[[], object]) -> Run:
    """Return what times a call."""

    def run(count: int) -> list[float]:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        return times

    return run


def load_module(wasm: bytes, spec: ModelSpec) -> LoadedModel:
    """Return a module in the device runtime, with room and time enough; raises ModelError."""
    caps = Caps(memory_bytes=_MEMORY_BYTES, stack_kib=spec.stack_kib, deadline_ms=_CALL_TIME_MS)
    return load_model(wasm, spec.inputs, spec.outputs, caps, stateful=spec.stateful)


def ours(wasm: bytes, spec: ModelSpec, inputs: Sequence[bytes]) -> Run:
    """Return a module as a device runs it: with a deadline, inputs copied in and outputs copied out."""
    model = load_module(wasm, spec)
    return timed(lambda: model.infer(inputs))


def working(load: Load) -> Run:
    """Return what runs a module that does a known amount of work."""
    model = load_model(load.wasm, _BYTE, _BYTE, Caps(deadline_ms=_CALL_TIME_MS))
    return timed(lambda: model.infer([b"\0"]))


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine can do at most in WebAssembly, on one thread: operations and bytes, in 1e9 each second."""

    peak_gflops: float
    """Of fused multiply-adds of 128 bits that never wait for memory."""
    copy_gb_s: float


def measure_limits(rounds: int = 5) -> Limits:
    """Measure what a share of the peak is a share of."""
    loads = {"peak": multiply_add_load(), "copy": copy_load()}
    times = interleaved({name: working(load) for name, load in loads.items()}, rounds)
    best = {name: load.units / min(map(statistics.median, times[name])) * 1e-6 for name, load in loads.items()}
    return Limits(peak_gflops=best["peak"], copy_gb_s=best["copy"])


def native(model: bytes, inputs: "Inputs") -> Run:
    """Return a model in onnxruntime with the widest vectors of the machine; raises PeerError."""
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise PeerError("onnxruntime is not installed", hint="pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        halves = {i.name for i in session.get_inputs() if i.type == "tensor(float16)"}  # 32 bits wide in a module
        feeds: dict[str, Any] = {name: a.astype("float16") if name in halves else a for name, a in inputs.items()}
        session.run(None, feeds)
    except Exception as error:  # its errors have no root of their own
        raise PeerError(f"onnxruntime does not run the model: {str(error)[:300]}") from error
    return timed(lambda: session.run(None, feeds))


class Web:
    """onnxruntime-web in a Node process; `folder` is where `npm install` put it."""

    def __init__(self, folder: Path) -> None:
        node = shutil.which("node")
        if node is None:
            raise PeerError("Node is not installed")
        if not (folder / "node_modules" / "onnxruntime-web").is_dir():
            raise PeerError(f"onnxruntime-web is not in {folder}", hint="npm install onnxruntime-web@1.30.0")
        self._process = subprocess.Popen(  # noqa: S603 - our own script, in the folder that the user named
            [node, str(_WEB), str(folder.resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, name: str, path: Path, inputs: "Inputs") -> Run:
        """Return a model that is in a file."""
        packed = {
            key: {"type": str(a.dtype), "shape": list(a.shape), "data": base64.b64encode(a.tobytes()).decode()}
            for key, a in inputs.items()
        }
        self._ask({"load": name, "path": str(path), "inputs": packed})
        return lambda count: [float(ms) for ms in self._ask({"run": name, "count": count})["ms"]]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                if "error" in answer:
                    raise PeerError(f"onnxruntime-web: {answer['error']}")
                return answer
        raise PeerError("onnxruntime-web ended")


def interleaved(engines: Mapping[str, Run], rounds: int, round_ms: float = ROUND_MS) -> dict[str, list[list[float]]]:
    """Return the milliseconds of each call of each engine in each round; in a round, each runs for about `round_ms`."""
    counts = {}
    for name, run in engines.items():
        run(2)
        counts[name] = max(1, min(1000, int(round_ms / max(statistics.median(run(3)), 1e-4))))
    times: dict[str, list[list[float]]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, run in engines.items():
            times[name].append(run(counts[name]))
    return times
