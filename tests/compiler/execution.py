"""Runs a compiled model on the device runtime, and compares with another engine."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.runtime.instance import Caps, load_model
from compiler.pipeline import CompiledModel

Array = NDArray[Any]
MEMORY_CAP_BYTES = 1 << 30


def run_compiled(compiled: CompiledModel, inputs: Mapping[str, Array]) -> list[Array]:
    """Return the outputs of a compiled model for inputs by name."""
    spec = compiled.spec
    caps = Caps(memory_bytes=MEMORY_CAP_BYTES, deadline_ms=60_000)
    model = load_model(compiled.wasm, spec.inputs, spec.outputs, caps, stateful=spec.stateful)
    try:
        raw = model.infer([np.ascontiguousarray(inputs[t.name]).tobytes() for t in spec.inputs])
    finally:
        model.close()
    return [
        np.frombuffer(data, _dtype(tensor.datatype)).reshape(tensor.shape)
        for data, tensor in zip(raw, spec.outputs, strict=True)
    ]


def assert_close(
    got: Sequence[Array], want: Sequence[Array], *, relative: float = 1e-4, absolute: float = 1e-5
) -> None:
    """Hold |a - b| against `relative` times the greatest |b| of the tensor plus `absolute`; others must be equal."""
    assert len(want) == len(got)
    for a, b in zip(got, want, strict=True):
        assert (b.shape, b.dtype) == (a.shape, a.dtype)
        if b.dtype.kind != "f":
            np.testing.assert_array_equal(a, b)
            continue
        finite = np.abs(b[np.isfinite(b)])
        allowed = relative * float(finite.max(initial=0)) + absolute
        np.testing.assert_allclose(a, b, rtol=0, atol=allowed)


def _dtype(datatype: str) -> np.dtype[Any]:
    names = {"BOOL": "bool", "FP32": "float32", "FP64": "float64"}
    return np.dtype(names.get(datatype, datatype.lower()))
