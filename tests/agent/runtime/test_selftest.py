"""Self-test vectors: recorded, passed, failed."""

import struct
from collections.abc import Callable

import pytest

from agent.runtime import LoadedModel, assemble, load_model, record_vectors, run_self_test
from agent.runtime.errors import AbiError, SelfTestError, TrapError
from agent.runtime.sandbox import Caps
from protocol.datatypes import ITEM_BYTES, Datatype
from protocol.manifest import FileRef, SelfTest
from protocol.tensors import TensorSpec

Load = Callable[..., LoadedModel]
Text = Callable[..., str]
ACCUMULATE = """
    (f32.store (i32.const 64) (f32.add (f32.load (i32.const 64)) (f32.load (i32.const 0))))
    (i32.const 0)
"""


def self_test(vectors: bytes, count: int) -> SelfTest:
    return SelfTest(file=FileRef.of(vectors), count=count)


def echo(datatype: Datatype, elements: int) -> LoadedModel:
    """Return a model whose output is its input."""
    wat = """(module (memory (export "memory") 1)
      (func (export "fleet_input") (param i32) (result i32) (i32.const 0))
      (func (export "fleet_output") (param i32) (result i32) (i32.const 0))
      (func (export "fleet_infer") (result i32) (i32.const 0)))"""
    tensor = TensorSpec(name="t", datatype=datatype, shape=(elements,))
    return load_model(assemble(wat), (tensor,), (tensor,), Caps())


def test_recorded_vectors_pass(load: Load, text: Text) -> None:
    """What was recorded is what the model gives."""
    model = load(text())
    vectors = record_vectors(model, seed=1, count=3)
    assert 3 * 16 == len(vectors)
    run_self_test(model, self_test(vectors, 3), vectors)


def test_recording_follows_the_seed(load: Load, text: Text) -> None:
    """One seed gives the same bytes every time, another gives others."""
    model = load(text())
    assert record_vectors(model, seed=1, count=2) == record_vectors(model, seed=1, count=2)
    assert record_vectors(model, seed=1, count=2) != record_vectors(model, seed=2, count=2)


def test_layout_is_inputs_then_outputs(load: Load, text: Text) -> None:
    """Each vector is the inputs followed by the outputs."""
    a, b, twice_a, twice_b = struct.unpack("<4f", record_vectors(load(text()), seed=5, count=1))
    assert (2 * a, 2 * b) == (twice_a, twice_b)


def test_difference_names_vector_output_and_element(load: Load, text: Text) -> None:
    """An operator reads where the outputs part and by how much."""
    model = load(text())
    vectors = struct.pack("<8f", 1, 2, 2, 4, 3, 4, 6, 8.5)
    with pytest.raises(SelfTestError) as caught:
        run_self_test(model, self_test(vectors, 2), vectors)
    assert "self-test vector 1, output 'y', element 1: expected 8.5 within 1e-05 + 0.0001 x |expected|, got 8.0" == str(
        caught.value
    )


def test_difference_within_the_tolerance_passes(load: Load, text: Text) -> None:
    """Another CPU may round differently."""
    vectors = struct.pack("<4f", 1, 2, 2.0001, 3.9997)
    run_self_test(load(text()), self_test(vectors, 1), vectors)


@pytest.mark.parametrize(
    ("want", "got", "passes"),
    [
        ("nan", "nan", True),
        ("nan", "1", False),
        ("1", "nan", False),
        ("inf", "inf", True),
        ("inf", "-inf", False),
        ("inf", "1e30", False),
        ("1e30", "inf", False),
        ("0", "-0.0", True),
    ],
)
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_special_numbers(datatype: Datatype, want: str, got: str, passes: bool) -> None:
    """NaN equals NaN alone, an infinity equals itself alone, both zeros are one."""
    layout = {"FP16": "<e", "FP32": "<f", "FP64": "<d"}[datatype]
    values = [min(float(v), 6e4) if v == "1e30" and datatype == "FP16" else float(v) for v in (got, want)]
    vectors = b"".join(struct.pack(layout, v) for v in values)
    model = echo(datatype, 1)
    try:
        if passes:
            run_self_test(model, self_test(vectors, 1), vectors)
        else:
            with pytest.raises(SelfTestError, match="element 0"):
                run_self_test(model, self_test(vectors, 1), vectors)
    finally:
        model.close()


@pytest.mark.parametrize("datatype", list(ITEM_BYTES))
def test_every_datatype_is_recorded_and_compared(datatype: Datatype) -> None:
    """A flipped bit in an expected output is found, whatever its type."""
    model = echo(datatype, 5)
    vectors = record_vectors(model, seed=3, count=2)
    assert 2 * 2 * 5 * ITEM_BYTES[datatype] == len(vectors)
    run_self_test(model, self_test(vectors, 2), vectors)
    wrong = bytearray(vectors)
    wrong[-1] = 1 - wrong[-1] if datatype == "BOOL" else wrong[-1] ^ 0x40
    with pytest.raises(SelfTestError, match="vector 1, output 't', element 4"):
        run_self_test(model, self_test(vectors, 2), bytes(wrong))
    model.close()


