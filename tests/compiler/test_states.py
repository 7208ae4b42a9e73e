"""Models that keep a state between calls: an input that is an output of the call before."""

import numpy as np
import pytest

from compiler import CompileOptions, OptionError, compile_model
from tests.compiler.execution import Runner, assert_close
from tests.compiler.onnx_models import Array, ModelWriter, run_onnxruntime


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
