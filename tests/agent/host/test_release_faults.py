"""Faults of a release, and what it remembers: who answers, and who hears of it."""

from unittest.mock import Mock

import pytest

from agent.host import CommitError, ModelHost
from agent.runtime.errors import (
    InputError,
    ProcessGoneError,
    StatusError,
    TrapError,
)
from agent.usage import UsageMeter
from tests.agent.host.conftest import SCALE, SUM, TRAP, TRAP_ON_NEGATIVE, Faults, ask, make_model, number, release


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
