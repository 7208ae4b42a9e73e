"""Models that misbehave: each is refused or stopped with a reason, and the good model beside it goes on serving."""

import contextlib
import math
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wasmtime import Instance, Module, WasmtimeError

from agent.runtime import Caps, LoadedModel, ModelError, assemble
from agent.runtime.deadline import PERIOD_MS
from agent.runtime.engine import engine_for
from agent.runtime.errors import (
    AbiError,
    CompileError,
    DeadlineError,
    MemoryCapError,
    StackOverflowError,
    StatusError,
    TrapError,
    UndeclaredImportError,
)
from agent.runtime.sandbox import Terms, ThreadSandbox
from protocol.limits import MAX_TENSORS
from protocol.tensors import TensorSpec

Load = Callable[..., LoadedModel]
Text = Callable[..., str]

PAGE = 65_536
QUICK = Caps(memory_bytes=1 << 20, deadline_ms=30)
SPIN = "(loop $l (br $l))"
ONCE_BAD = """(if (f32.lt (f32.load (i32.const 0)) (f32.const 0)) (then {}))
    (f32.store (i32.const 64) (f32.load (i32.const 0))) (i32.const 0)"""
"""Misbehaves on a negative input, else returns it."""


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


@pytest.fixture(autouse=True)
def bystander(load: Load, text: Text) -> Iterator[LoadedModel]:
    """A good model that is loaded before the bad one and must answer after it."""
    model = load(text())
    yield model
    assert [floats(2, 4)] == model.infer([floats(1, 2)])


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (SPIN, DeadlineError, "stopped in layer 'run': expected an answer within 30 ms"),
        ("(call $deep)", StackOverflowError, "stack overflow in layer 'deep': expected at most 64 KiB of stack"),
        ("unreachable", TrapError, "trap in layer 'run': unreachable code reached"),
        (
            "(drop (i32.div_u (i32.const 1) (i32.const 0)))",
            TrapError,
            "trap in layer 'run': integer divide by zero",
        ),
        ("(drop (i32.load (i32.const 65533)))", TrapError, "memory access out of bounds"),
        ("(drop (i32.load (i32.const -1)))", TrapError, "memory access out of bounds"),
        ("(memory.fill (i32.const 0) (i32.const 1) (i32.const -1))", TrapError, "memory access out of bounds"),
        ("(drop (i32.trunc_f32_s (f32.const nan)))", TrapError, "conversion to integer"),
        ("(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))", TrapError, "integer overflow"),
        ("(call_indirect (i32.const 5))", TrapError, "table access out of bounds"),
        ("(call_indirect (i32.const 1))", TrapError, "indirect call to an empty table entry"),
        ("(drop (call_indirect (result i32) (i32.const 0)))", TrapError, "another signature"),
    ],
)
def test_call_that_goes_wrong_is_stopped_and_the_next_one_is_fine(
    load: Load, text: Text, bad: str, error: type[ModelError], message: str
) -> None:
    """The error names the layer; the next call finds a sound instance."""
    more = """(func $deep (call $deep)) (table 2 funcref) (elem (i32.const 0) $deep)"""
    model = load(text(ONCE_BAD.format(bad), more=more), caps=QUICK)
    for _ in range(2):
        with pytest.raises(error, match=message):
            model.infer([floats(-1, 0)])
        assert [floats(3, 0)] == model.infer([floats(3, 0)])


def test_trap_names_the_layer_the_kind_and_the_place(load: Load, text: Text) -> None:
    """The function nearest to the trap is the layer, however deep the kernels called."""
    more = """(func $conv1 (param i32) (result i32) (i32.div_u (i32.const 1) (local.get 0)))"""
    model = load(text("(call $conv1 (i32.const 0))", more=more))
    with pytest.raises(TrapError) as caught:
        model.infer([bytes(8)])
    trap = caught.value
    assert ("trap", "integer_division_by_zero", "conv1") == (trap.code, trap.kind, trap.function)
    assert f"trap in layer 'conv1': integer divide by zero (at offset {trap.offset:#x} of the wasm file)" == str(trap)
    assert trap.offset > 0


def test_trap_without_names_still_has_a_place(load: Load, text: Text) -> None:
    """A stripped module traps in an unnamed function."""
    wasm = assemble(text("unreachable").replace("$run", "").replace("$i", ""))
    assert b"name" not in wasm
    model = load(wasm)
    with pytest.raises(TrapError, match="an unnamed function") as caught:
        model.infer([bytes(8)])
    assert caught.value.function is None


