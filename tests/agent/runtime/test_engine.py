"""The engines and their clock, at the isolation level `thread`."""

import ctypes
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from wasmtime import Func, Instance, Module, Store

from agent.runtime import Caps, LoadedModel, assemble, engine_features, load_model, runtime_name
from agent.runtime.call import Call
from agent.runtime.deadline import PERIOD_MS, EpochClock, Watch, ticks_for
from agent.runtime.engine import engine_for
from agent.runtime.errors import AbiError, DeadlineError
from protocol.limits import STACK_CLASSES_KIB
from protocol.tensors import TensorSpec

Load = Callable[[str, int], LoadedModel]
Text = Callable[..., str]
SPIN = "(loop $l (br $l)) (i32.const 0)"
SPIN_ON_NEGATIVE = (
    f"(if (result i32) (f32.lt (f32.load (i32.const 0)) (f32.const 0)) (then {SPIN}) (else (i32.const 0)))"
)


@pytest.fixture
def load(text: Callable[..., str]) -> Iterator[Callable[[str, int], LoadedModel]]:
    """Load a model from its body and its deadline, in this process."""
    loaded = []

    def make(infer: str, deadline_ms: int) -> LoadedModel:
        x = (TensorSpec(name="x", datatype="FP32", shape=(2,)),)
        loaded.append(load_model(assemble(text(infer)), x, x, Caps(deadline_ms=deadline_ms)))
        return loaded[-1]

    yield make
    for model in loaded:
        model.close()


def test_every_configuration_is_accepted_by_the_engine() -> None:
    """A bad one would abort the process, so a process of its own tries them."""
    code = f"from agent.runtime.engine import engine_for\nfor k in {STACK_CLASSES_KIB}: engine_for(k)"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode


def test_each_stack_class_has_one_engine() -> None:
    """Modules of one class share an engine, and there are no other classes."""
    assert engine_for(64) is engine_for(64)
    assert engine_for(64) is not engine_for(256)
    with pytest.raises(ValueError, match="expected stack_kib in"):
        engine_for(65)


@pytest.mark.parametrize("deadline_ms", [1, PERIOD_MS, PERIOD_MS + 1, 1000, 600_000])
def test_deadline_in_ticks_is_never_early(deadline_ms: int) -> None:
    """The first tick may come at once and one before it late, so two more than fit are allowed, and not many more."""
    ticks = ticks_for(deadline_ms)
    assert deadline_ms <= (ticks - 2) * PERIOD_MS < deadline_ms + PERIOD_MS


def test_capacity_is_named() -> None:
    """What a device reports, so that releases can be matched with it."""
    assert ("simd128", "relaxed_simd") == engine_features()
    assert runtime_name().startswith("wasmtime/")


def test_deadline_fires_while_another_thread_holds_the_interpreter(load: Load) -> None:
    """The clock does not need Python: a call is stopped although nothing else can run."""
    model = load(SPIN, 20)
    with pytest.raises(DeadlineError):
        model.infer([bytes(8)])  # the clock ticks from here on
    cpu_s: list[float] = []

    def call() -> None:
        before = time.thread_time()
        with pytest.raises(DeadlineError):
            model.infer([bytes(8)])
        cpu_s.append(time.thread_time() - before)

    thread = threading.Thread(target=call)
    thread.start()
    watches = engine_for(64).clock._watches
    while not any(watch.is_running for watch in watches) and thread.is_alive():
        time.sleep(0)
    ctypes.PyDLL(None).usleep(500_000)  # holds the interpreter lock
    thread.join()
    assert cpu_s[0] < 0.25


@pytest.mark.parametrize(
    "signature", ["(param i32 i32)", "(param f64)", "(result i32 i32)", "(param i32) (result i64)"]
)
def test_call_with_another_signature_is_refused_by_what_the_engine_says(signature: str) -> None:
    """The raw slots of a call would not have room for its values: memory of the agent would be overwritten."""
    clocked = engine_for(64)
    store, watch = Store(clocked.engine), Watch(clocked.clock)
    module = Module(clocked.engine, assemble(f'(module (func (export "f") {signature} unreachable))'))
    function = cast("Func", Instance(store, module, []).exports(store)["f"])
    with pytest.raises(AbiError, match="expected a function that takes and returns at most one i32"):
        Call(store, function, watch, 1)
    watch.close()


class NoClock(EpochClock):
    """A clock on a machine that gives it no timer."""

    def start(self) -> None:
        """Begin to tick."""
        raise OSError("no timer")


def test_call_that_finds_no_clock_does_not_run_and_is_over() -> None:
    """It is not counted among those that need ticks for ever after."""
    engine = engine_for(64).engine
    store, watch = Store(engine), Watch(NoClock(engine))
    module = Module(engine, assemble('(module (func (export "f") unreachable))'))
    call = Call(store, cast("Func", Instance(store, module, []).exports(store)["f"]), watch, 1)
    with pytest.raises(OSError, match="no timer"):
        call.run()
    assert not watch.is_running


def test_clock_rests_and_starts_again(load: Load) -> None:
    """A device that infers nothing is not woken, and the next call has a deadline all the same."""
    clock = engine_for(64).clock
    model = load(SPIN_ON_NEGATIVE, 30)
    model.infer([struct.pack("<2f", 1, 1)])
    limit = time.monotonic() + 20
    while clock.is_ticking and time.monotonic() < limit:
        time.sleep(0.05)
    assert not clock.is_ticking
    with pytest.raises(DeadlineError):
        model.infer([struct.pack("<2f", -1, 1)])


