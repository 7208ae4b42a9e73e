"""The file of `--test-data`: inputs, and if known the outputs that the model must give for them.

    {"inputs":  [{"image": [0.0, 0.1, …]}, …],      one object for each vector, one key for each input
     "outputs": [{"probabilities": [0.9, …]}, …],   optional; without it the module's own outputs are recorded
     "atol": "1e-5", "rtol": "1e-4"}                optional; how far an output may be off

A value is a list of numbers, nested by the tensor's shape or flat; a model with one input (or output) may leave
the object away and give the value itself.
"""

import sys
from pathlib import Path

import msgspec

from controller.bundling.errors import TensorValueError, TestDataError
from controller.bundling.values import Json, to_bytes
from controller.reading import read_file, read_stream, why_unread
from protocol.errors import LimitExceededError, MalformedError
from protocol.limits import MAX_TENSOR_BYTES
from protocol.manifest import FileRef, SelfTest
from protocol.tensors import ModelSpec, TensorSpec

MAX_TEST_DATA_BYTES = 256 * 1024 * 1024
_MAX_INPUT_BYTES = 8 * MAX_TENSOR_BYTES
_HINT = (
    'the format is {"inputs": [{"NAME": [numbers…]}, …], "outputs": [{"NAME": [numbers…]}, …]}; '
    '"outputs" may be left out'
)

Vector = tuple[bytes, ...]
"""The tensors of one call, in the order of the spec."""


class TestData(msgspec.Struct, frozen=True, kw_only=True):
    """Vectors as tensors; `outputs` is None when the module's own are to be recorded."""

    __test__ = False  # pytest collects classes of this name
    inputs: tuple[Vector, ...]
    outputs: tuple[Vector, ...] | None
    atol: str = "1e-5"
    rtol: str = "1e-4"


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    inputs: list[Json]
    outputs: list[Json] | None = None
    atol: str = "1e-5"
    rtol: str = "1e-4"


def read_test_data(path: Path, spec: ModelSpec) -> TestData:
    """Return the test data in the file at `path` for a model of this spec; raises TestDataError."""
    try:
        raw = read_file(path, MAX_TEST_DATA_BYTES)
    except (OSError, LimitExceededError) as error:
        raise TestDataError(why_unread(str(path), error), hint="give the path of a JSON file with test data") from error
    return parse_test_data(raw, spec.inputs, spec.outputs, what=path.name)


def parse_test_data(
    raw: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], *, what: str = "test data"
) -> TestData:
    """Return the test data that `raw` spells for a model with these tensors; raises TestDataError."""
    try:
        document = msgspec.json.decode(raw, type=_Document)
        # The rule for decimals is that of the manifest.
        SelfTest(file=FileRef.of(b"vectors"), count=1, atol=document.atol, rtol=document.rtol)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, MalformedError) as error:
        raise TestDataError(f"{what}: {error}", hint=_HINT) from error
    if not document.inputs:
        raise TestDataError(f"{what}: expected at least one vector of inputs, got none", hint=_HINT)
    if document.outputs is not None and len(document.outputs) != len(document.inputs):
        raise TestDataError(
            f"{what}: expected as many outputs as inputs, got {len(document.outputs)} and {len(document.inputs)}",
            hint=_HINT,
        )
    outputs_given = document.outputs
    return TestData(
        inputs=_vectors(inputs, document.inputs, f"{what}: input vector"),
        outputs=None if outputs_given is None else _vectors(outputs, outputs_given, f"{what}: output vector"),
        atol=document.atol,
        rtol=document.rtol,
    )


def read_vector(name: str, tensors: tuple[TensorSpec, ...]) -> Vector:
    """Return one call's tensors from a file, or from stdin for -: JSON, or raw bytes in a .bin file.

    Raises TestDataError.
    """
    try:
        if name == "-":
            raw = read_stream(sys.stdin.buffer, _MAX_INPUT_BYTES, "the input")
        else:
            raw = read_file(Path(name), _MAX_INPUT_BYTES)
    except (OSError, LimitExceededError) as error:
        raise TestDataError(why_unread(name, error), hint="give the path of the input") from error
    if name.endswith(".bin"):
        if len(tensors) != 1 or len(raw) != tensors[0].size_bytes:
            sizes = ", ".join(f"{t.name} {t.size_bytes:,}" for t in tensors)
            raise TestDataError(f"{name}: expected the bytes of the only input ({sizes}), got {len(raw):,}")
        return (raw,)
    return parse_vector(raw, tensors, what=name)


def parse_vector(raw: bytes, tensors: tuple[TensorSpec, ...], *, what: str) -> Vector:
    """Return one call's tensors from JSON: an object by name, or the only tensor's value; raises TestDataError."""
    try:
        return _vector(tensors, msgspec.json.decode(raw), what)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TestDataError(
            f"{what}: {error}", hint='give {"NAME": [numbers…]}, or a list for the only input'
        ) from error


def _vectors(tensors: tuple[TensorSpec, ...], values: list[Json], what: str) -> tuple[Vector, ...]:
    return tuple(_vector(tensors, value, f"{what} {number}") for number, value in enumerate(values))


def _vector(tensors: tuple[TensorSpec, ...], value: Json, what: str) -> Vector:
    names = [t.name for t in tensors]
    if not isinstance(value, dict):
        if len(tensors) != 1:
            raise TestDataError(f"{what}: expected an object with the keys {names}, got {repr(value)[:40]}", hint=_HINT)
        value = {names[0]: value}
    if set(value) != set(names):
        raise TestDataError(f"{what}: expected the keys {names}, got {sorted(map(str, value))[:20]}", hint=_HINT)
    try:
        return tuple(to_bytes(tensor, value[tensor.name]) for tensor in tensors)
    except TensorValueError as error:
        raise TestDataError(f"{what}: {error}", hint=_HINT) from error
