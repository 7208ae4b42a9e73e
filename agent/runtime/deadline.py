"""The clock by which calls are stopped.

An engine counts epochs; compiled code compares the count with its store's deadline at every loop and function entry.
The clock advances the count every PERIOD_MS while calls run, and rests when none do.

The ticks come from a POSIX timer whose own thread calls straight into the engine: a deadline fires even when another
Python thread holds the interpreter lock. A Python thread that only looks for rest wakes once a second while calls run.
"""

import ctypes
import os
import threading
from typing import Final

from wasmtime import Engine
from wasmtime import _ffi as ffi

from agent.runtime.errors import TimerError

PERIOD_MS: Final = 10
"""A tick is a thread that is born and dies, some 80 µs: about a hundredth of a processor while calls run."""
IDLE_CHECK_S: Final = 1.0
_STACK_BYTES: Final = 256 * 1024
"""Of each of the timer's threads, which would otherwise be as large as the limit on the main thread's stack."""
_ATTRIBUTES_BYTES: Final = 256
"""More than a `pthread_attr_t` has anywhere: 56 on x86-64, 64 on AArch64."""
_SIGEV_THREAD: Final = 2
_CLOCK_MONOTONIC: Final = 1


class _SigEvent(ctypes.Structure):
    """`struct sigevent` of Linux on 64-bit machines, with the members of SIGEV_THREAD."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_byte * 32),
    )


class _TimerSpec(ctypes.Structure):
    """`struct itimerspec`: the interval, then the first expiry."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


class Watch:
    """One store's sign on the clock: inside `with watch:` the clock ticks."""

    __slots__ = ("clock", "is_running")

    def __init__(self, clock: "EpochClock") -> None:
        self.clock = clock
        self.is_running = False
        clock.add(self)

    def __enter__(self) -> None:
        # In this order: see EpochClock.
        self.is_running = True
        if not self.clock.is_ticking:
            self.clock.start()

    def __exit__(self, *_: object) -> None:
        self.is_running = False

    def close(self) -> None:
        """Leave the clock; the store runs no more."""
        self.clock.remove(self)


class EpochClock:
    """Advances the epoch of one engine while calls run.

    A caller sets its watch's `is_running` and then reads `is_ticking`; the thread that lets the clock rest clears
    `is_ticking` and then reads the watches. One of the two always sees the other: no call runs without a clock.
    """

    def __init__(self, engine: Engine) -> None:
        self.is_ticking = False
        self._engine = engine
        self._timer: ctypes.c_void_p | None = None
        self._rests: threading.Thread | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._watches: set[Watch] = set()

    def add(self, watch: Watch) -> None:
        """Count the calls of `watch` among those that need ticks."""
        with self._lock:
            self._watches.add(watch)

    def remove(self, watch: Watch) -> None:
        """Forget `watch`, which runs no more."""
        with self._lock:
            self._watches.discard(watch)

    def start(self) -> None:
        """Begin to tick, unless it does already; called when `is_ticking` is false.

        Raises TimerError where the system has no timer or no thread for it; another call may find one.
        """
        with self._lock:
            if self.is_ticking:
                return
            try:
                self._tick()
            except (OSError, RuntimeError) as error:  # the latter for want of a thread
                raise TimerError(
                    f"expected a timer that stops models which run too long, the system gives none: {error}. "
                    "Allow the agent more pending signals (ulimit -i, LimitSIGPENDING= of its service) and threads "
                    "(ulimit -u, TasksMax=), then deploy the release again"
                ) from error
            self.is_ticking = True
        self._wake.set()

    def _tick(self) -> None:
        if self._rests is None:
            rests = threading.Thread(target=self._rest_when_idle, name="epoch-clock", daemon=True)
            rests.start()
            self._rests = rests
        if self._timer is None:
            self._timer = _create_timer(self._engine)
        _set_period(self._timer, PERIOD_MS)

    def _rest_when_idle(self) -> None:
        pause = threading.Event()
        while True:
            self._wake.wait()
            pause.wait(IDLE_CHECK_S)
            with self._lock:
                self.is_ticking = False
                if any(watch.is_running for watch in self._watches):
                    self.is_ticking = True
                    continue
                assert self._timer is not None
                _set_period(self._timer, 0)
                self._wake.clear()


def ticks_for(deadline_ms: int) -> int:
    """Return after how many ticks a call has run for `deadline_ms`.

    The first may come at once, and so may one that was due before: on a busy machine ticks are late, by less than a
    period as a rule. A call that met a later one ends as much earlier.
    """
    return -(-deadline_ms // PERIOD_MS) + 2


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    # Before glibc 2.34 the timers were in a library of their own.
    return libc if hasattr(libc, "timer_create") else ctypes.CDLL("librt.so.1", use_errno=True)


def _create_timer(engine: Engine) -> ctypes.c_void_p:
    libc, attributes = _libc(), (ctypes.c_uint64 * (_ATTRIBUTES_BYTES // 8))()
    libc.pthread_attr_init(attributes)
    libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(_STACK_BYTES))
    event = _SigEvent(
        value=ctypes.cast(engine.ptr(), ctypes.c_void_p).value,
        notify=_SIGEV_THREAD,
        function=ctypes.cast(ffi.dll.wasmtime_engine_increment_epoch, ctypes.c_void_p).value,
        attributes=ctypes.addressof(attributes),
    )
    timer = ctypes.c_void_p()
    failed = libc.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer))
    libc.pthread_attr_destroy(attributes)  # the timer has a copy
    if failed:
        raise _failure("timer_create")
    return timer


def _set_period(timer: ctypes.c_void_p, period_ms: int) -> None:
    period_ns = period_ms * 1_000_000
    spec = _TimerSpec(interval_ns=period_ns, first_ns=period_ns)
    if _libc().timer_settime(timer, 0, ctypes.byref(spec), None):
        raise _failure("timer_settime")


def _failure(function: str) -> OSError:
    errno = ctypes.get_errno()
    return OSError(errno, f"{function}: {os.strerror(errno)}")