@pytest.mark.parametrize("thread", ["main", "another"])
@pytest.mark.parametrize(
    ("limit", "expected"),
    [("-S -s 512", "StackOverflowError"), ("-s 512", "StackLimitError"), ("-s 1280", "StackOverflowError")],
)
def test_small_stack_limit_of_the_system_does_not_let_a_model_crash_the_process(
    thread: str, limit: str, expected: str, text: Text
) -> None:
    """Recursion in the largest class is an error and not a crash; where the limit cannot be raised, it is refused."""
    wat = text("(call $deep) (i32.const 0)", more="(func $deep (call $deep))")
    code = f"""if True:
        import threading
        from agent.runtime import Caps, ModelError, assemble, load_model
        from protocol.tensors import TensorSpec
        x = (TensorSpec(name="x", datatype="FP32", shape=(2,)),)
        load_model(assemble({wat!r}), x, x, Caps(stack_kib=64)).close()
        def call():
            try:
                load_model(assemble({wat!r}), x, x, Caps(stack_kib=1024)).infer([bytes(8)])
            except ModelError as error:
                print(type(error).__name__)
        if {thread!r} == "main":
            call()
        else:
            other = threading.Thread(target=call)
            other.start()
            other.join()"""
    argv = ["/bin/sh", "-c", f'ulimit {limit}; exec "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (0, expected) == (done.returncode, done.stdout.strip())


@pytest.mark.parametrize("level", ["thread", "process"])
def test_large_stack_limit_of_the_system_does_not_stop_the_clock(level: str, text: Text) -> None:
    """The clock's threads have small stacks, whatever the limit: larger ones are more than a model's process may take.

    With the clock stopped, the process would be killed, and no layer named.
    """
    code = f"""if True:
        from contextlib import ExitStack
        from agent.runtime import Caps, ModelError, Zygote, assemble, load_model
        from protocol.tensors import TensorSpec
        x = (TensorSpec(name="x", datatype="FP32", shape=(2,)),)
        with ExitStack() as stack:
            zygote = stack.enter_context(Zygote()) if {level!r} == "process" else None
            model = load_model(assemble({text(SPIN)!r}), x, x, Caps(deadline_ms=100), zygote=zygote)
            try:
                model.infer([bytes(8)])
            except ModelError as error:
                print(type(error).__name__, error.function)
            model.close()"""
    argv = ["/bin/sh", "-c", 'ulimit -S -s 262144; exec "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (0, "DeadlineError run") == (done.returncode, done.stdout.strip()), done.stderr


def assert_no_timer_twice(code: str, cause: str) -> None:
    """Run a program that is refused a clock twice, and then gets one; it prints how it was refused."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert 0 == done.returncode, done.stderr
    lines = done.stdout.splitlines()
    assert 2 == len(lines), done
    for line in lines:
        assert line.startswith("no_timer expected a timer that stops models which run too long")
        assert cause in line
        assert "Allow the agent more pending signals (ulimit -i, LimitSIGPENDING= of its service)" in line


@pytest.mark.parametrize("level", ["thread", "process"])
def test_system_without_a_timer_is_not_the_models_fault(level: str, text: Text) -> None:
    """Without a clock no model runs; what the system does not give says nothing about the module."""
    code = f"""if True:
        import resource
        from contextlib import ExitStack
        from agent.runtime import Caps, ModelError, Zygote, assemble, load_model
        from protocol.tensors import TensorSpec
        x = (TensorSpec(name="x", datatype="FP32", shape=(2,)),)
        _, hard = resource.getrlimit(resource.RLIMIT_SIGPENDING)
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, hard))
        with ExitStack() as stack:
            zygote = stack.enter_context(Zygote()) if {level!r} == "process" else None
            for _ in range(2):
                try:
                    load_model(assemble({text()!r}), x, x, Caps(), zygote=zygote)
                except ModelError as error:
                    print(error.code, error)
            if zygote:
                zygote.close()  # the next one inherits the limit as it is then
            resource.setrlimit(resource.RLIMIT_SIGPENDING, (hard, hard))
            load_model(assemble({text()!r}), x, x, Caps(), zygote=zygote).close()"""
    assert_no_timer_twice(code, "timer_create: Resource temporarily unavailable")


def test_system_without_a_thread_for_the_clock_is_not_the_models_fault(text: Text) -> None:
    """As without a timer; when there are threads again, the next instance has its clock."""
    code = f"""if True:
        import os, resource
        from agent.runtime import Caps, ModelError, assemble
        from agent.runtime.engine import engine_for
        from agent.runtime.sandbox import Terms, ThreadSandbox
        from protocol.tensors import TensorSpec
        from wasmtime import Module
        x = (TensorSpec(name="x", datatype="FP32", shape=(2,)),)
        module = Module(engine_for(64).engine, assemble({text()!r}))
        if os.getuid() == 0:
            os.setuid(65534)  # root has as many threads as it likes
        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
        for _ in range(2):
            try:
                ThreadSandbox(module, Terms(inputs=x, outputs=x, caps=Caps()))
            except ModelError as error:
                print(error.code, error)
        resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
        ThreadSandbox(module, Terms(inputs=x, outputs=x, caps=Caps())).close()"""
    assert_no_timer_twice(code, "can't start new thread")
