"""Whole modules: every kind of section, run by the engine; the same calls give the same bytes."""

import struct
from collections.abc import Callable

import pytest

from agent.runtime.instance import Caps, load_model
from agent.runtime.module import inspect
from compiler.wasm import I32, EncodeError, Function, I32Local, Module, ValueType, f32, f64, i32, memory, select
from protocol.tensors import TensorSpec

X = TensorSpec(name="x", datatype="INT32", shape=(4,))
Y = TensorSpec(name="y", datatype="INT32", shape=(4,))
X_ADDRESS, Y_ADDRESS = 0, 64

Body = Callable[[Function], None]


def model(body: Body, module: Module | None = None, pages: int = 1) -> bytes:
    """Return a model of four whole numbers in and out, with `body` as its fleet_infer."""
    module = module or Module()
    module.memory(pages, pages, export="memory")
    for name, address in (("fleet_input", X_ADDRESS), ("fleet_output", Y_ADDRESS)):
        locate = module.function(name, [ValueType.I32], export=name)
        locate.param_i32()
        locate.leave(i32.const(address))
    infer = module.function("infer", [ValueType.I32], export="fleet_infer")
    body(infer)
    infer.leave(i32.const(0))
    return module.encode()


def run(wasm: bytes, *numbers: int) -> list[int]:
    """Return what the model makes of four numbers."""
    loaded = load_model(wasm, (X,), (Y,), Caps())
    try:
        [raw] = loaded.infer([struct.pack("<4i", *numbers)])
    finally:
        loaded.close()
    return list(struct.unpack("<4i", raw))


def at(index: int) -> I32:
    """Return the input with number `index`."""
    return i32.load(i32.const(X_ADDRESS), 4 * index)


def put(function: Function, index: int, value: I32) -> None:
    """Write an output."""
    function.do(i32.store(i32.const(Y_ADDRESS), value, 4 * index))


def test_arithmetic() -> None:
    """Operators on addresses are i32 instructions."""

    def body(f: Function) -> None:
        put(f, 0, at(0) + at(1))
        put(f, 1, at(0) - 5)
        put(f, 2, at(0) * 3)
        put(f, 3, at(0) & 6)

    assert [1, -2, 9, 2] == run(model(body), 3, -2, 0, 0)


def test_loops_blocks_and_branches() -> None:
    """Labels lead where they say, from any depth."""

    def body(f: Function) -> None:
        total, n = f.i32(), f.i32()
        with f.repeat(n, 10):
            total.set(total + n)
        put(f, 0, total)
        with f.block() as outside, f.loop() as again:
            n.advance(1)
            with f.block():
                f.branch(outside, i32.eq(n, i32.const(7)))
            f.branch(again)
        put(f, 1, n)
        with f.if_(i32.gt_s(at(0), i32.const(0))) as branches:
            put(f, 2, i32.const(1))
            branches.otherwise()
            put(f, 2, i32.const(2))
        put(f, 3, select(at(1), i32.const(11), i32.const(22)))

    assert [55, 7, 1, 22] == run(model(body), 5, 0, 0, 0)
    assert [55, 7, 2, 11] == run(model(body), -5, 1, 0, 0)


def test_branch_table() -> None:
    """A selector picks a label, and one that is too large the default."""

    def body(f: Function) -> None:
        with f.block() as default, f.block() as one, f.block() as zero:
            f.branch_table(at(0), [zero, one], default)
        # Behind `zero`, `one` and `default` alike: each branch left a different number of blocks.
        put(f, 0, at(0))

    assert [9, 0, 0, 0] == run(model(body), 9, 0, 0, 0)


def test_calls_globals_and_the_table() -> None:
    """Functions call functions, directly and through the table; globals keep their value."""
    module = Module()
    counter = module.global_i32(40)
    square = module.function("square", [ValueType.I32])
    x = square.param_i32()
    square.leave(x * x)
    steps = []
    for step in (1, 100):
        count = module.function(f"count by {step}")
        times = count.param_i32()
        count.do(counter.set(counter + times * step))
        steps.append(count)
    slots = [module.slot(step) for step in steps]

    def body(f: Function) -> None:
        put(f, 0, square.value(I32, at(0)))
        f.do(steps[0](2))
        put(f, 1, counter)
        f.do(module.call_slot(at(1), steps[0], i32.const(3)))
        put(f, 2, counter)

    wasm = model(body, module)
    assert [0, 1] == slots
    assert [81, 42, 342, 0] == run(wasm, 9, 1, 0, 0)
    assert [81, 42, 45, 0] == run(wasm, 9, 0, 0, 0)


