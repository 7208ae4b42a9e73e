"""Models that keep a state between calls: an input that is an output of the call before."""

import msgspec
import numpy as np
import pytest

from compiler import CompileOptions, OptionError, Target, compile_model
from tests.compiler.execution import Runner, assert_close
from tests.compiler.models import PACKAGED
from tests.compiler.onnx_models import Array, ModelWriter, Session, run_onnxruntime


def counter() -> bytes:
    """Return x + sum, with two states: the sum, and the input before, which the second output passes on."""
    w = ModelWriter()
    x, total, before = w.input("x", [3]), w.input("total", [3]), w.input("before", [3])
    summed = w.node("Add", x, total)
    return w.model(w.node("Sub", summed, before), summed, w.node("Identity", x))


STATES = {"total": "add0", "before": "identity2"}


def test_a_state_is_the_output_of_the_call_before() -> None:
    """It is no input and no output of the module, starts at zero, and is zero again after a reset."""
    compiled = compile_model(counter(), CompileOptions(states=STATES))
    assert (["x"], ["sub1"], True) == (
        [t.name for t in compiled.spec.inputs],
        [t.name for t in compiled.spec.outputs],
        compiled.spec.stateful,
    )
    steps = [np.array([n, 2 * n, -n], np.float32) for n in (1, 2, 3)]
    with Runner(compiled) as runner:
        for _ in range(2):
            runner.reset()
            state: dict[str, Array] = {name: np.zeros(3, np.float32) for name in STATES}
            for x in steps:
                want, *after = run_onnxruntime(counter(), {"x": x, **state})
                assert_close(runner.run({"x": x}), [want])
                state = dict(zip(STATES, after, strict=True))


def test_states_may_change_places() -> None:
    """Each becomes what the other was; both are read before one is written."""
    w = ModelWriter()
    x, a, b = w.input("x", [2]), w.input("a", [2]), w.input("b", [2])
    model = w.model(w.node("Add", a, w.node("Mul", x, x)), w.node("Identity", b), w.node("Add", a, x))
    compiled = compile_model(model, CompileOptions(states={"a": "identity2", "b": "add3"}))
    state = {name: np.zeros(2, np.float32) for name in "ab"}
    with Runner(compiled) as runner:
        for number in range(5):
            inputs = {"x": np.array([number, 1], np.float32)}
            want, new_a, new_b = run_onnxruntime(model, {**inputs, **state})
            assert_close(runner.run(inputs), [want])
            state = {"a": new_a, "b": new_b}


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({"y": "add0"}, "no input 'y'"),
        ({"total": "y"}, "no output 'y'"),
        ({"total": "add0", "before": "add0"}, "the same output"),
    ],
)
def test_states_that_the_model_does_not_have(states: dict[str, str], said: str) -> None:
    """The message names what there is."""
    with pytest.raises(OptionError, match=said):
        compile_model(counter(), CompileOptions(states=states))


def test_a_state_keeps_its_type() -> None:
    """What goes in is what came out."""
    w = ModelWriter()
    x, s = w.input("x", [3]), w.input("s", [1])
    model = w.model(w.node("Mul", x, s), w.node("Add", x, s))
    with pytest.raises(OptionError, match=r"'s' is float32\[1\], .* is float32\[3\]"):
        compile_model(model, CompileOptions(states={"s": "add1"}))


def register() -> bytes:
    """Return a register of three places: what comes in stands in the first, then in the second, then in the third."""
    w = ModelWriter()
    x, a, b, c = (w.input(name, [2, 3]) for name in ("x", "a", "b", "c"))
    total = w.named("Add", w.node("Add", a, b), "total", c)
    return w.model(
        *(w.named("Identity", value, f"{name}_next") for name, value in (("c", b), ("b", a), ("a", x))), total
    )


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
def test_states_are_renewed_at_once(order: str) -> None:
    """In whatever order they are named, each becomes what the others were before the call."""
    states = {name: f"{name}_next" for name in order}
    compiled = compile_model(register(), CompileOptions(states=states))
    xs = np.random.default_rng(0).standard_normal((6, *[2, 3])).astype(np.float32)
    with Runner(compiled) as runner:
        for _ in range(2):
            for n, x in enumerate(xs):
                [total] = runner.run({"x": x})
                np.testing.assert_allclose(xs[max(0, n - 3) : n].sum(axis=0) + np.zeros([2, 3]), total, atol=1e-6)
            runner.reset()


def test_states_of_every_kind_of_place() -> None:
    """One that never changes, one that is turned around, one that is a constant, a counter, one that is an output."""
    w = ModelWriter()
    x = w.input("x", [3, 3])
    for name in ("same", "turned", "fixed", "count", "sum"):
        w.input(name, [3, 3])
    total = w.named("Add", "sum", "sum_next", x)
    outputs = [
        w.named("Identity", "same", "same_next"),
        w.named("Transpose", w.node("Add", "turned", x), "turned_next", perm=[1, 0]),
        w.named("Identity", w.constant(np.full((3, 3), 7, np.float32)), "fixed_next"),
        w.named("Add", "count", "count_next", w.constant(np.float32(1))),
        total,
    ]
    seen = [w.named("Identity", name, f"{name}_seen") for name in ("same", "turned", "fixed", "count")]
    model = w.model(*outputs, *seen, w.named("Identity", total, "sum_seen"))
    states = {name: f"{name}_next" for name in ("same", "turned", "fixed", "count", "sum")}
    rng, session = np.random.default_rng(0), Session(model)
    values = {name: np.zeros((3, 3), np.float32) for name in states}
    with Runner(compile_model(model, CompileOptions(states=states))) as runner:
        for _ in range(4):
            x = {"x": rng.standard_normal((3, 3)).astype(np.float32)}
            *after, same, turned, fixed, count, total = session.run({**x, **values})
            values = dict(zip(states, after, strict=True))
            assert_close(runner.run(x), [same, turned, fixed, count, total])


@pytest.mark.parametrize("target", list(Target))
def test_a_voice_detector_keeps_its_state(target: Target) -> None:
    """Chunk by chunk the module answers what onnxruntime does when the host carries the state, also after a reset."""
    [silero] = [model for model in PACKAGED if model.name == "silero-vad"]
    options = msgspec.structs.replace(silero.options, states={"state": "stateN"}, target=target)
    session, rate = Session(silero.read()), np.array(16_000)
    with Runner(compile_model(silero.read(), options)) as runner:
        assert ["input"] == [tensor.name for tensor in runner.spec.inputs]
        for _ in range(2):
            state = np.zeros((2, 1, 128), np.float32)
            for seed in range(8):
                sound = silero.inputs(seed)["input"]
                want, state = session.run({"input": sound, "state": state, "sr": rate})
                assert_close(runner.run({"input": sound}), [want])
            runner.reset()


def test_labels_fit_their_output() -> None:
    """Each index of the last dimension has one, and the module carries them."""
    texts = ("a", "b", "c")
    assert {"total": texts} == compile_model(register(), CompileOptions(labels={"total": texts})).spec.labels
    with pytest.raises(OptionError, match=r"'total' is \[2, 3\]: expected a label for each .* got 2"):
        compile_model(register(), CompileOptions(labels={"total": texts[:2]}))
    with pytest.raises(OptionError, match=r"no output 'x'"):
        compile_model(register(), CompileOptions(labels={"x": texts}))
