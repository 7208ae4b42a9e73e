"""The hand-written model: assembled, run on the device runtime, compared with the formula in its own comments."""

import itertools
import struct
import tomllib
from pathlib import Path

import msgspec

from agent.runtime.instance import Caps, load_model
from agent.runtime.module import assemble, inspect
from protocol.tensors import ModelSpec

FOLDER = Path(__file__).parents[2] / "examples" / "linear_regression"
WASM = assemble((FOLDER / "model.wat").read_text())
SPEC = msgspec.convert(tomllib.loads((FOLDER / "model.toml").read_text()), ModelSpec)


def infer(x: tuple[float, ...]) -> float:
    """Return the model's answer for four numbers."""
    model = load_model(WASM, SPEC.inputs, SPEC.outputs, Caps(memory_bytes=65536))
    try:
        [raw] = model.infer([struct.pack("<4f", *x)])
    finally:
        model.close()
    [[y]] = struct.iter_unpack("<f", raw)
    return float(y)


def test_it_computes_its_formula() -> None:
    """All numbers are exact in 32 bits, so the answers are equal."""
    for x in itertools.product((-2.0, 0.0, 0.25, 3.0), repeat=4):
        assert 0.5 + 2.0 * x[0] - 1.5 * x[1] + 0.25 * x[2] + 3.0 * x[3] == infer(x)


def test_the_readme_tells_the_truth() -> None:
    """The answer in the README is the one for the input beside it."""
    x = msgspec.json.decode((FOLDER / "input.json").read_bytes(), type=dict[str, list[list[float]]])["x"][0]
    assert "For the input `[1, 2, 4, 0.5]` the answer is 2.0" in (FOLDER / "README.md").read_text()
    assert ([1.0, 2.0, 4.0, 0.5], 2.0) == (x, infer(tuple(x)))


def test_it_is_as_small_as_it_says() -> None:
    """One page of memory for ever, no imports."""
    facts = inspect(WASM)
    assert ((), 65536, 65536) == (facts.imports, facts.memory_min_bytes, facts.memory_max_bytes)
