"""The pure rules of rollouts: who gets a release, what a device is told, what its receipts mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.rollouts import (
    MAX_CANCELED,
    Candidate,
    Installed,
    Standing,
    apply_receipt,
    build_assignment,
    outcome,
    plan_release,
    plan_removal,
    superseded,
)
from protocol import lifecycle, limits
from protocol.assignment import AgentConfig, AssignedRelease, Removal
from protocol.identifiers import parse_device_id
from protocol.lifecycle import DEPLOYMENT, DeploymentState
from protocol.messages import Receipt
from tests.controller.service.fleet import CAPACITY, HAPPY, bundle

DEVICE = parse_device_id("press-1")
STATES = st.sampled_from(sorted(DEPLOYMENT))
RELEASE = bundle().manifest


def candidate(**fields: object) -> Candidate:
    values: dict[str, object] = {
        "device": "press-1",
        "liveness": "online",
        "capacity": CAPACITY,
        "installed": None,
        **fields,
    }
    return Candidate(**values)  # type: ignore[arg-type]


def standing(**fields: object) -> Standing:
    values: dict[str, object] = {
        "id": "r-1-1",
        "model": "double",
        "version": "1.0.0",
        "number": 1,
        "state": "queued",
        **fields,
    }
    return Standing(**values)  # type: ignore[arg-type]


def receipt(state: DeploymentState, seq: int = 1, **fields: object) -> Receipt:
    values: dict[str, object] = {"deployment_id": "r-1-1", "model": "double", "version": "1.0.0", **fields}
    return Receipt(seq=seq, state=state, at_ms=1, session=1, **values)  # type: ignore[arg-type]


def decide(one: Candidate, **fields: object) -> tuple[str, str | None]:
    (planned,) = plan_release(RELEASE, [one], **fields)  # type: ignore[arg-type]
    return planned.decision, planned.reason


def test_a_device_that_can_take_the_release_gets_it() -> None:
    """The plan says what will be downloaded: the variant that fits, and the vectors."""
    (planned,) = plan_release(RELEASE, [candidate()])
    expected = RELEASE.variants[0].file.size + RELEASE.self_test.file.size
    assert ("deploy", expected) == (planned.decision, planned.download_bytes)


def test_a_device_that_was_never_seen_gets_it_and_checks_for_itself() -> None:
    """Nothing is known about its capacity yet."""
    assert decide(candidate(capacity=None, liveness="never_seen")) == ("deploy", None)


def test_a_device_that_committed_the_release_is_done() -> None:
    """There is nothing to download for it."""
    assert decide(candidate(installed="1.0.0")) == ("already_installed", None)


def test_a_device_on_its_way_to_another_release_is_called_back() -> None:
    """What it has committed is what it will have left in a moment."""
    assert decide(candidate(installed="1.0.0", open_version="2.0.0")) == ("deploy", None)


def test_a_device_whose_limits_are_exceeded_is_refused_with_the_reason() -> None:
    """The contract is compared with what the device reported."""
    small = bundle(memory_bytes=65 << 20).manifest
    (planned,) = plan_release(small, [candidate()])
    assert planned.decision == "refused"
    assert "memory" in (planned.reason or "")


def test_a_device_with_the_most_models_takes_no_further_one() -> None:
    """But a new release of a model that it has is fine."""
    full = limits.MAX_MODELS_PER_DEVICE
    assert "refused" == decide(candidate(other_models=full))[0]
    assert "deploy" == decide(candidate(other_models=full, installed="0.9.0"))[0]


def test_a_refused_release_goes_to_nobody() -> None:
    """Not even to a device that has it: a yanked release is no longer a target."""
    assert decide(candidate(installed="1.0.0"), refusal="yanked") == ("refused", "yanked")


def test_a_removal_concerns_who_has_the_model_or_is_getting_it() -> None:
    """Others are not mentioned."""
    planned = plan_removal(
        [
            candidate(device="a", installed="1.0.0"),
            candidate(device="b"),
            candidate(device="c", open_version="1.0.0"),
        ]
    )
    assert ["a", "c"] == [p.device for p in planned]


def test_only_what_is_not_active_yet_can_be_replaced() -> None:
    """An activated release is committed or rolled back by the device."""
    standings = [standing(id=state, state=state) for state in DEPLOYMENT]
    expected = {s for s in DEPLOYMENT if DEPLOYMENT[s] and s not in ("activated", "committing")}
    assert expected == set(superseded(standings))


def build(installed: list[Installed], standings: list[Standing]):  # type: ignore[no-untyped-def]
    return build_assignment(DEVICE, installed, standings, issued_at_ms=7, config=AgentConfig())


def test_the_newest_unfinished_deployment_is_what_is_desired() -> None:
    """It wins over what is installed, and over older ones."""
    built = build(
        [Installed(model="double", version="1.0.0", deployment_id="r-1-1")],
        [standing(id="r-2-1", number=2, version="2.0.0"), standing(id="r-3-1", number=3, version="3.0.0")],
    )
    assert (AssignedRelease(model="double", version="3.0.0", deployment_id="r-3-1", is_open=True),) == built.releases


@pytest.mark.parametrize("state", sorted(lifecycle.BAD_ENDS | lifecycle.NEUTRAL_ENDS))
def test_what_ended_badly_is_no_longer_desired(state: DeploymentState) -> None:
    """The device is to run what it has committed."""
    built = build(
        [Installed(model="double", version="1.0.0", deployment_id="r-1-1")],
        [standing(id="r-2-1", number=2, version="2.0.0", state=state)],
    )
    assert (AssignedRelease(model="double", version="1.0.0", deployment_id="r-1-1"),) == built.releases


def test_a_removal_takes_the_release_away_and_says_so() -> None:
    """A model is never both assigned and removed."""
    built = build(
        [
            Installed(model="double", version="1.0.0", deployment_id="r-1-1"),
            Installed(model="other", version="1.0.0", deployment_id="r-0-1"),
        ],
        [standing(id="r-2-1", number=2, is_removal=True)],
    )
    assert ("other",) == tuple(r.model for r in built.releases)
    assert (Removal(model="double", version="1.0.0", deployment_id="r-2-1", is_open=True),) == built.removals


def test_a_new_deployment_ends_an_unfinished_removal() -> None:
    """The newest wish counts."""
    built = build([], [standing(id="r-2-1", number=2, is_removal=True), standing(id="r-3-1", number=3)])
    assert ((), ("r-3-1",)) == (built.removals, tuple(r.deployment_id for r in built.releases))


def test_the_document_names_the_newest_withdrawn_deployments() -> None:
    """A long history of stops does not make the document grow without end."""
    closed = [
        standing(id=f"r-{n}-1", number=n, state="canceled", is_closed_by_controller=True)
        for n in range(1, 2 * MAX_CANCELED)
    ]
    built = build([], closed)
    assert tuple(s.id for s in closed[-MAX_CANCELED:]) == built.canceled


def walk(states: list[DeploymentState], start: Standing) -> Standing:
    """Apply receipts in order, as the store does."""
    current = start
    for seq, state in enumerate(states, start=1):
        effect = apply_receipt(current, receipt(state, seq), "s")
        if effect.ignored is None and effect.state is not None:
            current = standing(state=effect.state, stream="s", seq=seq, is_removal=start.is_removal)
    return current


def test_a_deployment_follows_the_receipts_to_success() -> None:
    """Only the last one installs."""
    effects = [apply_receipt(standing(), receipt(state), "s") for state in HAPPY]
    assert [False] * (len(HAPPY) - 1) + [True] == [effect.installs for effect in effects]
    assert "succeeded" == walk(list(HAPPY), standing()).state


@pytest.mark.property
@given(st.lists(STATES, max_size=20))
def test_no_receipt_leads_out_of_a_final_state(states: list[DeploymentState]) -> None:
    """Whatever a device says, its history is a path of the lifecycle table."""
    current = standing()
    for seq, state in enumerate(states, start=1):
        effect = apply_receipt(current, receipt(state, seq), "s")
        if effect.ignored is not None:
            continue
        assert effect.state in lifecycle.reachable(DEPLOYMENT, current.state)
        assert not lifecycle.is_final(DEPLOYMENT, current.state)
        current = standing(state=effect.state, stream="s", seq=seq)


@pytest.mark.property
@given(st.data())
def test_repeated_receipts_change_nothing(data: st.DataObject) -> None:
    """A device that missed its acknowledgement sends everything again, from any point."""
    length = data.draw(st.integers(1, len(HAPPY)))
    current = walk(list(HAPPY[:length]), standing())
    current = standing(state=current.state, stream="s", seq=length)
    for seq in range(data.draw(st.integers(1, length)), length + 1):
        effect = apply_receipt(current, receipt(HAPPY[seq - 1], seq), "s")
        assert effect.ignored in ("stale", "final")


@pytest.mark.parametrize(
    ("given_standing", "given_receipt", "expected"),
    [
        (standing(), receipt("retrieved", version="2.0.0"), "wrong_release"),
        (standing(), receipt("retrieved", model="other"), "wrong_release"),
        (standing(stream="s", seq=5, state="testing"), receipt("downloading", seq=5), "stale"),
        (standing(), receipt("removed"), "wrong_kind"),
        (standing(is_removal=True), receipt("succeeded"), "wrong_kind"),
        (standing(state="failed"), receipt("retrieved", seq=9), "final"),
        (standing(state="installing"), receipt("retrieved"), "no_transition"),
        (standing(state="canceled", is_closed_by_controller=True), receipt("installing"), "withdrawn"),
    ],
)
def test_a_receipt_that_makes_no_sense_is_ignored(
    given_standing: Standing, given_receipt: Receipt, expected: str
) -> None:
    """It is stored with the reason, and changes nothing."""
    assert expected == apply_receipt(given_standing, given_receipt, "s").ignored


def test_a_device_that_committed_before_it_heard_of_the_stop_is_believed() -> None:
    """The record follows what really runs."""
    effect = apply_receipt(standing(state="canceled", is_closed_by_controller=True), receipt("succeeded"), "s")
    assert ("succeeded", True) == (effect.state, effect.installs)


@pytest.mark.parametrize("state", ["canceled", "superseded", "failed"])
def test_a_device_that_confirms_the_stop_changes_nothing(state: DeploymentState) -> None:
    """It was closed already; now both know."""
    effect = apply_receipt(standing(state="canceled", is_closed_by_controller=True), receipt(state), "s")
    assert (None, None) == (effect.state, effect.ignored)


def test_a_device_that_lost_power_downloads_again() -> None:
    """The status may go back to downloading, and on from there."""
    assert "succeeded" == walk([*HAPPY[:5], *HAPPY[1:]], standing()).state


@pytest.mark.parametrize(
    ("before", "deployments", "expected"),
    [
        ("running", {"queued": 1, "succeeded": 2}, ("running", "running", False)),
        ("running", {"succeeded": 2, "failed": 1}, ("finished", "finished", True)),
        ("running", {"failed": 2, "superseded": 1}, ("finished", "error", True)),
        ("running", {"already_installed": 2}, ("finished", "finished", True)),
        ("running", {}, ("finished", "finished", True)),
        ("stopping", {"activated": 1, "canceled": 2}, ("stopping", "running", False)),
        ("stopping", {"succeeded": 1, "canceled": 2}, ("stopped", "finished", True)),
    ],
)
def test_a_rollout_ends_when_all_its_deployments_have(
    before: lifecycle.RolloutState, deployments: dict[DeploymentState, int], expected: tuple[str, str, bool]
) -> None:
    """Failures end it as well: none is tried again for ever."""
    found = outcome(before, deployments)
    assert expected == (found.rollout, found.wave, found.is_finished)
