"""Runs a compiled model on the device runtime, and compares with another engine."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from agent.runtime.instance import Caps, load_model
from compiler.pipeline import CompiledModel

Array = NDArray[Any]
MEMORY_CAP_BYTES = 1 << 30


class Runner:
    """A compiled model on the device runtime."""

    def __init__(self, compiled: CompiledModel) -> None:
        spec = self.spec = compiled.spec
        caps = Caps(memory_bytes=MEMORY_CAP_BYTES, deadline_ms=60_000)
        self._model = load_model(compiled.wasm, spec.inputs, spec.outputs, caps, stateful=spec.stateful)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._model.close()

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Return the outputs for inputs by name."""
        raw = self._model.infer([np.ascontiguousarray(inputs[t.name]).tobytes() for t in self.spec.inputs])
        return [
            np.frombuffer(data, _dtype(tensor.datatype)).reshape(tensor.shape)
            for data, tensor in zip(raw, self.spec.outputs, strict=True)
        ]

    def reset(self) -> None:
        """Forget all state."""
        self._model.reset()


def run_compiled(compiled: CompiledModel, inputs: Mapping[str, Array]) -> list[Array]:
    """Return the outputs of a compiled model for inputs by name."""
    with Runner(compiled) as runner:
        return runner.run(inputs)


def allowed(want: Array, relative: float = 1e-4, absolute: float = 1e-5) -> float:
    """Return the tolerance for a tensor: `relative` times its greatest magnitude plus `absolute`."""
    finite = np.abs(want[np.isfinite(want)])
    return relative * float(finite.max(initial=0)) + absolute


def worst_error(got: Sequence[Array], want: Sequence[Array]) -> float:
    """Return the greatest |a - b| of all floats, as a multiple of what the tolerance allows there."""
    floats = [(a, b) for a, b in zip(got, want, strict=True) if b.dtype.kind == "f"]
    return max(float(np.abs(a - b).max(initial=0)) / allowed(b) for a, b in floats)


def assert_close(
    got: Sequence[Array], want: Sequence[Array], *, relative: float = 1e-4, absolute: float = 1e-5
) -> None:
    """Hold |a - b| against the tolerance of each tensor; what is no float must be equal."""
    assert len(want) == len(got)
    for a, b in zip(got, want, strict=True):
        assert (b.shape, b.dtype) == (a.shape, a.dtype)
        if b.dtype.kind != "f":
            np.testing.assert_array_equal(a, b)
            continue
        np.testing.assert_allclose(a, b, rtol=0, atol=allowed(b, relative, absolute))


def _dtype(datatype: str) -> np.dtype[Any]:
    names = {"BOOL": "bool", "FP32": "float32", "FP64": "float64"}
    return np.dtype(names.get(datatype, datatype.lower()))