def test_hostile_function_name_does_no_harm_in_a_message(load: Load, text: Text) -> None:
    """A name of a module is shortened and cleaned before anybody reads it."""
    name = "evil\\n\\1b[2J" + "x" * 5000
    model = load(text(f'(call $"{name}") (i32.const 0)', more=f'(func $"{name}" unreachable)'))
    with pytest.raises(TrapError) as caught:
        model.infer([bytes(8)])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("stack_kib", [64, 256, 1024])
def test_recursion_ends_at_the_stack_of_its_class(load: Load, text: Text, stack_kib: int) -> None:
    """Each class has its own bound, also on the thread of a caller."""
    model = load(text("(call $deep) (i32.const 0)", more="(func $deep (call $deep))"), caps=Caps(stack_kib=stack_kib))
    caught: list[str] = []

    def call() -> None:
        with pytest.raises(StackOverflowError) as error:
            model.infer([bytes(8)])
        caught.append(str(error.value))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert [f"stack overflow in layer 'deep': expected at most {stack_kib} KiB of stack"] == caught


def test_larger_stack_class_allows_deeper_recursion(load: Load, text: Text) -> None:
    """The classes differ in what they allow."""
    count_down = (
        """(func $deep (param i32) (if (local.get 0) (then (call $deep (i32.sub (local.get 0) (i32.const 1))))))"""
    )
    wat = text("(call $deep (i32.const 9000)) (i32.const 0)", more=count_down)
    load(wat, caps=Caps(stack_kib=1024)).infer([bytes(8)])
    with pytest.raises(StackOverflowError):
        load(wat, caps=Caps(stack_kib=64)).infer([bytes(8)])


def test_growth_bomb_stops_at_the_cap(load: Load, text: Text) -> None:
    """A module gets all the memory that it may have and not a page more."""
    grow = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) (memory.size)"
    model = load(text(grow, memory="1"), caps=Caps(memory_bytes=10 * PAGE + 5))
    with pytest.raises(StatusError) as caught:
        model.infer([bytes(8)])
    assert 10 == caught.value.status
    assert 10 * PAGE == model.memory_bytes


def test_memory_that_starts_above_the_cap_is_refused(load: Load, text: Text) -> None:
    """The message has both numbers, before anything is allocated."""
    with pytest.raises(MemoryCapError, match=r"expected at most 131,072 bytes of memory, .* starts with 196,608"):
        load(text(memory="3"), caps=Caps(memory_bytes=2 * PAGE))


def test_declared_maximum_above_the_cap_is_no_fault(load: Load, text: Text) -> None:
    """What counts is what a module takes."""
    load(text(memory="1 65536"), caps=Caps(memory_bytes=PAGE)).infer([bytes(8)])


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ("1 2 shared", "threads must be enabled for shared memories"),
        ("i64 1", "memory64 must be enabled"),
        ("1)(memory 1", "multiple memories"),
    ],
)
def test_memories_of_other_kinds_are_refused(load: Load, text: Text, memory: str, message: str) -> None:
    """The caps hold for one plain memory; there is no other."""
    with pytest.raises(CompileError, match=message):
        load(text(memory=memory))


def test_atomic_wait_is_refused(load: Load, text: Text) -> None:
    """Nothing that cannot be interrupted is let in."""
    with pytest.raises(CompileError, match="threads support is not enabled"):
        load(text("(memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const -1))"))


@pytest.mark.parametrize(
    ("table", "message"),
    [("(table 100001 funcref)", "with 1, the largest of 100,001"), ("(table 1 externref)" * 9, "with 9, the largest")],
)
def test_tables_have_a_cap_too(load: Load, text: Text, table: str, message: str) -> None:
    """A table takes memory that the memory cap does not see."""
    with pytest.raises(MemoryCapError, match=f"at most 8 tables of at most 100,000 elements, got a module {message}"):
        load(text(more=table))
    load(text(more="(table 100000 funcref)" * 8)).infer([bytes(8)])


def test_table_that_grows_stops_at_the_cap(load: Load, text: Text) -> None:
    """Growing a table fails as growing a memory does."""
    grow = "(table.grow $t (ref.null func) (i32.const 1000000))"
    model = load(text(grow, more="(table $t 1 funcref)"))
    with pytest.raises(StatusError) as caught:
        model.infer([bytes(8)])
    assert 0xFFFF_FFFF == caught.value.status


def test_start_function_that_loops_is_stopped(load: Load, text: Text) -> None:
    """A deadline holds from the first instruction: that of a call, but at least a second, as it runs only once."""
    with pytest.raises(DeadlineError, match="layer 'begin': expected an answer within 1,000 ms"):
        load(text(more=f"(func $begin {SPIN}) (start $begin)"), caps=QUICK)


def test_start_function_that_traps_is_refused(load: Load, text: Text) -> None:
    """A module that cannot start is no model."""
    with pytest.raises(TrapError, match="layer 'begin'"):
        load(text(more="(func $begin unreachable) (start $begin)"))


