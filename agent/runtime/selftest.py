"""Self-test vectors: inputs with the outputs that they must give, recorded once and run on every device's own CPU.

A stateful model is reset first and then sees the vectors in order, as one sequence.
"""

import itertools
import math
import random
import struct
from collections.abc import Iterator
from typing import Final

from agent.runtime.errors import SelfTestError, TrapError
from agent.runtime.instance import LoadedModel
from protocol.datatypes import FORMATS
from protocol.limits import MAX_SELF_TEST_BYTES
from protocol.manifest import SelfTest
from protocol.tensors import TensorSpec

_FLOATS: Final = frozenset({"FP16", "FP32", "FP64"})
_BYTES: Final = frozenset({"UINT8", "INT8"})
_BOUNDS: Final = (10, 2, 1)
"""Whole numbers are drawn below the first; below the next when the model traps, for many are places in a table."""


def record_vectors(model: LoadedModel, *, seed: int, count: int) -> bytes:
    """Return `count` vectors: seeded random inputs, each set followed by the outputs that `model` gives for it.

    Raises ModelError: that of the first inputs when the model takes none, and also when it gives other outputs when it
    is asked again.
    """
    size_bytes = count * sum(t.size_bytes for t in (*model.inputs, *model.outputs))
    if size_bytes > MAX_SELF_TEST_BYTES:
        raise SelfTestError(
            f"expected at most {MAX_SELF_TEST_BYTES:,} bytes of self-test vectors, {count} take {size_bytes:,}: "
            "record fewer"
        )
    inputs, first = _accepted(model, seed, count)
    if first != _run_all(model, inputs):
        raise SelfTestError(
            "expected the same outputs for the same inputs, got others the second time: "
            "a model that keeps state must be marked stateful and export fleet_reset"
        )
    return b"".join(itertools.chain.from_iterable(itertools.chain(*pair) for pair in zip(inputs, first, strict=True)))


def run_self_test(model: LoadedModel, self_test: SelfTest, vectors: bytes) -> None:
    """Run every vector; raises SelfTestError at the first output that differs, or the ModelError of a call."""
    tensors = (*model.inputs, *model.outputs)
    expected_bytes = self_test.count * sum(t.size_bytes for t in tensors)
    if len(vectors) != expected_bytes:
        raise SelfTestError(f"expected {expected_bytes:,} bytes of self-test vectors, got {len(vectors):,}")
    tolerances = self_test.tolerances
    view = memoryview(vectors)
    model.reset()
    for number in range(self_test.count):
        parts = list(_split(view[number * (len(vectors) // self_test.count) :], tensors))
        outputs = model.infer([bytes(part) for part in parts[: len(model.inputs)]])
        for tensor, got, want in zip(model.outputs, outputs, parts[len(model.inputs) :], strict=True):
            if got != want:
                _compare(tensor, got, want, tolerances, f"self-test vector {number}")
    model.check_addresses()
    model.reset()


def _accepted(model: LoadedModel, seed: int, count: int) -> tuple[list[list[bytes]], list[list[bytes]]]:
    """Return inputs on which the model does not trap, and its outputs for them; raises ModelError."""
    first_trap = None
    for bound in _BOUNDS:
        rng = random.Random(seed)  # noqa: S311 - test data that anybody may predict
        inputs = [[_random_tensor(rng, tensor, bound) for tensor in model.inputs] for _ in range(count)]
        try:
            return inputs, _run_all(model, inputs)
        except TrapError as error:
            first_trap = first_trap or error
    assert first_trap is not None  # there are bounds
    raise first_trap


def _run_all(model: LoadedModel, inputs: list[list[bytes]]) -> list[list[bytes]]:
    model.reset()
    outputs = [model.infer(tensors) for tensors in inputs]
    model.check_addresses()
    model.reset()
    return outputs


def _split(view: memoryview, tensors: tuple[TensorSpec, ...]) -> Iterator[memoryview]:
    for tensor in tensors:
        yield view[: tensor.size_bytes]
        view = view[tensor.size_bytes :]


def _compare(tensor: TensorSpec, got: bytes, want: memoryview, tolerances: tuple[float, float], where: str) -> None:
    """Raise SelfTestError at the first element that differs by more than the tolerances allow."""
    atol, rtol = tolerances
    layout = f"<{FORMATS[tensor.datatype]}"
    pairs = zip(struct.iter_unpack(layout, got), struct.iter_unpack(layout, want), strict=True)
    for index, ((a,), (b,)) in enumerate(pairs):
        if a == b or (tensor.datatype in _FLOATS and _is_close(a, b, atol, rtol)):
            continue
        allowed = f" within {atol:g} + {rtol:g} x |expected|" if tensor.datatype in _FLOATS else ""
        raise SelfTestError(f"{where}, output {tensor.name!r}, element {index}: expected {b}{allowed}, got {a}")


def _is_close(got: float, want: float, atol: float, rtol: float) -> bool:
    if math.isnan(got) or math.isnan(want):
        return math.isnan(got) and math.isnan(want)
    if math.isinf(got) or math.isinf(want):
        return got == want
    return abs(got - want) <= atol + rtol * abs(want)


def _random_tensor(rng: random.Random, tensor: TensorSpec, bound: int) -> bytes:
    """Return values that models commonly accept: floats in [-1, 1), any byte at first, small indices, booleans."""
    count = tensor.elements
    if tensor.datatype in _BYTES and bound == _BOUNDS[0]:
        return rng.randbytes(count)
    layout = f"<{count}{FORMATS[tensor.datatype]}"
    if tensor.datatype in _FLOATS:
        return struct.pack(layout, *(rng.uniform(-1, 1) for _ in range(count)))
    if tensor.datatype == "BOOL":
        return struct.pack(layout, *(rng.random() < 0.5 for _ in range(count)))
    return struct.pack(layout, *(rng.randrange(bound) for _ in range(count)))
