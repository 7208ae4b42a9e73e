"""Calls into compiled code at the price of one foreign call.

The engine's Python interface boxes arguments and looks up types on every call (7 to 22 µs). An export's signature
never changes, so here all of that is done once: arguments lie ready in raw slots, and a call is one foreign call that
releases the interpreter lock (0.3 µs). The raw slots have room for what a `Call` expects and not for more, so each asks
the engine itself for the signature of its export.
"""

import ctypes
from typing import Final

from wasmtime import Func, Store, Trap, WasmtimeError
from wasmtime import _ffi as ffi

from agent.runtime.deadline import Watch
from agent.runtime.errors import AbiError

_VALUE_WORDS: Final = 2  # a raw value has the size of a vector: 16 bytes


# Functions of their own, without the argument types of the engine's interface: the arguments come converted already, by
# `from_param`. The first releases the interpreter lock; the second is over before that would pay.
_call_unchecked = ctypes.CDLL(str(ffi.filename))["wasmtime_func_call_unchecked"]
_call_unchecked.restype = ctypes.c_void_p
_set_epoch_deadline = ctypes.PyDLL(str(ffi.filename))["wasmtime_context_set_epoch_deadline"]
_set_epoch_deadline.restype = None
_pointer = ctypes.c_void_p.from_param


class Call:
    """One export of one instance, to be called with at most one i32 and returning at most one.

    Not safe to use from two threads at once, nor after its store is closed. Raises AbiError for another signature.
    """

    __slots__ = ("_arguments", "_deadline", "_function", "_raw", "_trap", "_watch")

    def __init__(self, store: Store, function: Func, watch: Watch, ticks: int) -> None:
        kind = function.type(store)
        for values in (kind.params, kind.results):
            if (names := [str(value) for value in values]) not in ([], ["i32"]):
                raise AbiError(f"expected a function that takes and returns at most one i32, got {len(names)} values")
        self._raw = (ctypes.c_uint64 * _VALUE_WORDS)()
        self._trap = ctypes.c_void_p()
        self._function = function
        self._watch = watch
        context = _pointer(ctypes.cast(store._context(), ctypes.c_void_p).value)  # noqa: SLF001 - no public way to it
        self._deadline = (context, ctypes.c_uint64.from_param(ticks))
        self._arguments = (
            context,
            _pointer(ctypes.addressof(function._func)),  # noqa: SLF001 - no public way to the raw function
            _pointer(ctypes.addressof(self._raw)),
            ctypes.c_size_t.from_param(1),
            _pointer(ctypes.addressof(self._trap)),
        )

    def run_with(self, argument: int) -> int:
        """Call the export with its argument and return its unsigned result; raises Trap or WasmtimeError."""
        self._raw[0] = argument
        return self.run()

    def run(self) -> int:
        """Call the export and return its unsigned result; raises Trap or WasmtimeError."""
        _set_epoch_deadline(*self._deadline)
        # What follows is `with watch:` written out, which saves a tenth of the whole call.
        watch = self._watch
        watch.is_running = True
        try:
            if not watch.clock.is_ticking:
                watch.clock.start()
            error = _call_unchecked(*self._arguments)
        finally:
            watch.is_running = False
        if error or self._trap:
            self._raise(error)
        return self._raw[0] & 0xFFFF_FFFF

    def _raise(self, error: int | None) -> None:
        if error:
            pointer = ctypes.cast(ctypes.c_void_p(error), ctypes.POINTER(ffi.wasmtime_error_t))
            raise WasmtimeError._from_ptr(pointer)  # noqa: SLF001 - the only way to take over a raw error
        trap = ctypes.cast(ctypes.c_void_p(self._trap.value), ctypes.POINTER(ffi.wasm_trap_t))
        self._trap.value = None
        raise Trap._from_ptr(trap)  # noqa: SLF001 - the only way to take over a raw trap
