"""Tests of preflight and bundle: modules are really run, and two builds are the same bytes."""

import struct
from typing import Any

import msgspec
import pytest

from agent.runtime.errors import ModelError
from agent.runtime.instance import Caps, load_model
from agent.runtime.selftest import run_self_test
from controller.bundling.bundle import Bundle, build_bundle
from controller.bundling.errors import PreflightError
from controller.bundling.preflight import RECORDED_VECTORS, Preflight, preflight
from controller.bundling.source import ModelSource, parse_source
from controller.bundling.testdata import TestData
from protocol.codec import sha256
from protocol.identifiers import Version
from protocol.manifest import Manifest
from protocol.tensors import TensorSpec
from tests.controller.wat_models import DOUBLE, GROW, LOOP, STATUS, TRAP, wasm

PAGE = 65_536


def source(infer: str | None = None, **fields: Any) -> ModelSource:
    return parse_source("model.wasm", wasm(**({} if infer is None else {"infer": infer}), **fields))


def pair(a: float, b: float) -> tuple[bytes]:
    return (struct.pack("<2f", a, b),)


def bundle(of: ModelSource, checked: Preflight | None = None, counter: int = 1) -> Bundle:
    version = Version.parse("1.0.0")
    return build_bundle(of, checked or preflight(of), model="doubler", version=version, release_counter=counter)


def test_two_builds_are_byte_identical() -> None:
    """The same file makes the same manifest, vectors and module, on any day."""
    first, second = bundle(source()), bundle(source())
    assert first == second
    assert first.digest == second.digest


def test_a_device_can_run_what_the_bundle_says() -> None:
    """The manifest parses, every file is in the bundle by its digest, and the self-test passes under the contract."""
    built = bundle(source(name="doubler"))
    manifest = Manifest.from_bytes(built.manifest_bytes)
    assert built.manifest == manifest
    variant = manifest.variants[0]
    assert {built.digest, variant.file.digest, manifest.self_test.file.digest} == set(built.files)
    assert all(digest == sha256(data) for digest, data in built.files.items())
    contract = variant.contract
    caps = Caps(memory_bytes=contract.memory_bytes, stack_kib=contract.stack_kib, deadline_ms=contract.deadline_ms)
    model = load_model(built.files[variant.file.digest], manifest.inputs, manifest.outputs, caps)
    run_self_test(model, manifest.self_test, built.files[manifest.self_test.file.digest])
    model.close()
    assert RECORDED_VECTORS == manifest.self_test.count


def test_another_module_is_tested_with_other_inputs() -> None:
    """The seed of recorded vectors is the module."""
    assert preflight(source()).vectors != preflight(source(deadline_ms=999)).vectors


@pytest.mark.parametrize(
    ("infer", "memory", "pages"),
    [(None, "1 1", 1), (None, "2 2", 2), (None, "1", 1), (None, "1 9", 1), (GROW, "1", 13), (GROW, "1 3", 1)],
    ids=["fixed", "fixed-2", "unbound", "may-grow", "grows", "may-not-grow"],
)
def test_the_contract_asks_for_the_memory_that_is_needed(infer: str | None, memory: str, pages: int) -> None:
    """Fixed memory is taken as declared, growing memory as it was after the vectors."""
    # GROW takes three more pages in each of the four calls that record a vector.
    assert pages * PAGE == preflight(source(infer, memory=memory)).contract.memory_bytes


def test_the_contract_takes_stack_and_deadline_from_the_spec() -> None:
    """What the module says it needs is what a device is asked for."""
    contract = preflight(source(stack_kib=256, deadline_ms=50)).contract
    assert (256, 50) == (contract.stack_kib, contract.deadline_ms)


@pytest.mark.parametrize(
    ("module", "code"),
    [
        (source(TRAP), "trap"),
        (source(LOOP, deadline_ms=50), "deadline_exceeded"),
        (source(STATUS), "model_status"),
        (source(stateful=True), "abi"),
    ],
    ids=["traps", "loops", "status", "no-reset"],
)
def test_a_model_that_misbehaves_is_refused(module: ModelSource, code: str) -> None:
    """The code is the one that a device would report, and the hint says what to do."""
    with pytest.raises(PreflightError, match=r"^model.wasm: ") as caught:
        preflight(module)
    assert code == caught.value.code
    assert isinstance(caught.value.__cause__, ModelError)


def test_an_import_is_refused() -> None:
    """A device provides nothing to import."""
    text = '(module (import "env" "log" (func)) (memory (export "memory") 1 1))'
    with pytest.raises(PreflightError, match=r"env\.log") as caught:
        parse_source("model.wat", text.encode())
    assert ("undeclared_import", True) == (caught.value.code, "no imports" in caught.value.hint)


