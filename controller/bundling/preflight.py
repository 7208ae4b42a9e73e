"""Runs a module as a device would, before any device sees it: ABI, imports, memory, self-test under the contract.

Owns the contract (what the module needs) and the self-test vectors (what it must give). Both come from the module
and the test data alone, so that the same input makes the same release.
"""

import math
import time
from collections.abc import Sequence
from contextlib import closing
from statistics import median

import msgspec

from agent.runtime.errors import MemoryCapError, ModelError
from agent.runtime.instance import Caps, LoadedModel, load_model
from agent.runtime.module import ModuleFacts, check_abi, inspect
from agent.runtime.selftest import record_vectors, run_self_test
from compiler.inspect import required_features
from controller.bundling.errors import PreflightError, refused_by_runtime
from controller.bundling.source import ModelSource
from controller.bundling.testdata import TestData, Vector
from controller.bundling.values import from_bytes
from protocol import limits
from protocol.codec import sha256
from protocol.manifest import Contract, FileRef, SelfTest, Variant

RECORDED_VECTORS = 4
_FLOATS = ("FP16", "FP32", "FP64")
_TIMED_CALLS = 5
_LARGEST_STEP = 0.1
"""How far the modules of one model may be from each other, as a share of the largest output: one is wrong beyond."""


class Preflight(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a module after it ran here."""

    variants: tuple[Variant, ...]
    """Of each module: what it needs. The first is that of the source, behind it are its fallbacks."""
    self_test: SelfTest
    vectors: bytes
    vectors_given: int | None
    """How many vectors the test data had, of which a bundle holds the first few; None when they were recorded."""
    latency_us: float | None
    """The median time of one call here; None when the self-test was not run."""

    @property
    def contract(self) -> Contract:
        """What the module needs."""
        return self.variants[0].contract

    @property
    def requires(self) -> tuple[str, ...]:
        """The engine features that the module needs."""
        return self.variants[0].requires


class _Vectors(msgspec.Struct, frozen=True, kw_only=True):
    data: bytes
    count: int
    used_bytes: int
    """How much memory the module had after it ran; 0 when it did not."""


def preflight(
    source: ModelSource,
    test_data: TestData | None = None,
    *,
    memory_cap_bytes: int = limits.DEFAULT_MEMORY_CAP_BYTES,
    is_run: bool = True,
) -> Preflight:
    """Check `source` as a device would and return what a release of it needs.

    With `is_run` false the self-test is not run under the contract: a device will be the first to do so.
    Raises PreflightError when a device would refuse or fail the module.
    """
    try:
        facts = inspect(source.wasm)
        check_abi(facts)
        vectors = _vectors(source, test_data, _widest_bytes(facts, memory_cap_bytes), is_run=is_run)
        variant = _variant(source, _needed_bytes(facts, vectors.used_bytes))
        tolerances = _tolerances(source, test_data, vectors, variant.requires, is_run=is_run)
        self_test = SelfTest(file=FileRef.of(vectors.data), count=vectors.count, **tolerances)
        latency_us = _run(source, variant.contract, self_test, vectors.data) if is_run else None
        fallbacks = [_fallback(source, wasm, self_test, vectors.data, is_run=is_run) for wasm in source.fallbacks]
    except ModelError as error:
        raise refused_by_runtime(source.file_name, error) from error
    return Preflight(
        variants=(variant, *fallbacks),
        self_test=self_test,
        vectors=vectors.data,
        vectors_given=None if test_data is None else len(test_data.inputs),
        latency_us=latency_us,
    )


def load(source: ModelSource, memory_bytes: int) -> LoadedModel:
    """Return an instance of the module under the caps of its spec; raises ModelError."""
    spec = source.spec
    caps = Caps(memory_bytes=memory_bytes, stack_kib=spec.stack_kib, deadline_ms=spec.deadline_ms)
    return load_model(source.wasm, spec.inputs, spec.outputs, caps, stateful=spec.stateful)


def sample_inputs(source: ModelSource, model: LoadedModel) -> Vector:
    """Return the inputs of the first vector that would be recorded; raises ModelError."""
    return _first_inputs(source, record_vectors(model, seed=_seed(source.wasm), count=1))


def _widest_bytes(facts: ModuleFacts, memory_cap_bytes: int) -> int:
    """Return how much memory the module may take while it shows what it needs."""
    if facts.memory_min_bytes > memory_cap_bytes:
        raise MemoryCapError(
            f"expected a memory of at most {memory_cap_bytes:,} bytes, got one that starts with "
            f"{facts.memory_min_bytes:,}"
        )
    return min(facts.memory_max_bytes or memory_cap_bytes, memory_cap_bytes)


def _needed_bytes(facts: ModuleFacts, used_bytes: int) -> int:
    """Return the memory of the contract: what the module fixes, else what it came to need."""
    if not used_bytes and facts.memory_max_bytes is not None:
        return facts.memory_max_bytes
    return max(facts.memory_min_bytes, used_bytes)


def _vectors(source: ModelSource, test_data: TestData | None, widest_bytes: int, *, is_run: bool) -> _Vectors:
    """Return the self-test's vectors: given ones, completed by the module's own outputs, or recorded ones."""
    limit = _fitting_vectors(source)
    inputs = test_data.inputs[:limit] if test_data else ()
    outputs = test_data.outputs[:limit] if test_data and test_data.outputs else None
    if outputs and not is_run:
        return _Vectors(data=_join(inputs, outputs), count=len(inputs), used_bytes=0)
    with closing(load(source, widest_bytes)) as model:
        if inputs:
            model.reset()
            own = [tuple(model.infer(vector)) for vector in inputs]
            return _Vectors(data=_join(inputs, outputs or own), count=len(inputs), used_bytes=model.memory_bytes)
        count = min(RECORDED_VECTORS, limit)
        data = record_vectors(model, seed=_seed(source.wasm), count=count)
        return _Vectors(data=data, count=count, used_bytes=model.memory_bytes)


def _fitting_vectors(source: ModelSource) -> int:
    """Return how many self-test vectors of this model a bundle may hold."""
    vector_bytes = sum(t.size_bytes for t in (*source.spec.inputs, *source.spec.outputs))
    count = min(limits.MAX_SELF_TEST_VECTORS, limits.MAX_SELF_TEST_BYTES // vector_bytes)
    if count == 0:
        raise PreflightError(
            f"{source.file_name}: expected tensors of at most {limits.MAX_SELF_TEST_BYTES:,} bytes in all, "
            f"so that a self-test fits a bundle, got {vector_bytes:,}",
            hint="use smaller inputs and outputs",
        )
    return count


def _join(inputs: Sequence[Vector], outputs: Sequence[Vector]) -> bytes:
    return b"".join(b"".join(vector) for pair in zip(inputs, outputs, strict=True) for vector in pair)


def _seed(wasm: bytes) -> int:
    return int(sha256(wasm)[:8], 16)


def _variant(source: ModelSource, memory_bytes: int) -> Variant:
    contract = Contract(memory_bytes=memory_bytes, stack_kib=source.spec.stack_kib, deadline_ms=source.spec.deadline_ms)
    return Variant(file=FileRef.of(source.wasm), contract=contract, requires=required_features(source.wasm))


def _fallback(source: ModelSource, wasm: bytes, self_test: SelfTest, vectors: bytes, *, is_run: bool) -> Variant:
    """Return what a further module of the model needs, which has to pass the same self-test; its memory is fixed."""
    facts = inspect(wasm)
    check_abi(facts)
    other = msgspec.structs.replace(source, wasm=wasm, fallbacks=())
    variant = _variant(other, facts.memory_max_bytes or facts.memory_min_bytes)
    if is_run:
        _run(other, variant.contract, self_test, vectors)
    return variant


def _tolerances(
    source: ModelSource, test_data: TestData | None, vectors: _Vectors, requires: tuple[str, ...], *, is_run: bool
) -> dict[str, str]:
    """Return how far an output may be off.

    Relaxed instructions round once or twice, as the machine likes: sums of large numbers that nearly cancel differ by
    more than a part of the result. What is recorded from them is compared by the size of the largest output. In a
    quantised model the last bit of a sum may decide between two steps: there, twice what its modules differ by is
    allowed, of which one rounds twice.
    """
    if test_data is not None:
        return {"atol": test_data.atol, "rtol": test_data.rtol}
    if "relaxed_simd" not in requires:
        return {}
    largest = _largest_output(source, vectors.data)
    steps = [_difference(source, wasm, vectors) for wasm in source.fallbacks] if is_run else []
    allowed = [2 * step for step in steps if step <= _LARGEST_STEP * largest]
    atol = min(max(1e-5 + 1e-4 * largest, *allowed, 0.0), 1e8)
    return {"atol": f"{atol:.1e}".replace("+", "")}


def _difference(source: ModelSource, wasm: bytes, vectors: _Vectors) -> float:
    """Return how far the floats of another module's outputs are from those of the vectors; raises ModelError."""
    other = msgspec.structs.replace(source, wasm=wasm, fallbacks=())
    spec, offset, largest = source.spec, 0, 0.0
    with closing(load(other, _needed_bytes(inspect(wasm), 0))) as model:
        model.reset()
        for _ in range(vectors.count):
            outputs = model.infer(_first_inputs(source, vectors.data[offset:]))
            offset += sum(t.size_bytes for t in spec.inputs)
            for tensor, output in zip(spec.outputs, outputs, strict=True):
                if tensor.datatype in _FLOATS:
                    numbers = (from_bytes(tensor, raw) for raw in (output, vectors.data[offset:][: tensor.size_bytes]))
                    largest = max(largest, *(abs(a - b) for a, b in zip(*numbers, strict=True) if a != b), 0.0)
                offset += tensor.size_bytes
    return largest


def _largest_output(source: ModelSource, vectors: bytes) -> float:
    """Return the greatest size of a finite float among the outputs of the vectors."""
    spec, largest, offset = source.spec, 0.0, 0
    while offset < len(vectors):
        offset += sum(t.size_bytes for t in spec.inputs)
        for tensor in spec.outputs:
            if tensor.datatype in _FLOATS:
                numbers = map(abs, from_bytes(tensor, vectors[offset : offset + tensor.size_bytes]))
                largest = max(largest, *(n for n in numbers if n < math.inf), 0.0)
            offset += tensor.size_bytes
    return largest


def _run(source: ModelSource, contract: Contract, self_test: SelfTest, vectors: bytes) -> float:
    """Run the self-test as a device will, then return the median time of one call in microseconds."""
    with closing(load(source, contract.memory_bytes)) as model:
        run_self_test(model, self_test, vectors)
        inputs = _first_inputs(source, vectors)
        return median(_timed_us(model, inputs) for _ in range(_TIMED_CALLS))


def _first_inputs(source: ModelSource, vectors: bytes) -> Vector:
    tensors, offset = [], 0
    for spec in source.spec.inputs:
        tensors.append(vectors[offset : offset + spec.size_bytes])
        offset += spec.size_bytes
    return tuple(tensors)


def _timed_us(model: LoadedModel, inputs: Sequence[bytes]) -> float:
    started = time.perf_counter_ns()
    model.infer(inputs)
    return (time.perf_counter_ns() - started) / 1_000