def test_data_outside_the_memory_is_refused(load: Load, text: Text) -> None:
    """Data that does not fit stops the module from starting."""
    with pytest.raises(TrapError, match="out of bounds"):
        load(text(more='(data (i32.const 65535) "ab")'))


def test_table_elements_outside_the_table_are_refused(load: Load, text: Text) -> None:
    """As data outside the memory."""
    with pytest.raises(TrapError, match="table access out of bounds"):
        load(text(more="(table 1 funcref) (elem (i32.const 1) $run)"))


def test_a_store_has_room_for_one_instance(text: Text) -> None:
    """A model cannot ask for a second one, since it may import nothing; the engine would refuse it too."""
    module = Module(engine_for(64).engine, assemble(text()))
    tensors = (TensorSpec(name="x", datatype="FP32", shape=(2,)),)
    terms = Terms(inputs=tensors, outputs=tensors, caps=Caps())
    with (
        contextlib.closing(ThreadSandbox(module, terms)) as sandbox,
        pytest.raises(WasmtimeError, match="instance count too high"),
    ):
        Instance(sandbox._store, module, [])


@pytest.mark.parametrize("level", ["thread", "process"])
def test_machine_that_has_no_room_for_an_instance_is_not_the_models_fault(level: str, text: Text) -> None:
    """An instance that the system refuses says nothing about the module and its caps."""
    code = f"""if True:
        from contextlib import ExitStack
        from agent.runtime import Caps, ModelError, Zygote, assemble, load_model
        from protocol.tensors import TensorSpec
        x = (TensorSpec(name="x", datatype="FP32", shape=(2,)),)
        with ExitStack() as stack:
            zygote = stack.enter_context(Zygote()) if {level!r} == "process" else None
            try:
                load_model(assemble({text()!r}), x, x, Caps(), zygote=zygote)
            except ModelError as error:
                print(error.code, error)"""
    argv = ["/bin/sh", "-c", 'ulimit -v 3000000; exec "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert 0 == done.returncode, done.stderr
    assert done.stdout.startswith("out_of_memory expected enough free memory on the device for an instance"), done
    assert "Cannot allocate memory" in done.stdout


@pytest.mark.parametrize("which", ["input", "output"])
def test_address_function_that_loops_is_stopped(load: Load, text: Text, which: str) -> None:
    """Asking for an address is a call like any other."""
    with pytest.raises(DeadlineError):
        load(text(**{f"{which}_address": f"{SPIN} (i32.const 0)"}), caps=QUICK)


def test_addresses_that_all_take_long_are_stopped_together(load: Load, text: Text) -> None:
    """Each within its deadline, those of all tensors would hold an installation, or a start of the agent, for long."""
    tensors = tuple(TensorSpec(name=f"t{n}", datatype="FP32", shape=(2,)) for n in range(MAX_TENSORS))
    count = """(local $n i32) (loop $l (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $l (i32.lt_u (local.get $n) (i32.const 100000000)))) (i32.mul (local.get $i) (i32.const 8))"""
    with pytest.raises(DeadlineError, match="expected the addresses of all tensors within 1,000 ms"):
        load(text(input_address=count, output_address=count), inputs=tensors, outputs=tensors)


def test_reset_that_loops_is_stopped(load: Load, text: Text) -> None:
    """Forgetting has a deadline too, and leaves a fresh instance."""
    model = load(text(more=f'(func (export "fleet_reset") {SPIN})'), caps=QUICK, stateful=True)
    with pytest.raises(DeadlineError):
        model.reset()
    assert [floats(2, 2)] == model.infer([floats(1, 1)])


@pytest.mark.parametrize("address", ["65529", "65536", "-1", "-8", "0x7fffffff"])
@pytest.mark.parametrize("which", ["input", "output"])
def test_tensor_outside_the_memory_is_refused(load: Load, text: Text, which: str, address: str) -> None:
    """An address is believed only if the whole tensor lies within the memory."""
    with pytest.raises(AbiError, match="within the memory of 65,536 bytes"):
        load(text(**{f"{which}_address": f"(i32.const {address})"}))


def test_last_bytes_of_the_memory_are_usable(load: Load, text: Text) -> None:
    """The bound is exact."""
    load(text(output_address="(i32.const 65528)")).infer([bytes(8)])


def test_lying_tensor_spec_is_refused(load: Load, text: Text) -> None:
    """A spec that asks for more than the module has is found before the first call."""
    wasm = assemble(text())
    lie = TensorSpec(name="y", datatype="FP64", shape=(300, 300))
    small = TensorSpec(name="x", datatype="FP32", shape=(2,))
    for inputs, outputs in (((small,), (lie,)), ((lie,), (small,))):
        with pytest.raises(AbiError, match="expected 720,000 bytes within the memory"):
            load(wasm, inputs=inputs, outputs=outputs)


def test_inputs_that_overlap_are_refused(load: Load, text: Text) -> None:
    """A module that knows one input and a spec that names two do not belong together."""
    a, b = (TensorSpec(name=name, datatype="FP32", shape=(2,)) for name in "ab")
    with pytest.raises(AbiError, match="inputs 'a' and 'b': expected memory of their own"):
        load(text(), inputs=(a, b), outputs=(a,))


def test_address_that_changes_between_calls_is_refused(load: Load, text: Text) -> None:
    """Addresses are asked twice."""
    moving = "(global.set $n (i32.add (global.get $n) (i32.const 8))) (global.get $n)"
    with pytest.raises(AbiError, match="tensor 'y': expected one address for the life of an instance"):
        load(text(output_address=moving, more="(global $n (mut i32) (i32.const 64))"))


def test_imports_are_refused_on_loading(load: Load, text: Text) -> None:
    """A module that was never inspected is not run either."""
    with pytest.raises(UndeclaredImportError, match=r"wasi_snapshot_preview1\.proc_exit.*without WASI"):
        load(text().replace("(memory", '(import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))(memory', 1))


@pytest.mark.parametrize("export", ["memory", "fleet_input", "fleet_output", "fleet_infer"])
def test_missing_export_is_refused_on_loading(load: Load, text: Text, export: str) -> None:
    """Each export of the ABI is needed."""
    with pytest.raises(AbiError, match=f"missing: {export}"):
        load(text().replace(f'(export "{export}")', ""))


def test_nan_outputs_pass_through(load: Load, text: Text) -> None:
    """NaN is a number to us; whether it is a fault is for whoever knows the model."""
    model = load(text("(f32.store (i32.const 64) (f32.const nan)) (i32.const 0)"))
    first, second = struct.unpack("<2f", model.infer([bytes(8)])[0])
    assert (True, 0) == (math.isnan(first), second)


def test_ten_thousand_functions_are_fine(load: Load, text: Text) -> None:
    """Many small functions cost time to compile, nothing else."""
    functions = "".join(f"(func $f{n} (result i32) (i32.const {n}))" for n in range(10_000))
    load(text("(drop (call $f9999)) (i32.const 0)", more=functions)).infer([bytes(8)])


def test_module_of_fifty_megabytes_is_fine_within_its_memory_and_refused_without(load: Load, text: Text) -> None:
    """Data costs its memory, once; the cap sees it before anything is allocated."""
    size = 50_000_000
    segment = b"\0\x41\x80\x80\x04\x0b" + _leb(size) + bytes(size)  # at address 65536
    section = b"\x01" + segment
    wasm = assemble(text(memory="800 800")) + b"\x0b" + _leb(len(section)) + section
    assert [floats(2, 4)] == load(wasm, caps=Caps(memory_bytes=800 * PAGE)).infer([floats(1, 2)])
    with pytest.raises(MemoryCapError):
        load(wasm, caps=Caps(memory_bytes=799 * PAGE))


def _leb(value: int) -> bytes:
    """Return an unsigned number as wasm writes it."""
    head, rest = value & 0x7F, value >> 7
    return bytes([head | 0x80]) + _leb(rest) if rest else bytes([head])


def test_functions_beyond_the_engines_limits_are_refused(load: Load, text: Text) -> None:
    """A function of absurd size is an error, not a crash."""
    locals_ = f"(local {'i32 ' * 50_001})"
    with pytest.raises(CompileError, match="too many locals"):
        load(text(locals_ + "(i32.const 0)"))


def test_deadline_is_not_early(load: Load, text: Text) -> None:
    """A call may use all the time that it has, but for a tick that a busy machine brought late."""
    model = load(text(SPIN + "(i32.const 0)"), caps=Caps(deadline_ms=100))
    start = time.monotonic()
    with pytest.raises(DeadlineError):
        model.infer([bytes(8)])
    assert time.monotonic() - start >= 0.1 - PERIOD_MS / 1_000


def test_stopping_leaks_nothing(load: Load, text: Text) -> None:
    """Each replaced instance gives its address space and its files back."""
    model = load(text("unreachable"), caps=QUICK)

    def taken() -> tuple[int, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return pages * 4096, len(list(Path("/proc/self/fd").iterdir()))

    with pytest.raises(TrapError):
        model.infer([bytes(8)])
    space, files = taken()
    for _ in range(30):
        with pytest.raises(TrapError):
            model.infer([bytes(8)])
    space_after, files_after = taken()
    assert space_after - space < 1 << 32
    assert files == files_after
