"""What runs a model in a benchmark: the device runtime, onnxruntime, and onnxruntime-web in Node; one thread each."""

import base64
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from agent.runtime.instance import Caps, load_model
from compiler import CompiledModel
from protocol.tensors import TensorSpec

Inputs = Mapping[str, NDArray[np.generic]]
Run = Callable[[int], list[float]]
"""Runs a model a number of times and returns the milliseconds of each."""

PEERS = Path(__file__).parent / "peers"
_BYTE = (TensorSpec(name="byte", datatype="UINT8", shape=(1,)),)


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


def ours(compiled: CompiledModel, inputs: Inputs) -> Run:
    """Return a compiled model as a device runs it: with a deadline, inputs copied in and outputs copied out."""
    spec = compiled.spec
    model = load_model(compiled.wasm, spec.inputs, spec.outputs, Caps(memory_bytes=1 << 31, deadline_ms=60_000))
    raw = [inputs[tensor.name].tobytes() for tensor in spec.inputs]
    return timed(lambda: model.infer(raw))


def load(wasm: bytes) -> Run:
    """Return a module that does a fixed amount of work."""
    model = load_model(wasm, _BYTE, _BYTE, Caps(deadline_ms=60_000))
    return timed(lambda: model.infer([b"\0"]))


def native(model: bytes, inputs: Inputs) -> Run:
    """Return a model in onnxruntime with the widest vectors of the machine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = dict(inputs)
    return timed(lambda: session.run(None, feeds))


class Web:
    """onnxruntime-web in a Node process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["node", "web.mjs"], cwd=PEERS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, name: str, path: Path, inputs: Inputs) -> Run:
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
                    raise RuntimeError(f"onnxruntime-web: {answer['error']}")
                return answer
        raise RuntimeError("onnxruntime-web ended; is it set up? run `make peers`")


def interleaved(engines: Mapping[str, Run], rounds: int, round_ms: float) -> dict[str, list[float]]:
    """Return the median milliseconds of each engine in each round; in a round, each runs for about `round_ms`."""
    counts = {}
    for name, run in engines.items():
        run(2)
        counts[name] = max(1, min(1000, int(round_ms / max(statistics.median(run(3)), 1e-4))))
    medians: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, run in engines.items():
            medians[name].append(statistics.median(run(counts[name])))
    return medians
