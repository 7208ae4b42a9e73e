"""From steps to a module: constants and arena get addresses, kernels are written once, layers call them.

Memory from the bottom: a guard, so that no value lies at address 0; constants; the arena; room for kernels that read
a little beyond the end of a value. It never grows. Each layer is a function of its name, so that a trap shows it;
kernels have no names.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from compiler.errors import TooLargeError
from compiler.kernels.expansion import SCRATCH_BYTES, write_expansion
from compiler.kernels.target import Target
from compiler.kernels.walk import FLOAT_BYTES
from compiler.lowering.arena import ArenaPlan, aligned, plan_arena
from compiler.lowering.lowering import Lowered
from compiler.lowering.placement import Placement
from compiler.lowering.step import Step
from compiler.lowering.storing import Stored
from compiler.wasm import MAX_PAGES, PAGE_BYTES, Effect, Function, Module, ValueType, i32, memory

GUARD_BYTES: Final = 1024
SLACK_BYTES: Final = 256
"""Kernels read whole vectors, beyond the end of the last value."""


PROFILE_BYTES: Final = 8
"""The last input of a profiling module: which layer to run, and how often; all of them once for a negative number."""


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """What one layer became."""

    name: str
    multiply_adds: int
    function: int = 0
    """The number of its function in the module."""
    is_inner: bool = False
    """Whether it is part of another one, inside a branch or a loop."""


class Emitted(msgspec.Struct, frozen=True, kw_only=True):
    """A module, and how its memory is used."""

    wasm: bytes
    arena: ArenaPlan
    constant_bytes: int
    """What constants take in memory."""
    stored_bytes: int
    """What they take in the module."""
    memory_bytes: int
    layers: tuple[Layer, ...]


def emit(lowered: Lowered, target: Target, *, is_profiled: bool = False) -> Emitted:
    """Return the module that runs the steps, for profiling one by one if wanted; raises TooLargeError."""
    arena = plan_arena(
        lowered.buffers,
        lowered.steps,
        [p.buffer for p in (*lowered.inputs, *lowered.states)],
        [p.buffer for p in (*lowered.outputs, *lowered.states)],
    )
    return _ModuleWriter(lowered, target, arena).write(is_profiled=is_profiled)


class _ModuleWriter:
    """The emitter that steps write through."""

    def __init__(self, lowered: Lowered, target: Target, arena: ArenaPlan) -> None:
        self.target = target
        self._lowered = lowered
        self._arena = arena
        self._module = Module()
        self._kernels: dict[msgspec.Struct, Function] = {}
        self._addresses: dict[int, int] = {}
        self._end = GUARD_BYTES
        self._layers: dict[str, int] = {}
        """How many functions have the name of a layer."""
        self._found: dict[str, tuple[Function, int, bool]] = {}
        """The function of each layer by its name, its multiplications and additions, and whether it is inner."""
        self._depth = 0
        self._constants = [b for b in lowered.buffers if b.constant is not None]
        self._constants.sort(key=lambda buffer: buffer.stored is not None)  # those that are there from the start first
        self._place_buffers()

    def write(self, *, is_profiled: bool) -> Emitted:
        """Return the module."""
        profile = aligned(self._end)
        if is_profiled:
            self._end = profile + PROFILE_BYTES
        pages = -(-(self._end + SLACK_BYTES) // PAGE_BYTES)
        if pages > MAX_PAGES:
            raise TooLargeError(
                f"the model needs {pages * PAGE_BYTES:,} bytes of memory, more than the 4 GiB of a module"
            )
        self._module.memory(pages, pages, export="memory")
        inputs = [self.address(p) for p in self._lowered.inputs]
        self._write_lookup("fleet_input", [*inputs, profile] if is_profiled else inputs)
        self._write_lookup("fleet_output", [self.address(p) for p in self._lowered.outputs])
        infer = self._module.function("fleet_infer", [ValueType.I32], export="fleet_infer")
        self.body = self._module.function("all layers") if is_profiled else infer
        whole = self.body
        self.run(self._lowered.steps)
        if is_profiled:
            self._write_profile(infer, whole, profile)
        infer.leave(i32.const(0))
        if self._lowered.states:
            self._write_reset()
        stored_bytes = self._write_constants()
        return Emitted(
            wasm=self._module.encode(),
            arena=self._arena,
            constant_bytes=sum(b.size_bytes for b in self._constants),
            stored_bytes=stored_bytes,
            memory_bytes=pages * PAGE_BYTES,
            layers=tuple(
                Layer(name=name, multiply_adds=work, function=function.index, is_inner=is_inner)
                for name, (function, work, is_inner) in self._found.items()
            ),
        )

    def _write_profile(self, infer: Function, whole: Function, address: int) -> None:
        """Write what runs all layers, or one of them a number of times."""
        for function, _, is_inner in self._found.values():
            if not is_inner:
                self._module.slot(function)
        number, count = (i32.load(i32.const(address + offset)) for offset in (0, 4))
        with infer.if_(i32.lt_s(number, i32.const(0))):
            infer.do(whole())
            infer.return_(i32.const(0))
        with infer.if_(i32.gt_s(count, i32.const(0))), infer.repeat(infer.i32(), count):
            infer.do(self._module.call_slot(number, whole))

    def address(self, placement: Placement) -> int:
        """Return where the first element of a value lies."""
        return self._addresses[placement.buffer] + placement.offset * placement.dtype.item_bytes

    def buffer_address(self, buffer: int) -> int:
        """Return where a buffer starts."""
        return self._addresses[buffer]

    def kernel(self, spec: msgspec.Struct, write: Callable[[Function], None]) -> Function:
        """Return the function of a kernel."""
        if spec not in self._kernels:
            self._kernels[spec] = self._module.function("")
            write(self._kernels[spec])
        return self._kernels[spec]

    def do(self, effect: Effect) -> None:
        """Write code into the function of the layer."""
        self.body.do(effect)

    def _place_buffers(self) -> None:
        for buffer in self._constants:
            self._addresses[buffer.number] = self._end
            self._end += aligned(buffer.size_bytes)
        self._end = aligned(self._end)
        self._scratch = self._end
        for number, offset in self._arena.offsets.items():
            self._addresses[number] = self._end + offset
        is_any_stored = any(b.stored is not None for b in self._constants)
        self._end += max(self._arena.size_bytes, SCRATCH_BYTES if is_any_stored else 0)

    def _write_constants(self) -> int:
        """Write all constants, and what expands those that are stored smaller; return what they take in the module."""
        parts: list[bytes] = []
        for buffer in self._constants:
            if buffer.constant is not None and buffer.stored is None:
                parts += (buffer.constant, bytes(aligned(buffer.size_bytes) - buffer.size_bytes))
        if parts:
            self._module.data(GUARD_BYTES, b"".join(parts))
        stored = [(self._addresses[b.number], b.stored) for b in self._constants if b.stored is not None]
        if stored:
            self._write_start(stored)
        return sum(len(b.stored.payload) if b.stored else b.size_bytes for b in self._constants)

    def _write_start(self, constants: Sequence[tuple[int, Stored]]) -> None:
        """Write what makes floats of stored constants when the module starts, through a scratch in the arena."""
        segment = self._module.passive_data(b"".join(entry.payload for _, entry in constants))
        start = self._module.function("fleet_weights")
        source = 0
        for target, entry in constants:
            kernel, rows = entry.kernel, entry.rows
            expand = self.kernel(kernel, lambda f, k=kernel: write_expansion(f, k, self._scratch, segment))  # type: ignore[misc]
            times, head_bytes = rows.rows // kernel.rows_at_once, rows.heads * rows.width * FLOAT_BYTES
            start.do(expand(target, source, rows.groups, head_bytes, times, rows.width, entry.plane_bytes))
            source += len(entry.payload)
        start.do(memory.drop(segment))
        start.do(memory.fill(i32.const(self._scratch), 0, SCRATCH_BYTES))  # states are zero at first
        self._module.start(start)

    def _write_lookup(self, name: str, addresses: Sequence[int]) -> None:
        """Write the function that says where tensor number n lies."""
        function = self._module.function(name, [ValueType.I32], export=name)
        index = function.param_i32()
        for number, address in enumerate(addresses[1:], 1):
            with function.if_(i32.eq(index, i32.const(number))):
                function.return_(i32.const(address))
        function.leave(i32.const(addresses[0]))

    def _write_reset(self) -> None:
        """Write the function that makes every state zero, as it is at the start."""
        reset = self._module.function("fleet_reset", export="fleet_reset")
        for state in self._lowered.states:
            size_bytes = state.dtype.item_bytes * math.prod(state.shape)
            reset.do(memory.fill(i32.const(self.address(state)), 0, size_bytes))

    def run(self, steps: Sequence[Step]) -> None:
        """Write steps, as calls of the functions of their layers from the function of this one."""
        caller, last, name, work = self.body, None, "", 0
        self._depth += 1
        for step in steps:
            if step.layer != last:
                self._layers[step.layer] = self._layers.get(step.layer, 0) + 1
                number = self._layers[step.layer]
                name = step.layer if number == 1 else f"{step.layer}#{number}"
                self.body = self._module.function(name)
                caller.do(self.body())
                last = step.layer
                work = 0
            work += step.multiply_adds
            self._found[name] = self.body, work, self._depth > 1
            step.emit(self)
        self.body = caller
        self._depth -= 1
