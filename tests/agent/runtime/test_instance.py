"""A loaded model: results, reset, closing, what it accepts."""

import struct
import threading
from collections.abc import Callable

import pytest

from agent.runtime import Caps, LoadedModel
from agent.runtime.errors import AbiError, InputError, ModelClosedError, StatusError
from protocol.tensors import TensorSpec

Load = Callable[..., LoadedModel]
Text = Callable[..., str]
COUNTER = """
    (f32.store (i32.const 64) (f32.add (f32.load (i32.const 64)) (f32.load (i32.const 0))))
    (i32.const 0)
"""
RESET = '(func (export "fleet_reset") (f32.store (i32.const 64) (f32.const 0)))'


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def test_outputs_follow_the_inputs(load: Load, text: Text) -> None:
    """A call reads its input where the host wrote it and returns what the module stored."""
    model = load(text())
    assert [floats(3.0, -8.0)] == model.infer([floats(1.5, -4.0)])
    assert [floats(0.5, 0.0)] == model.infer([floats(0.25, 0.0)])


def test_outputs_are_copies(load: Load, text: Text) -> None:
    """A later call does not change what an earlier one returned."""
    model = load(text())
    first = model.infer([floats(1, 1)])
    model.infer([floats(9, 9)])
    assert [floats(2, 2)] == first


@pytest.mark.parametrize("inputs", [[], [b""], [bytes(7)], [bytes(9)], [bytes(8), bytes(8)]])
def test_inputs_that_do_not_fit_are_refused(load: Load, text: Text, inputs: list[bytes]) -> None:
    """Too many, too few or too long inputs never reach the module."""
    model = load(text())
    with pytest.raises(InputError, match="expected"):
        model.infer(inputs)
    assert [floats(2, 2)] == model.infer([floats(1, 1)])


def test_misfit_names_the_input_and_its_shape(load: Load, text: Text) -> None:
    """The message says what would have been right."""
    with pytest.raises(InputError) as caught:
        load(text()).infer([bytes(4)])
    assert "input 'x': expected 8 bytes (FP32 [2]), got 4" == str(caught.value)


def test_status_of_the_model_is_reported(load: Load, text: Text) -> None:
    """A model that says it failed is believed, and may succeed the next time."""
    model = load(text("(i32.eqz (i32.load (i32.const 0)))"))
    with pytest.raises(StatusError, match="returned 1") as caught:
        model.infer([bytes(8)])
    assert 1 == caught.value.status
    model.infer([floats(1, 1)])


def test_state_is_kept_between_calls_and_forgotten_on_reset(load: Load, text: Text) -> None:
    """A stateful model remembers until it is reset."""
    model = load(text(COUNTER, more=RESET), stateful=True)
    assert [floats(5, 0)] == model.infer([floats(5, 0)])
    assert [floats(7, 0)] == model.infer([floats(2, 0)])
    model.reset()
    assert [floats(1, 0)] == model.infer([floats(1, 0)])


def test_reset_without_an_export_makes_a_fresh_instance(load: Load, text: Text) -> None:
    """A model that kept state unasked forgets it all the same."""
    model = load(text(COUNTER))
    model.infer([floats(5, 0)])
    model.reset()
    assert [floats(1, 0)] == model.infer([floats(1, 0)])


def test_stateful_needs_a_reset(load: Load, text: Text) -> None:
    """A model cannot be marked stateful without a way to forget."""
    with pytest.raises(AbiError, match="fleet_reset"):
        load(text(), stateful=True)


def test_several_tensors_keep_their_order(load: Load) -> None:
    """Inputs and outputs are matched by index."""
    wat = """(module (memory (export "memory") 1)
      (func (export "fleet_input") (param i32) (result i32) (i32.mul (local.get 0) (i32.const 8)))
      (func (export "fleet_output") (param i32) (result i32) (i32.add (i32.const 64) (local.get 0)))
      (func (export "fleet_infer") (result i32)
        (i32.store8 (i32.const 64) (i32.load8_u (i32.const 8)))
        (i32.store8 (i32.const 65) (i32.load8_u (i32.const 0)))
        (i32.const 0)))"""
    a, b = (TensorSpec(name=name, datatype="UINT8", shape=()) for name in "ab")
    model = load(wat, inputs=(a, b), outputs=(a, b))
    assert [b"\x07", b"\x05"] == model.infer([b"\x05", b"\x07"])


def test_closing_twice_is_fine_and_use_afterwards_is_not(load: Load, text: Text) -> None:
    """A closed model raises, it does not crash."""
    model = load(text())
    model.close()
    model.close()
    with pytest.raises(ModelClosedError):
        model.infer([bytes(8)])
    with pytest.raises(ModelClosedError):
        model.reset()


def test_memory_is_reported(load: Load, text: Text) -> None:
    """The peak counts what the module grew by itself."""
    model = load(text("(drop (memory.grow (i32.const 3))) (i32.const 0)", memory="2 16"))
    assert 2 * 65536 == model.memory_bytes
    model.infer([bytes(8)])
    assert 5 * 65536 == model.memory_bytes


def test_views_hold_when_the_memory_grows(load: Load, text: Text) -> None:
    """The engine never moves a memory, so that tensors stay where they are."""
    grow = "(drop (memory.grow (i32.const 1)))"
    model = load(
        text(
            grow
            + """
        (f32.store (i32.const 64) (f32.load (i32.const 0)))
        (i32.const 0)""",
            memory="1",
        ),
        caps=Caps(memory_bytes=1 << 30),
    )
    for n in range(1000):
        assert [floats(n, 0)] == model.infer([floats(n, 7)])
    assert 1001 * 65536 == model.memory_bytes


def test_many_threads_share_one_model(load: Load, text: Text) -> None:
    """Concurrent callers each get the answer to their own question."""
    model = load(text())
    wrong: list[int] = []

    def ask(n: int) -> None:
        wrong.extend(i for i in range(300) if model.infer([floats(n, i)]) != [floats(2 * n, 2 * i)])

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == wrong
