"""Runs a function of four floats over many: a model whose only layer is that function."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from agent.runtime.instance import Caps, load_model
from compiler.wasm import PAGE_BYTES, V128, Function, Module, ValueType, i32, v128
from protocol.tensors import TensorSpec

Floats = NDArray[np.float32]


def apply(build: Callable[[Function, V128], V128], x: Floats) -> Floats:
    """Return what the code that `build` writes makes of each element of `x`."""
    count = -(-len(x) // 4) * 4
    padded = np.zeros(count, np.float32)
    padded[: len(x)] = x
    module = Module()
    pages = -(-8 * count // PAGE_BYTES)
    module.memory(pages, pages, export="memory")
    for name, address in (("fleet_input", 0), ("fleet_output", 4 * count)):
        locate = module.function(name, [ValueType.I32], export=name)
        locate.param_i32()
        locate.leave(i32.const(address))
    f = module.function("apply", [ValueType.I32], export="fleet_infer")
    address, n = f.i32(), f.i32()
    with f.repeat(n, count // 4):
        f.do(v128.store(address, build(f, v128.load(address)), 4 * count))
        address.advance(16)
    f.leave(i32.const(0))
    tensor = TensorSpec(name="x", datatype="FP32", shape=(count,))
    model = load_model(module.encode(), (tensor,), (tensor,), Caps(deadline_ms=60_000))
    try:
        [raw] = model.infer([padded.tobytes()])
    finally:
        model.close()
    return np.frombuffer(raw, np.float32)[: len(x)]


def ulps(got: Floats, want: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each result is off, in units in the last place of the exact one."""
    spacing = np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)
    return np.abs(got.astype(np.float64) - want) / spacing
