"""What is to be done, in order: steps that read and write buffers, and write their code when addresses are known."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from compiler.kernels.nest import Pointer, nest
from compiler.kernels.target import Target
from compiler.lowering.placement import Placement
from compiler.lowering.storing import Stored
from compiler.wasm import Effect, Function, I32Local, i32


class Emitter(Protocol):
    """What a step needs to write its code."""

    target: Target
    body: Function
    """The function of the layer."""

    def address(self, placement: Placement) -> int:
        """Return where the first element of a value lies."""

    def buffer_address(self, buffer: int) -> int:
        """Return where a buffer starts."""

    def kernel(self, spec: msgspec.Struct, write: Callable[[Function], None]) -> Function:
        """Return the function of a kernel, which is written once for each spec."""

    def do(self, effect: Effect) -> None:
        """Write code into the function of the layer."""

    def run(self, steps: "Sequence[Step]") -> None:
        """Write steps, as calls of the functions of their layers from the function of this one."""


class Step(msgspec.Struct, frozen=True):
    """One piece of work of a layer."""

    layer: str
    reads: tuple[int, ...]
    """Numbers of buffers."""
    writes: tuple[int, ...]
    emit: Callable[[Emitter], None]
    multiply_adds: int = 0
    may_overwrite: bool = False
    """Whether the first buffer that is written may be the first one that is read, if both lie alike."""
    blocks: "tuple[tuple[Step, ...], ...]" = ()
    """Steps inside this one: branches, or the body of a loop."""
    is_loop: bool = False


class Buffer(msgspec.Struct, frozen=True):
    """Memory of a value: a constant, or part of the arena while it is needed."""

    number: int
    size_bytes: int
    constant: bytes | None = None
    stored: Stored | None = None
    """How a constant is stored in the module, if not as it is."""


def each_image(e: Emitter, values: Sequence[Placement], write: Callable[[Sequence[I32Local]], None]) -> None:
    """Write code inside a loop over the images of a batch; `write` gets the address of the image in each value."""
    pointers = [e.body.variable(i32.const(e.address(value))) for value in values]
    moving = [Pointer(p, (value.byte_stride(0),)) for p, value in zip(pointers, values, strict=True)]
    nest(e.body, values[0].shape[:1], moving, lambda: write(pointers))