def test_memory_above_the_cap_is_refused() -> None:
    """The cap is that of a device by default, and can be raised."""
    large = source(memory="3000 3000")
    with pytest.raises(PreflightError, match="134,217,728") as caught:
        preflight(large)
    assert ("memory_cap", True) == (caught.value.code, "--memory-mib" in caught.value.hint)
    assert 3000 * PAGE == preflight(large, memory_cap_bytes=256 << 20).contract.memory_bytes


def test_vectors_come_from_test_data() -> None:
    """Given inputs are run, and the module's outputs are what a device must get."""
    checked = preflight(source(), TestData(inputs=(pair(1, 2), pair(3, 4)), outputs=None))
    assert struct.pack("<8f", 1, 2, 2, 4, 3, 4, 6, 8) == checked.vectors
    assert (2, 2) == (checked.self_test.count, checked.vectors_given)


def test_wrong_outputs_of_test_data_are_refused() -> None:
    """A module that does not give the expected outputs never leaves the operator's machine."""
    data = TestData(inputs=(pair(1, 2),), outputs=(pair(2, 5),))
    with pytest.raises(PreflightError, match=r"self-test vector 0, output 'y', element 1: expected 5") as caught:
        preflight(source(), data)
    assert "self_test_failed" == caught.value.code


def test_tolerances_of_test_data_hold_here_and_on_the_device() -> None:
    """What passes here within the tolerances passes there with the same."""
    data = TestData(inputs=(pair(1, 2),), outputs=(pair(2, 4.4),), atol="0.5", rtol="0")
    self_test = preflight(source(), data).self_test
    assert ("0.5", "0") == (self_test.atol, self_test.rtol)


def test_without_a_run_given_outputs_are_taken_as_they_are() -> None:
    """Skipping the preflight lets a broken module through: the device is the first to find out."""
    data = TestData(inputs=(pair(1, 2),), outputs=(pair(2, 5),))
    checked = preflight(source(TRAP, memory="1 2"), data, is_run=False)
    assert (struct.pack("<4f", 1, 2, 2, 5), None) == (checked.vectors, checked.latency_us)
    assert 2 * PAGE == checked.contract.memory_bytes


def test_more_test_data_than_a_bundle_holds_is_cut() -> None:
    """The first 64 vectors make the self-test; how many there were is known."""
    data = TestData(inputs=tuple(pair(n, n) for n in range(100)), outputs=None)
    checked = preflight(source(), data)
    assert (64, 100) == (checked.self_test.count, checked.vectors_given)


def test_tensors_too_large_for_a_self_test_are_refused() -> None:
    """One vector has to fit a bundle."""
    huge = TensorSpec(name="x", datatype="FP32", shape=(5_000_000,))
    with pytest.raises(PreflightError, match="expected tensors of at most 16,777,216 bytes"):
        preflight(source(memory="400 400", inputs=(huge,)))


def test_provenance_names_the_source_and_its_tool() -> None:
    """A release says what it was made from."""
    of = source(producer="a compiler 1.2")
    provenance = bundle(of).manifest.provenance
    assert (of.file, "doubler.wasm", "a compiler 1.2") == (provenance.source, provenance.source_name, provenance.tool)


def test_the_name_of_the_file_is_no_part_of_the_release() -> None:
    """The same module pushed from another path, or renamed, is the same release."""
    of = source()
    assert bundle(of).digest == bundle(msgspec.structs.replace(of, file_name="final-v2 (1).WASM")).digest


def test_labels_reach_the_manifest() -> None:
    """What the outputs mean travels with the release."""
    labels = {"y": ("even", "odd")}
    assert labels == bundle(source(labels=labels)).manifest.labels


RELAXED = "(drop (f32x4.relaxed_madd (v128.const i32x4 0 0 0 0) (v128.const i32x4 0 0 0 0) (v128.const i32x4 0 0 0 0)))"


def off_by(step: float) -> ModelSource:
    """Return a model for devices whose other module gives more by a step, as a rounded sum between two steps may."""
    more = DOUBLE.replace("(f32.mul", f"(f32.add (f32.const {step}) (f32.mul").replace("))\n", ")))\n")
    return msgspec.structs.replace(source(RELAXED + DOUBLE), fallbacks=(wasm(infer=more),))


def test_modules_of_a_quantised_model_may_differ_by_a_step() -> None:
    """Recorded vectors allow twice what the modules of one model differ by, where that is little beside the outputs."""
    assert 0.06 == pytest.approx(float(preflight(off_by(0.03)).self_test.atol), rel=0.1)
    assert 0.001 > float(preflight(off_by(0.0)).self_test.atol)


def test_a_module_that_gives_something_else_is_refused() -> None:
    """A tenth of the largest output is no step, and nothing is allowed for it."""
    with pytest.raises(PreflightError, match="expected"):
        preflight(off_by(0.5))
