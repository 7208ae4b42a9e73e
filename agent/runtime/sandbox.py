"""The isolation level `thread`: an instance of a module under hard caps, in this process.

The engine bounds its memory, stack and time. A sandbox that trapped or ran too long is not sound any more: close it
and make another.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Final, cast

import msgspec
from wasmtime import Func, Instance, Memory, Module, Store, Trap, WasmtimeError

from agent.runtime.call import Call
from agent.runtime.deadline import Watch, ticks_for
from agent.runtime.engine import engine_for
from agent.runtime.errors import (
    AbiError,
    DeadlineError,
    DeviceMemoryError,
    InputError,
    ModelError,
    StatusError,
    one_line,
)
from agent.runtime.stack import check_stack
from agent.runtime.traps import explain_trap
from protocol.limits import DEFAULT_DEADLINE_MS, DEFAULT_MEMORY_CAP_BYTES, DEFAULT_STACK_KIB
from protocol.tensors import TensorSpec

MAX_TABLES: Final = 8
MAX_TABLE_ELEMENTS: Final = 100_000
MIN_START_MS: Final = DEFAULT_DEADLINE_MS
"""What a start function may take at least: it runs once, and expands weights however short a call has to be. So may the
addresses of all tensors together: a start has three parts, the function, and the addresses asked for twice.
"""


class Caps(msgspec.Struct, frozen=True, kw_only=True):
    """What a model may take."""

    memory_bytes: int = DEFAULT_MEMORY_CAP_BYTES
    stack_kib: int = DEFAULT_STACK_KIB
    deadline_ms: int = DEFAULT_DEADLINE_MS


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a module is held to."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    caps: Caps


class ThreadSandbox:
    """A sound instance. Not safe to use from two threads at once.

    The views of its memory, where the tensors are, hold for its life: addresses are fixed by the ABI, and the engine
    never moves a memory.
    """

    memory_bytes: int
    _infer: Callable[[], int]
    _can_grow: bool

    def __init__(self, module: Module, terms: Terms) -> None:
        self._caps = terms.caps
        self._tensors = (*terms.inputs, *terms.outputs)
        self._input_count = len(terms.inputs)
        self._start_ms = max(terms.caps.deadline_ms, MIN_START_MS)
        clocked = engine_for(terms.caps.stack_kib)
        check_stack(terms.caps.stack_kib)
        self._store = Store(clocked.engine)
        self._watch = Watch(clocked.clock)
        try:
            self._open(module)
        except BaseException:
            self.close()
            raise

    def infer(self, inputs: Sequence[bytes | memoryview]) -> list[bytes]:
        """Run the model on one raw tensor for each input.

        Raises:
            InputError, StatusError: the instance is as sound as before.
            ModelError: it is not.
        """
        if len(inputs) != self._input_count:
            raise misfit(self._tensors[: self._input_count], inputs)
        views, index = self._inputs, 0
        try:
            for data in inputs:
                views[index][:] = data
                index += 1  # counted by hand: `zip` takes a tenth of the whole call
        except ValueError:
            raise misfit(self._tensors[: self._input_count], inputs) from None
        try:
            status = self._infer()
        except (Trap, WasmtimeError) as error:
            raise self._explain(error) from None
        finally:
            if self._can_grow:
                self.memory_bytes = self._memory.data_len(self._store)
        if status:
            raise StatusError(f"expected fleet_infer to return 0, it returned {status}", status=status)
        outputs = []
        for read in self._read_outputs:
            outputs.append(read())  # noqa: PERF401 - a comprehension costs one more call
        return outputs

    def reset(self) -> None:
        """Let the model forget all state; raises ModelError. Only for a module that exports `fleet_reset`."""
        assert self._reset is not None
        try:
            self._reset()
        except (Trap, WasmtimeError) as error:
            raise self._explain(error) from None

    @property
    def can_reset(self) -> bool:
        """Whether the module has a reset of its own."""
        return self._reset is not None

    def check_addresses(self) -> None:
        """Raise AbiError if the module no longer names the addresses that it named first."""
        for tensor, old, new in zip(self._tensors, self._addresses, self._read_addresses(), strict=True):
            if old != new:
                raise AbiError(
                    f"tensor {tensor.name!r}: expected one address for the life of an instance, "
                    f"got {old:#x}, then {new:#x}"
                )

    def close(self) -> None:
        """Give the memory back. Closing twice does nothing."""
        self._inputs: list[memoryview] = []
        self._read_outputs: list[Callable[[], bytes]] = []
        self._watch.close()
        self._store.close()

    def _open(self, module: Module) -> None:
        ticks = ticks_for(self._caps.deadline_ms)
        self._store.set_limits(
            memory_size=self._caps.memory_bytes,
            memories=1,
            instances=1,
            tables=MAX_TABLES,
            table_elements=MAX_TABLE_ELEMENTS,
        )
        self._store.set_epoch_deadline(ticks_for(self._start_ms))
        try:
            with self._watch:
                exports = Instance(self._store, module, []).exports(self._store)
        except Trap as error:
            raise explain_trap(error, self._start_ms, self._caps.stack_kib) from None
        except WasmtimeError as error:
            # What the module declares was held against its caps before: it is the machine that gives no more.
            raise DeviceMemoryError(
                f"expected enough free memory on the device for an instance of the module: {one_line(str(error))}. "
                "Free some memory on the device, or raise its limits (ulimit -v), then deploy the release again"
            ) from None
        self._memory = cast("Memory", exports["memory"])
        self.memory_bytes = self._memory.data_len(self._store)
        limits = self._memory.type(self._store).limits
        self._can_grow = limits.min != limits.max

        def call(name: str) -> Call:
            return Call(self._store, cast("Func", exports[name]), self._watch, ticks)

        # Bound methods: calling one costs less than calling an object.
        self._infer = call("fleet_infer").run
        self._reset = call("fleet_reset").run if "fleet_reset" in exports else None
        self._locate = call("fleet_input").run_with, call("fleet_output").run_with
        self._addresses = self._read_addresses()
        self.check_addresses()
        self._check_overlap()
        views = [self._view(t, a) for t, a in zip(self._tensors, self._addresses, strict=True)]
        self._inputs = views[: self._input_count]
        self._read_outputs = [view.tobytes for view in views[self._input_count :]]

    def _read_addresses(self) -> list[int]:
        locate_input, locate_output = self._locate
        calls = itertools.chain(
            ((locate_input, n) for n in range(self._input_count)),
            ((locate_output, n) for n in range(len(self._tensors) - self._input_count)),
        )
        # Of this thread's own time: each call has its deadline, and others may keep us from the interpreter in between.
        end_s = time.thread_time() + self._start_ms / 1000
        addresses = []
        for locate, index in calls:
            try:
                addresses.append(locate(index))
            except (Trap, WasmtimeError) as error:
                raise self._explain(error) from None
            if time.thread_time() > end_s:
                raise DeadlineError(f"stopped: expected the addresses of all tensors within {self._start_ms:,} ms")
        return addresses

    def _view(self, tensor: TensorSpec, address: int) -> memoryview:
        past_end = address + tensor.size_bytes - self.memory_bytes
        if past_end > 0:
            raise AbiError(
                f"tensor {tensor.name!r}: expected {tensor.size_bytes:,} bytes within the memory of "
                f"{self.memory_bytes:,} bytes, but from address {address:#x} they end {past_end:,} bytes behind it"
            )
        return memoryview(self._memory.get_buffer_ptr(self._store, tensor.size_bytes, address)).cast("B")

    def _check_overlap(self) -> None:
        spans = sorted(
            (address, address + tensor.size_bytes, tensor.name)
            for tensor, address in zip(self._tensors[: self._input_count], self._addresses, strict=False)
        )
        for (_, end, left), (start, _, right) in itertools.pairwise(spans):
            if start < end:
                raise AbiError(f"inputs {left!r} and {right!r}: expected memory of their own, they overlap")

    def _explain(self, error: Trap | WasmtimeError) -> ModelError:
        if isinstance(error, Trap):
            return explain_trap(error, self._caps.deadline_ms, self._caps.stack_kib)
        return ModelError(f"the engine refused the call: {one_line(str(error))}")


def misfit(tensors: tuple[TensorSpec, ...], inputs: Sequence[bytes | memoryview]) -> InputError:
    """Return the error that says how `inputs` differ from what `tensors` take."""
    if len(inputs) != len(tensors):
        names = ", ".join(tensor.name for tensor in tensors)
        return InputError(f"expected {len(tensors)} inputs ({names}), got {len(inputs)}")
    return InputError(
        "; ".join(
            f"input {tensor.name!r}: expected {tensor.size_bytes:,} bytes "
            f"({tensor.datatype} {list(tensor.shape)}), got {len(data):,}"
            for tensor, data in zip(tensors, inputs, strict=True)
            if len(data) != tensor.size_bytes
        )
    )