def test_integers_have_no_tolerance() -> None:
    """A class index that is off by one is another class."""
    vectors = struct.pack("<qq", 1_000_000_001, 1_000_000_000)
    model = echo("INT64", 1)
    with pytest.raises(SelfTestError, match="expected 1000000000, got 1000000001"):
        run_self_test(model, self_test(vectors, 1), vectors)
    model.close()


def test_wrong_length_is_refused(load: Load, text: Text) -> None:
    """Vectors for other tensors are not run at all."""
    vectors = bytes(16)
    with pytest.raises(SelfTestError, match="expected 16 bytes of self-test vectors, got 15"):
        run_self_test(load(text()), self_test(vectors, 1), vectors[:-1])


def test_trap_in_the_self_test_is_reported_as_it_is(load: Load, text: Text) -> None:
    """A model that traps fails its self-test with the trap."""
    vectors = bytes(16)
    with pytest.raises(TrapError, match="unreachable"):
        run_self_test(load(text("unreachable")), self_test(vectors, 1), vectors)


def test_stateful_vectors_are_one_sequence(load: Load, text: Text) -> None:
    """A stateful model starts from nothing and sees the vectors in order, on every run."""
    reset = '(func (export "fleet_reset") (f32.store (i32.const 64) (f32.const 0)))'
    model = load(text(ACCUMULATE, more=reset), stateful=True)
    model.infer([struct.pack("<2f", 100, 0)])
    vectors = record_vectors(model, seed=2, count=3)
    first, _, total_1, _, second, _, total_2, _ = struct.unpack("<12f", vectors)[:8]
    assert (first, first + second) == (pytest.approx(total_1), pytest.approx(total_2))
    for _ in range(2):
        run_self_test(model, self_test(vectors, 3), vectors)


TABLE = """(module (memory (export "memory") 1)
  (func (export "fleet_input") (param i32) (result i32) (i32.const 0))
  (func (export "fleet_output") (param i32) (result i32) (i32.const 0))
  (func (export "fleet_infer") (result i32) (local $i i32)
    (loop $next
      (if (i32.ge_u (i32.load (i32.shl (local.get $i) (i32.const 2))) (i32.const %d)) (then unreachable))
      (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 64))))
    (i32.const 0)))"""
"""A model that takes 64 places in a table of so many rows."""


@pytest.mark.parametrize(("rows", "expected"), [(10, 10), (9, 2), (2, 2), (1, 1)])
def test_places_in_a_short_table_are_recorded_too(rows: int, expected: int) -> None:
    """Where whole numbers name nothing, smaller ones are drawn."""
    tensor = TensorSpec(name="t", datatype="INT32", shape=(64,))
    model = load_model(assemble(TABLE % rows), (tensor,), (tensor,), Caps())
    vectors = record_vectors(model, seed=1, count=2)
    run_self_test(model, self_test(vectors, 2), vectors)
    model.close()
    assert set(range(expected)) == set(struct.unpack("<256i", vectors))


def test_a_model_that_always_traps_says_so() -> None:
    """No smaller number helps, and the trap is told."""
    tensor = TensorSpec(name="t", datatype="INT32", shape=(64,))
    model = load_model(assemble(TABLE % 0), (tensor,), (tensor,), Caps())
    with pytest.raises(TrapError, match="unreachable"):
        record_vectors(model, seed=1, count=1)
    model.close()


def test_unrepeatable_outputs_are_not_recorded(load: Load, text: Text) -> None:
    """Vectors of a model that answers differently each time would fail on every device."""
    keeps_state = """
      (f32.store (i32.const 64) (global.get $n))
      (global.set $n (f32.add (f32.const 1) (global.get $n)))
      (i32.const 0)"""
    more = '(global $n (mut f32) (f32.const 0)) (func (export "fleet_reset"))'
    with pytest.raises(SelfTestError, match="stateful"):
        record_vectors(load(text(keeps_state, more=more)), seed=1, count=2)


def test_too_many_vectors_are_refused() -> None:
    """The self-test has a size that fits every device."""
    model = echo("UINT8", 40_000)
    with pytest.raises(SelfTestError, match="record fewer"):
        record_vectors(model, seed=1, count=400)
    model.close()


def test_address_that_moves_is_found(load: Load, text: Text) -> None:
    """A model that moves its output after a call breaks the ABI: the host reads where it was first."""
    model = load(
        text(
            "(global.set $at (i32.const 128)) (i32.const 0)",
            output_address="(global.get $at)",
            more="(global $at (mut i32) (i32.const 64))",
        )
    )
    with pytest.raises(AbiError, match="'y': expected one address"):
        record_vectors(model, seed=1, count=1)
