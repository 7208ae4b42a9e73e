"""Runs one kernel: operands in memory, the kernel's function called with their addresses, its output read back."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.runtime.instance import Caps, load_model
from compiler.wasm import PAGE_BYTES, Function, Module, ValueType, i32
from protocol.tensors import TensorSpec

Array = NDArray[Any]
GUARD = 64


def run_kernel(
    write: Callable[[Function], None],
    inputs: Sequence[Array],
    output: Array,
    *,
    offsets: Sequence[int] = (),
    is_output_first: bool = True,
) -> Array:
    """Return what the kernel leaves in memory where `output` was; `offsets` are added to the inputs' addresses."""
    places, end = [], GUARD
    for array in (output, *inputs):
        places.append(end)
        end += -(-max(array.nbytes, 1) // GUARD) * GUARD + GUARD
    module = Module()
    pages = -(-end // PAGE_BYTES)
    module.memory(pages, pages, export="memory")
    for place, array in zip(places[1:], inputs, strict=True):
        module.data(place, array.tobytes())
    module.data(places[0], output.tobytes())
    moved = [place + offset for place, offset in zip(places[1:], offsets or [0] * len(inputs), strict=True)]

    def work(infer: Function) -> None:
        kernel = module.function("kernel")
        write(kernel)
        infer.do(kernel(*([places[0], *moved] if is_output_first else [*moved, places[0]])))

    data = run_module(module, work, places[0], max(output.nbytes, 1))
    return np.frombuffer(data, output.dtype, output.size).reshape(output.shape)


def run_module(module: Module, work: Callable[[Function], None], place: int, size_bytes: int) -> bytes:
    """Return what lies at `place` after a module with a memory did some work; its input is the byte at address 0."""
    for name, address in (("fleet_input", 0), ("fleet_output", place)):
        locate = module.function(name, [ValueType.I32], export=name)
        locate.param_i32()
        locate.leave(i32.const(address))
    infer = module.function("infer", [ValueType.I32], export="fleet_infer")
    work(infer)
    infer.leave(i32.const(0))
    none = TensorSpec(name="none", datatype="UINT8", shape=(1,))
    raw = TensorSpec(name="raw", datatype="UINT8", shape=(size_bytes,))
    model = load_model(module.encode(), (none,), (raw,), Caps(deadline_ms=20_000))
    try:
        [data] = model.infer([b"\0"])
    finally:
        model.close()
    return data