def test_data_memory_and_start() -> None:
    """Segments lie where they were put, however large; the start function runs first."""
    module = Module()
    payload = bytes(range(256)) * 1024
    module.data(1 << 16, payload)
    module.data(1024, memoryview(struct.pack("<i", 7)))
    start = module.function("start")
    start.do(memory.copy(i32.const(1028), i32.const(1024), 4))
    start.do(memory.fill(i32.const(1032), 1, i32.const(4)))
    module.start(start)

    def body(f: Function) -> None:
        base: I32Local = f.i32()
        base.set(i32.const(1024))
        put(f, 0, i32.load(base, 4))
        put(f, 1, i32.load(base, 8))
        put(f, 2, i32.load8_u(i32.const(1 << 16), len(payload) - 1))
        put(f, 3, memory.size_pages())

    assert [7, 0x01010101, 255, 5] == run(model(body, module, pages=5), 0, 0, 0, 0)


def test_return_drop_and_unreachable() -> None:
    """A return leaves the function before what follows it."""

    def body(f: Function) -> None:
        f.drop(f32.const(1.5))
        put(f, 0, i32.const(1))
        f.return_(i32.const(0))
        f.unreachable()

    assert [1, 0, 0, 0] == run(model(body), 0, 0, 0, 0)


def test_imports_exports_and_customs() -> None:
    """What is declared is what an engine finds."""
    module = Module()
    log = module.import_function("env", "log", [ValueType.I32, ValueType.F64])
    module.import_function("env", "now", [], [ValueType.I64])
    main = module.function("main", export="main")
    main.do(log(1, f64.const(2.0)))
    module.memory(1, 3, export="memory")
    module.global_i32(2**32 - 1, is_mutable=False, export="limit")
    module.custom("note", b"\0\1\2")
    facts = inspect(module.encode())
    assert ("env.log", "env.now") == facts.imports
    assert {"main": "() -> ()", "memory": "memory", "limit": "global"} == facts.exports
    assert (65536, 3 * 65536) == (facts.memory_min_bytes, facts.memory_max_bytes)


def test_the_same_calls_give_the_same_bytes() -> None:
    """Nothing depends on the time, on addresses or on the order of a hash."""

    def body(f: Function) -> None:
        put(f, 0, at(0))

    assert model(body) == model(body)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: (m.memory(1), m.memory(1)), "one memory"),
        (lambda m: m.memory(2, 1), "pages"),
        (lambda m: m.memory(65537), "pages"),
        (lambda m: (m.function("f"), m.import_function("env", "g")), "imports come before"),
        (lambda m: (m.function("f", export="f"), m.function("g", export="f")), "two exports"),
        (lambda m: (m.data(0, b"x"), m.encode()), "data needs a memory"),
        (lambda m: m.function("f").repeat(m.function("g").i32(), 0).__enter__(), "at least once"),
        (lambda m: m.function("f", [ValueType.I32])(), "use its value"),
        (lambda m: m.function("f").value(I32), "returns|return"),
        (lambda m: m.function("f")(1), "arguments"),
    ],
)
def test_what_is_no_module_is_refused(build: Callable[[Module], object], message: str) -> None:
    """A mistake in building is found when it is made."""
    with pytest.raises(EncodeError, match=message):
        build(Module())


def test_labels_and_parameters_have_their_place() -> None:
    """A branch stays inside its block; a parameter cannot follow a local."""
    function = Module().function("f")
    with function.block() as label:
        pass
    with function.loop(), pytest.raises(EncodeError, match="not open"):
        function.branch(label)
    with function.if_(i32.const(1)) as branches:
        branches.otherwise()
        with pytest.raises(EncodeError, match="one other branch"):
            branches.otherwise()
    function.i32()
    with pytest.raises(EncodeError, match="before locals"):
        function.param_i32()
