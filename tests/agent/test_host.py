"""The resident models: swaps, commits, roll-backs, faults, and no call lost in between."""

import struct
import threading
from collections.abc import Iterator
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host import CommitError, ModelHost, NoPreviousReleaseError, UnknownModelError
from agent.runtime import Caps, LoadedModel, assemble, load_model
from agent.runtime.errors import (
    InputError,
    ModelClosedError,
    ModelError,
    ProcessGoneError,
    StatusError,
    TrapError,
)
from agent.usage import UsageMeter
from protocol.manifest import Contract, FileRef, Manifest, Provenance, SelfTest, Variant
from protocol.tensors import TensorSpec

CAPS = Caps(memory_bytes=1 << 20, deadline_ms=200)
SCALE = "(f32.store (i32.const 64) (f32.mul (f32.const {}) (f32.load (i32.const 0)))) (i32.const 0)"
SUM = """(f32.store (i32.const 64) (f32.add (f32.load (i32.const 64)) (f32.load (i32.const 0)))) (i32.const 0)"""
TRAP = "unreachable"
TRAP_ON_NEGATIVE = "(if (f32.lt (f32.load (i32.const 0)) (f32.const 0)) (then unreachable))" + SCALE.format(7)


def number(value: float) -> bytes:
    return struct.pack("<f", value)


FORGET = "(f32.store (i32.const 64) (f32.const 0))"


def make_model(infer: str, tensor: TensorSpec, *, stateful: bool = False, forget: str = FORGET) -> LoadedModel:
    reset = f'(func (export "fleet_reset") {forget})' if stateful else ""
    wat = f"""(module (memory (export "memory") 1 1)
      (func (export "fleet_input") (param i32) (result i32) (i32.const 0))
      (func (export "fleet_output") (param i32) (result i32) (i32.const 64))
      (func $run (export "fleet_infer") (result i32) {infer}) {reset})"""
    return load_model(assemble(wat), (tensor,), (tensor,), CAPS, stateful=stateful)


def release(
    version: str, infer: str, *, stateful: bool = False, elements: int = 1, name: str = "digits"
) -> tuple[Manifest, LoadedModel]:
    tensor = TensorSpec(name="x", datatype="FP32", shape=(elements,))
    module = FileRef.of(b"module")
    manifest = Manifest(
        model=name,
        version=version,
        release_counter=1,
        inputs=(tensor,),
        outputs=(tensor,),
        variants=(Variant(file=module, contract=Contract(memory_bytes=65536)),),
        self_test=SelfTest(file=FileRef.of(bytes(8 * elements)), count=1),
        provenance=Provenance(source=module, source_name="model.wat", tool="test"),
        stateful=stateful,
    )
    return manifest, make_model(infer, tensor, stateful=stateful)


class Faults(list[tuple[str, str, str]]):
    """What the host told of: model, version, code."""

    def __call__(self, model: str, version: str, error: ModelError) -> None:
        self.append((model, version, error.code))


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def meter() -> UsageMeter:
    return UsageMeter()


@pytest.fixture
def host(meter: UsageMeter, faults: Faults) -> Iterator[ModelHost]:
    host = ModelHost(meter, faults)
    yield host
    host.close()


def ask(host: ModelHost, value: float = 1, name: str = "digits") -> tuple[str, float]:
    result = host.infer(name, [number(value)])
    return result.version, struct.unpack("<f", result.outputs[0])[0]


def test_nothing_active_is_said_with_what_is(host: ModelHost) -> None:
    """A caller who mistyped the name sees the right one."""
    with pytest.raises(UnknownModelError, match="active models: none"):
        ask(host)
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    with pytest.raises(UnknownModelError, match="'digit' is active here; active models: digits"):
        ask(host, name="digit")


def test_active_release_answers(host: ModelHost) -> None:
    """The answer carries the release that gave it."""
    manifest, model = release("1.0.0", SCALE.format(3))
    assert host.activate(manifest, model, is_committed=True) >= 1
    result = host.infer("digits", [number(2)])
    assert ("1.0.0", [number(6)], manifest) == (result.version, result.outputs, result.manifest)
    assert result.latency_us >= 0
    assert {"digits": manifest} == host.manifests()


