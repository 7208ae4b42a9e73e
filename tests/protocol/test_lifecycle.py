"""The tables of lives: complete, connected and without surprises. Prints how many transitions there are."""

from typing import get_args

import pytest

from protocol import lifecycle
from protocol.errors import TransitionError
from protocol.lifecycle import BAD_ENDS, DEPLOYMENT, GOOD_ENDS, NEUTRAL_ENDS, ROLLOUT, WAVE

TABLES = {
    "rollout": (ROLLOUT, lifecycle.RolloutState, "draft"),
    "wave": (WAVE, lifecycle.WaveState, "scheduled"),
    "deployment": (DEPLOYMENT, lifecycle.DeploymentState, "queued"),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_state_has_a_row(name: str) -> None:
    """The table and the type name the same states, and lead only to states that exist."""
    table, kind, _ = TABLES[name]
    assert set(get_args(kind)) == set(table)
    assert set() == {after for afters in table.values() for after in afters} - set(table)


@pytest.mark.parametrize("name", TABLES)
def test_every_state_can_be_reached(name: str) -> None:
    """No state is dead: each can come after the first."""
    table, _, start = TABLES[name]
    assert set(table) == lifecycle.reachable(table, start) | {start}


@pytest.mark.parametrize("name", TABLES)
def test_every_life_can_end(name: str) -> None:
    """From each state some final state can be reached: nothing hangs for ever by design."""
    table, _, _ = TABLES[name]
    finals = {state for state in table if lifecycle.is_final(table, state)}
    assert finals
    for state in set(table) - finals:
        assert lifecycle.reachable(table, state) & finals, state


def test_the_ends_of_a_deployment() -> None:
    """Every final state is exactly one of good, bad and neutral."""
    finals = {state for state in DEPLOYMENT if lifecycle.is_final(DEPLOYMENT, state)}
    assert finals == GOOD_ENDS | BAD_ENDS | NEUTRAL_ENDS
    assert len(finals) == len(GOOD_ENDS) + len(BAD_ENDS) + len(NEUTRAL_ENDS)


def test_success_only_after_commit() -> None:
    """`succeeded` follows `committing` and nothing else: success is never reported before it is verified."""
    assert ["committing"] == [state for state, after in DEPLOYMENT.items() if "succeeded" in after]


def test_nothing_is_activated_untested() -> None:
    """`activated` follows the self-test, or the shadow run behind it."""
    assert {"testing", "shadowing"} == {state for state, after in DEPLOYMENT.items() if "activated" in after}


def test_power_loss_is_no_dead_end() -> None:
    """From every state in which a device works on files it may start over with the download."""
    working = ("downloading", "downloaded", "verifying", "installing", "testing", "shadowing")
    assert set() == {state for state in working if "downloading" not in DEPLOYMENT[state]}


def test_an_activated_release_is_not_canceled() -> None:
    """Once activated, a deployment ends by commit or by roll back, never by an order."""
    for state in ("activated", "committing"):
        assert set() == lifecycle.reachable(DEPLOYMENT, state) & NEUTRAL_ENDS


@pytest.mark.parametrize("name", TABLES)
def test_require_agrees_with_the_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Over all pairs of states, exactly the transitions of the table are allowed."""
    table, _, _ = TABLES[name]
    allowed = 0
    for old in table:
        for new in table:
            if new in table[old]:
                lifecycle.require(table, old, new)
                allowed += 1
            else:
                with pytest.raises(TransitionError, match=f"'{old}' to '{new}'"):
                    lifecycle.require(table, old, new)
    with capsys.disabled():
        print(f"\n{name}: {len(table)} states, {allowed} transitions allowed of {len(table) ** 2} pairs")  # noqa: T201
