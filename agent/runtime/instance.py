"""A model that is loaded: it runs, and it survives whatever its module does.

A call ends with the outputs or with a ModelError, and the next call finds a sound instance.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from agent.runtime.binary import ModuleFacts, parse_declarations
from agent.runtime.cache import ModuleCache
from agent.runtime.compiled import Compiled
from agent.runtime.errors import (
    AbiError,
    InputError,
    MemoryCapError,
    ModelClosedError,
    ModelError,
    ProcessGoneError,
    StatusError,
)
from agent.runtime.module import check_abi, inspect
from agent.runtime.process import ProcessSandbox
from agent.runtime.sandbox import MAX_TABLE_ELEMENTS, MAX_TABLES, Caps, Terms, ThreadSandbox
from agent.runtime.zygote import Zygote
from protocol.tensors import TensorSpec

__all__ = ["Caps", "LoadedModel", "Sandbox", "load_model"]


class Sandbox(Protocol):
    """One instance of a module, at some isolation level. Used by one thread at a time."""

    @property
    def can_reset(self) -> bool:
        """Whether the module has a reset of its own."""

    @property
    def memory_bytes(self) -> int:
        """How much memory the instance has now; safe to read from any thread."""

    def infer(self, inputs: Sequence[bytes]) -> list[bytes]:
        """Run the model; the instance is sound after an InputError or StatusError, not after another ModelError."""

    def reset(self) -> None:
        """Forget all state between calls; raises ModelError."""

    def check_addresses(self) -> None:
        """Raise AbiError if a tensor has moved."""

    def close(self) -> None:
        """Give everything back. Closing twice does nothing."""


def load_model(  # noqa: PLR0913 - the ABI, the caps and the cache of one module; each is named by its type
    wasm: bytes,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    caps: Caps,
    *,
    stateful: bool = False,
    cache: ModuleCache | None = None,
    zygote: Zygote | None = None,
) -> "LoadedModel":
    """Compile `wasm`, or take it from `cache`, and return it ready to run; raises ModelError.

    With a `zygote` the model runs in a process of its own (isolation level `process`), else in this one (`thread`).
    """
    compiled = cache.find(wasm, caps.stack_kib) if cache else None
    with contextlib.ExitStack() as stack:
        if compiled:
            stack.callback(compiled.close)
        # What was compiled once was valid then, and its bytes are the same.
        _check_terms(parse_declarations(wasm) if compiled else inspect(wasm), caps, stateful=stateful)
        if compiled is None:
            compiled = cache.add(wasm, caps.stack_kib) if cache else Compiled.compile(wasm, caps.stack_kib)
        stack.pop_all()
    terms = Terms(inputs=inputs, outputs=outputs, caps=caps)
    return LoadedModel(_opener(compiled, terms, zygote), compiled.close, terms, is_stateful=stateful)


def _opener(compiled: Compiled, terms: Terms, zygote: Zygote | None) -> Callable[[], Sandbox]:
    if zygote is None:
        return lambda: ThreadSandbox(compiled.module, terms)
    return lambda: ProcessSandbox(zygote, compiled.code_fd(), terms)


def _check_terms(facts: ModuleFacts, caps: Caps, *, stateful: bool) -> None:
    """Raise ModelError unless the module, by what it declares, can be what it is to be."""
    check_abi(facts)
    if stateful and "fleet_reset" not in facts.exports:
        raise AbiError("expected a stateful model to export fleet_reset, it does not")
    if facts.memory_min_bytes > caps.memory_bytes:
        raise MemoryCapError(
            f"expected at most {caps.memory_bytes:,} bytes of memory, "
            f"got a module that starts with {facts.memory_min_bytes:,}"
        )
    if len(facts.tables) > MAX_TABLES or max(facts.tables, default=0) > MAX_TABLE_ELEMENTS:
        raise MemoryCapError(
            f"expected at most {MAX_TABLES} tables of at most {MAX_TABLE_ELEMENTS:,} elements, "
            f"got a module with {len(facts.tables)}, the largest of {max(facts.tables):,}"
        )


class LoadedModel:
    """A model ready to run. Safe to use from many threads; its calls run one after another.

    After a trap or a missed deadline the next call runs on a fresh instance. One that was lost between calls costs no
    call, unless it remembered something.
    """

    def __init__(
        self, open_sandbox: Callable[[], Sandbox], release: Callable[[], None], terms: Terms, *, is_stateful: bool
    ) -> None:
        self.inputs = terms.inputs
        self.outputs = terms.outputs
        self.caps = terms.caps
        self._open_sandbox = open_sandbox
        self._release = release
        self._is_stateful = is_stateful
        self._peak_bytes = 0
        self._lock = threading.Lock()
        self._is_closed = False
        self._sandbox: Sandbox | None = None
        self.state = object()
        """Stands for what the model remembers: another object once it forgot, by a reset or with its instance."""
        try:
            self._sound_sandbox()
        except BaseException:
            release()
            raise

    @property
    def memory_bytes(self) -> int:
        """The most memory that the module has taken so far."""
        sandbox = self._sandbox
        return max(self._peak_bytes, sandbox.memory_bytes) if sandbox else self._peak_bytes

    def infer(self, inputs: Sequence[bytes]) -> list[bytes]:
        """Run the model on one raw little-endian tensor for each input; return one for each output.

        Raises:
            InputError: the tensors do not fit; the model did not run.
            StatusError, TrapError, DeadlineError: the model ran, and failed.
            ProcessGoneError: a stateful model did not run, and has forgotten everything.
        """
        # `with self._lock:` written out, which saves a twentieth of the whole call.
        self._lock.acquire()
        try:
            return (self._sandbox or self._sound_sandbox()).infer(inputs)
        except (InputError, StatusError):
            raise
        except ModelError as error:
            self._discard()
            if not isinstance(error, ProcessGoneError) or self._is_stateful:
                raise
            return self._infer_anew(inputs)
        finally:
            self._lock.release()
            if self._is_closed:
                self.close()

    def reset(self) -> None:
        """Forget all state between calls."""
        with self._exclusive():
            sandbox = self._sound_sandbox()
            if not sandbox.can_reset:
                self._discard()
                self._sound_sandbox()  # now, and not when a caller waits for it
                return
            self.state = object()
            try:
                sandbox.reset()
            except ModelError as error:
                self._discard()
                if not isinstance(error, ProcessGoneError):  # else all is forgotten, as was asked
                    raise

    def check_addresses(self) -> None:
        """Raise AbiError if the model has moved a tensor since it was instantiated."""
        with self._exclusive():
            self._sound_sandbox().check_addresses()

    def close(self) -> None:
        """Refuse further calls and give the memory back: now, or when the running call ends.

        Never waits for a call. Closing twice does nothing.
        """
        self._is_closed = True
        if self._lock.acquire(blocking=False):
            try:
                self._free()
            finally:
                self._lock.release()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        finally:
            # Whoever closed the model while this call held the lock left the rest to it.
            if self._is_closed:
                self.close()

    def _infer_anew(self, inputs: Sequence[bytes]) -> list[bytes]:
        try:
            return self._sound_sandbox().infer(inputs)
        except (InputError, StatusError):
            raise
        except ModelError:
            self._discard()
            raise

    def _free(self) -> None:
        self._discard()
        self._release()

    def _sound_sandbox(self) -> Sandbox:
        if self._is_closed:
            raise ModelClosedError("the model is closed")
        if self._sandbox is None:
            self._sandbox = self._open_sandbox()
        return self._sandbox

    def _discard(self) -> None:
        self.state = object()
        if self._sandbox is not None:
            self._peak_bytes = self.memory_bytes
            self._sandbox.close()
            self._sandbox = None