def test_swap_keeps_the_previous_release_loaded(host: ModelHost) -> None:
    """After a swap the new release answers, and the old one is one step away."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    host.activate(*release("1.1.0", SCALE.format(2)), is_committed=False)
    assert ("1.1.0", 2) == ask(host)
    assert "1.0.0" == host.rollback("digits")
    assert ("1.0.0", 1) == ask(host)


def test_release_before_the_previous_is_unloaded(host: ModelHost) -> None:
    """Two releases of a model are resident, not more."""
    releases = [release(f"1.{n}.0", SCALE.format(n)) for n in range(3)]
    for one in releases:
        host.activate(*one, is_committed=True)
    with pytest.raises(ModelClosedError):
        releases[0][1].infer([number(1)])
    assert [number(1)] == releases[1][1].infer([number(1)])


def test_uncommitted_release_never_stands_behind_another(host: ModelHost) -> None:
    """What is kept to fall back to has been trusted once."""
    doubtful = release("1.1.0", SCALE.format(2))
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    host.activate(*doubtful, is_committed=False)
    host.activate(*release("1.2.0", SCALE.format(3)), is_committed=False)
    assert "1.0.0" == host.rollback("digits")
    with pytest.raises(ModelClosedError):
        doubtful[1].infer([number(1)])


def test_rollback_of_a_committed_release_can_be_undone(host: ModelHost) -> None:
    """Both releases were trusted: going back and forth loads nothing."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    host.activate(*release("1.1.0", SCALE.format(2)), is_committed=False)
    host.commit("digits", "1.1.0")
    assert "1.0.0" == host.rollback("digits")
    assert "1.1.0" == host.rollback("digits")
    assert ("1.1.0", 2) == ask(host)


def test_rollback_needs_a_previous_release(host: ModelHost) -> None:
    """Without one the active release stays."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=False)
    with pytest.raises(NoPreviousReleaseError, match=r"before 1\.0\.0"):
        host.rollback("digits")
    assert ("1.0.0", 1) == ask(host)


def test_unknown_model_can_neither_be_committed_nor_rolled_back(host: ModelHost) -> None:
    """The caller learns that there is nothing to act on."""
    with pytest.raises(UnknownModelError):
        host.commit("digits", "1.0.0")
    with pytest.raises(UnknownModelError):
        host.rollback("digits")


def test_release_that_is_not_active_is_not_committed(host: ModelHost) -> None:
    """Whoever trusts one release does not trust another that took its place."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=False)
    with pytest.raises(CommitError, match=r"expected 1\.1\.0 to answer, got 1\.0\.0"):
        host.commit("digits", "1.1.0")
    host.activate(*release("1.2.0", SCALE.format(2)), is_committed=False)
    with pytest.raises(NoPreviousReleaseError):
        host.rollback("digits")


def test_removed_model_is_unloaded(host: ModelHost) -> None:
    """Removing drops both releases; removing again does nothing."""
    old, new = release("1.0.0", SCALE.format(1)), release("1.1.0", SCALE.format(2))
    host.activate(*old, is_committed=True)
    host.activate(*new, is_committed=True)
    host.remove("digits")
    host.remove("digits")
    assert {} == host.manifests()
    for _, model in (old, new):
        with pytest.raises(ModelClosedError):
            model.infer([number(1)])


def test_models_are_independent(host: ModelHost) -> None:
    """A swap of one model leaves the others alone."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    host.activate(*release("2.0.0", SCALE.format(5), name="words"), is_committed=True)
    host.remove("digits")
    assert ("2.0.0", 5) == ask(host, name="words")


def test_fault_of_a_new_release_is_answered_by_the_previous(host: ModelHost, meter: UsageMeter, faults: Faults) -> None:
    """The request that found the fault is not lost, nor are those that follow."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    host.activate(*release("1.1.0", TRAP), is_committed=False)
    assert [("1.0.0", 4)] * 3 == [ask(host, 4) for _ in range(3)]
    assert [("digits", "1.1.0", "trap")] == faults
    usage = {u.version: u for u in meter.take()}
    assert (0, {"trap": 1}) == (usage["1.1.0"].inferences, usage["1.1.0"].errors)
    assert (3, {}) == (usage["1.0.0"].inferences, usage["1.0.0"].errors)
    assert "1.1.0" == host.manifests()["digits"].version
    assert "1.0.0" == host.rollback("digits")
    assert ("1.0.0", 4) == ask(host, 4)


