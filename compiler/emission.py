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
from compiler.kernels.target import Target
from compiler.lowering.arena import ArenaPlan, aligned, plan_arena
from compiler.lowering.lowering import Lowered
from compiler.lowering.placement import Placement
from compiler.lowering.step import Step
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
        constants = [b for b in self._lowered.buffers if b.constant is not None]
        if constants:
            self._module.data(GUARD_BYTES, self._constant_bytes())
        return Emitted(
            wasm=self._module.encode(),
            arena=self._arena,
            constant_bytes=sum(b.size_bytes for b in constants),
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
        for buffer in self._lowered.buffers:
            if buffer.constant is not None:
                self._addresses[buffer.number] = self._end
                self._end += aligned(buffer.size_bytes)
        self._end = aligned(self._end)
        for number, offset in self._arena.offsets.items():
            self._addresses[number] = self._end + offset
        self._end += self._arena.size_bytes

    def _constant_bytes(self) -> bytes:
        parts: list[bytes] = []
        for buffer in self._lowered.buffers:
            if buffer.constant is not None:
                parts += (buffer.constant, bytes(aligned(buffer.size_bytes) - buffer.size_bytes))
        return b"".join(parts)

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
