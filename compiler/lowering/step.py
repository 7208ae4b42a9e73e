"""What is to be done, in order: steps that read and write buffers, and write their code when addresses are known."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from compiler.kernels.target import Target
from compiler.lowering.placement import Placement
from compiler.lowering.storing import Stored
from compiler.wasm import Effect, Function


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