def test_end_of_its_process_is_no_fault_of_a_release(
    host: ModelHost, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller hears that the state is gone; the new release goes on, and is not rolled back."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    manifest, model = release("1.1.0", SCALE.format(2))
    host.activate(manifest, model, is_committed=False)
    with monkeypatch.context() as patch:
        patch.setattr(model, "infer", Mock(side_effect=ProcessGoneError("it was killed")))
        with pytest.raises(ProcessGoneError):
            ask(host)
    assert ([], ("1.1.0", 2)) == (faults, ask(host))


def test_endless_release_costs_one_deadline(host: ModelHost, faults: Faults) -> None:
    """The first call waits for the deadline, the next ones go straight to the previous release."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    host.activate(*release("1.1.0", "(loop $l (br $l)) (i32.const 0)"), is_committed=False)
    slow = host.infer("digits", [number(1)])
    fast = host.infer("digits", [number(1)])
    assert ("1.0.0", "1.0.0") == (slow.version, fast.version)
    assert slow.latency_us >= 200_000 > fast.latency_us
    assert [("digits", "1.1.0", "deadline_exceeded")] == faults


def test_first_release_that_fails_has_nobody_to_answer_for_it(host: ModelHost, faults: Faults) -> None:
    """The fault is told once and every caller sees the error."""
    host.activate(*release("1.0.0", TRAP_ON_NEGATIVE), is_committed=False)
    for _ in range(2):
        with pytest.raises(TrapError):
            ask(host, -1)
    assert [("digits", "1.0.0", "trap")] == faults
    assert ("1.0.0", 7) == ask(host, 1)


def test_fault_of_a_committed_release_is_the_callers_to_see(host: ModelHost, faults: Faults) -> None:
    """A trusted release that fails on one input is not replaced for it."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    host.activate(*release("1.1.0", TRAP_ON_NEGATIVE), is_committed=True)
    with pytest.raises(TrapError):
        ask(host, -1)
    assert ("1.1.0", 7) == ask(host, 1)
    assert [] == faults


def test_status_of_the_model_is_a_fault_too(host: ModelHost, faults: Faults) -> None:
    """A release that says it failed has failed."""
    host.activate(*release("1.0.0", "(i32.const 3)"), is_committed=False)
    with pytest.raises(StatusError):
        ask(host)
    assert [("digits", "1.0.0", "model_status")] == faults


def test_wrong_input_is_no_fault_of_the_release(host: ModelHost, meter: UsageMeter, faults: Faults) -> None:
    """A caller's mistake neither suspends a release nor reaches the previous one."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    host.activate(*release("1.1.0", SCALE.format(2)), is_committed=False)
    with pytest.raises(InputError):
        host.infer("digits", [bytes(5)])
    assert ("1.1.0", 2) == ask(host)
    assert [] == faults
    assert {"bad_input": 1} == next(u.errors for u in meter.take() if u.version == "1.1.0")


def test_fault_stands_when_the_previous_release_takes_other_tensors(host: ModelHost) -> None:
    """The caller is not told that inputs are wrong which were right for the active release."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    host.activate(*release("1.1.0", TRAP, elements=2), is_committed=False)
    with pytest.raises(TrapError):
        host.infer("digits", [bytes(8)])


def test_release_that_failed_is_not_committed(host: ModelHost, faults: Faults) -> None:
    """A fault that the engine has not heard of yet still counts: the previous release goes on answering."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    host.activate(*release("1.1.0", TRAP_ON_NEGATIVE), is_committed=False)
    assert ("1.0.0", -1) == ask(host, -1)
    with pytest.raises(CommitError, match=r"1\.1\.0 failed while it answered"):
        host.commit("digits", "1.1.0")
    assert ("1.0.0", 1) == ask(host, 1)
    assert "1.0.0" == host.rollback("digits")
    assert [("digits", "1.1.0", "trap")] == faults


def test_state_does_not_cross_a_swap(host: ModelHost) -> None:
    """A stateful model starts from nothing whenever it becomes the one that answers."""
    first, second = release("1.0.0", SUM, stateful=True), release("1.1.0", SUM, stateful=True)
    second[1].infer([number(100)])
    host.activate(*first, is_committed=True)
    assert [("1.0.0", 1), ("1.0.0", 2)] == [ask(host), ask(host)]
    host.activate(*second, is_committed=False)
    assert [("1.1.0", 1), ("1.1.0", 2)] == [ask(host), ask(host)]
    host.rollback("digits")
    assert ("1.0.0", 1) == ask(host)


def test_release_whose_reset_fails_is_activated_on_a_fresh_instance(host: ModelHost) -> None:
    """The owner lowered the time limit, or its process was killed: it has forgotten all the same, and answers."""
    manifest, model = release("1.0.0", SUM, stateful=True)
    model.close()
    failing = make_model(SUM, manifest.inputs[0], stateful=True, forget=TRAP)
    assert [number(5)] == failing.infer([number(5)])
    host.activate(manifest, failing, is_committed=True)
    assert ("1.0.0", 1) == ask(host)


def test_state_is_kept_while_the_previous_release_answers_for_a_suspended_one(host: ModelHost) -> None:
    """The roll-back that follows a fault interrupts nothing."""
    host.activate(*release("1.0.0", SUM, stateful=True), is_committed=True)
    ask(host, 50)
    host.activate(*release("1.1.0", TRAP, stateful=True), is_committed=False)
    assert [("1.0.0", 1), ("1.0.0", 2)] == [ask(host), ask(host)]
    host.rollback("digits")
    assert ("1.0.0", 3) == ask(host)


def test_running_call_ends_on_the_release_it_began_on(host: ModelHost) -> None:
    """A swap waits for no call, and no call is cut off by swaps, however many."""
    slow = """(local $i i32)
      (loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 20000000))))"""
    host.activate(*release("1.0.0", slow + SCALE.format(1)), is_committed=True)
    ask(host)
    answers = []
    started = threading.Event()

    def call() -> None:
        started.set()
        answers.append(ask(host, 5))

    thread = threading.Thread(target=call)
    thread.start()
    started.wait()
    for n in range(1, 4):
        host.activate(*release(f"1.{n}.0", SCALE.format(n)), is_committed=True)
    thread.join()
    assert answers[0] in {("1.0.0", 5), ("1.1.0", 5), ("1.2.0", 10), ("1.3.0", 15)}
    assert ("1.3.0", 3) == ask(host)


class Callers:
    """Threads that ask all the time and note every answer that cannot be right."""

    def __init__(self, host: ModelHost, threads: int) -> None:
        self.wrong: list[object] = []
        self.answers = 0
        self._host = host
        self._stop = threading.Event()
        self._count = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(n + 1,)) for n in range(threads)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, value: int) -> None:
        answers = 0
        while not self._stop.is_set():
            try:
                version, got = ask(self._host, value)
            except Exception as error:  # noqa: BLE001 - whatever was raised, the call was lost
                self.wrong.append(error)
                continue
            answers += 1
            if got != value * int(version.split(".")[1]):
                self.wrong.append((version, value, got))
        with self._count:
            self.answers += answers


def test_no_call_is_lost_or_mixed_up_in_many_swaps(host: ModelHost, meter: UsageMeter) -> None:
    """While releases come, fail, are committed and rolled back, every call gets the answer of one release."""
    host.activate(*release("1.1.0", SCALE.format(1)), is_committed=True)
    with Callers(host, 4) as callers:
        for n in range(2, 150):
            is_bad = n % 5 == 0
            host.activate(*release(f"1.{n}.0", TRAP if is_bad else SCALE.format(n)), is_committed=False)
            if is_bad or n % 7 == 0:
                host.rollback("digits")
            else:
                host.commit("digits", f"1.{n}.0")
    assert [] == callers.wrong
    reports = iter(meter.take, ())
    assert callers.answers == sum(usage.inferences for report in reports for usage in report)


@pytest.mark.property
@given(st.lists(st.sampled_from(["good", "bad", "slow to commit", "commit", "rollback", "remove", "ask"]), max_size=30))
def test_any_order_of_orders_keeps_the_host_sound(orders: list[str]) -> None:
    """Against a model of what should answer: whatever is ordered, calls get the newest sound release."""
    faults = Faults()
    host = ModelHost(UsageMeter(), faults)
    trusted: list[int] = []  # what may stand behind the active release, newest last
    active: tuple[int, bool, bool] | None = None  # number, is committed, is good
    for number_, order in enumerate(orders, start=1):
        if order in ("good", "bad", "slow to commit"):
            if active is not None and active[1]:
                trusted = [active[0]]
            is_good = order != "bad"
            host.activate(
                *release(f"1.{number_}.0", SCALE.format(number_) if is_good else TRAP),
                is_committed=order == "good",
            )
            active = (number_, order == "good", is_good)
        elif order == "remove":
            host.remove("digits")
            active, trusted = None, []
        elif order == "commit" and active is not None and active[2]:
            host.commit("digits", f"1.{active[0]}.0")
            active = (active[0], True, True)
        elif order == "rollback" and active is not None:
            if not trusted:
                with pytest.raises(NoPreviousReleaseError):
                    host.rollback("digits")
                continue
            host.rollback("digits")
            active, trusted = (trusted[0], True, True), [active[0]] if active[1] else []
        elif order == "ask":
            if active is None:
                with pytest.raises(UnknownModelError):
                    ask(host)
            elif active[2]:
                assert (f"1.{active[0]}.0", active[0]) == ask(host)
            elif trusted:
                assert (f"1.{trusted[0]}.0", trusted[0]) == ask(host)
            else:
                with pytest.raises(TrapError):
                    ask(host)
    host.close()
    assert {} == host.manifests()
