"""Whatever happens to a device, and in whatever order: nothing illegal is reported, and nothing that works is lost."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.engine import actions, events, slots
from protocol.lifecycle import DEPLOYMENT, DeploymentState
from protocol.messages import Progress
from tests.agent.engine.world import CONFIG, REASON, World, accepted, bad_answers, goal, good_answers

Pick = Callable[[list[Any]], Any]
"""Chooses one of several, by hypothesis or by plain chance."""

MODELS = ["a", "b"]
VERSIONS = ["1.0.0", "1.1.0", "2.0.0"]
STEPS = (
    ["assign"] * 2 + ["well"] * 5 + ["restore", "repeat", "badly", "crash", "stop", "fault", "fault", "wait", "squeeze"]
)
# What a device of this version never does: ask a person, run a release in the shadow, or time out.
FOREIGN = frozenset({"waiting_for_confirmation", "shadowing", "timed_out"})
# What the table allows and this engine leaves out: only the controller ends a queued deployment; `downloaded` passes
# into `verifying` in one step; nothing can go wrong while nothing is done (`retrieved`).
NEVER = {
    *(("queued", new) for new in DEPLOYMENT["queued"] if new != "retrieved"),
    *(("downloaded", new) for new in DEPLOYMENT["downloaded"] if new != "verifying"),
    ("retrieved", "failed"),
}


def picker(data: st.DataObject) -> Pick:
    """Return the choice that hypothesis makes, and shrinks."""
    return lambda options: data.draw(st.sampled_from(options))


def drive(world: World, pick: Pick, count: int) -> None:
    """Let `count` random things happen."""
    said = accepted(1)
    for number in range(count):
        what = pick(STEPS)
        world.now_ms += pick([0, 10, CONFIG.soak_ms])
        if what == "assign":
            said = assignment(pick, number, world)
            world.feed(said)
        elif what == "repeat":
            world.feed(said)
        elif what == "restore":
            said = restored(said, number, world)
            world.feed(said)
        elif what in ("well", "badly") and world.pending:
            action = world.pending.pop(pick(list(range(len(world.pending)))))
            bad = bad_answers(action)
            world.do([pick(bad)] if what == "badly" and bad else good_answers(action))
        elif what in ("crash", "stop"):
            world.restart(is_clean=what == "stop")
        elif what == "fault":
            disturb(pick(MODELS), pick, world)
        else:
            world.feed(events.Squeezed() if what == "squeeze" else events.Ticked())


def restored(said: events.AssignmentAccepted, number: int, world: World) -> events.AssignmentAccepted:
    """Return the newest assignment from a director that has forgotten how every deployment ended."""
    current = {m.current.goal.deployment_id for m in world.state.models.values() if m.current}
    world.forgotten = set(world.reported) - current
    goals = {name: replace(goal, is_open=True) for name, goal in said.goals.items()}
    return replace(said, version=number + 1, goals=goals)


def disturb(model: str, pick: Pick, world: World) -> None:
    """Let a release of `model` fail while it answers, and a download say how far it is."""
    current = world.state.models[model].current if model in world.state.models else None
    version = pick([current.goal.version, "1.0.0"]) if current else "1.0.0"
    world.feed(events.Faulted(model=model, version=version, reason=REASON))
    if world.pending and isinstance(world.pending[-1], actions.RollBack):
        action = world.pending.pop()
        world.do(pick([bad_answers(action), good_answers(action)]))
    elif current:
        progress = Progress(done_bytes=1, total_bytes=2)
        world.feed(events.Progressed(model=model, deployment_id=current.goal.deployment_id, progress=progress))


def assignment(pick: Pick, number: int, world: World) -> events.AssignmentAccepted:
    """Return a new assignment: each model is named, removed, unknown to the image repository, refused or left out."""
    goals = {}
    for model in MODELS:
        version, deployment_id = pick(VERSIONS), f"{model}{number}"
        kind = pick(["named", "named", "named", "removed", "unknown", "refused", "left out"])
        if kind == "named":
            goals[model] = goal(deployment_id, version)
        elif kind == "removed":
            goals[model] = goal(deployment_id, version, manifest=None, is_removal=True)
        elif kind == "unknown":
            goals[model] = goal(deployment_id, version, manifest=None)
        elif kind == "refused":
            goals[model] = goal(deployment_id, version, manifest=None, refusal=REASON)
    running = [m.current.goal.deployment_id for m in world.state.models.values() if m.current]
    canceled = tuple(d for d in running if pick([True, False, False]))
    return accepted(number + 1, canceled, **goals)


@pytest.mark.property
@given(st.data(), st.integers(5, 40))
def test_no_sequence_of_events_breaks_a_rule(data: st.DataObject, count: int) -> None:
    """World checks every receipt against the table and every change of slots; here everything happens at random."""
    drive(World(), picker(data), count)


@pytest.mark.property
@given(st.data(), st.integers(0, 30))
def test_device_reaches_what_is_wanted_once_the_world_behaves(data: st.DataObject, count: int) -> None:
    """After any past, an assignment that nothing stands against is fulfilled."""
    world = World()
    drive(world, picker(data), count)
    world.feed(accepted(99, a=goal("last a", "3.0.0"), b=goal("last b", manifest=None, is_removal=True)))
    world.run_well()
    active = {name: model.active.version for name, model in world.state.models.items() if model.active}
    assert {"a": "3.0.0"} == active
    assert [] == [name for name, model in world.state.models.items() if model.current]


@pytest.mark.property
@given(st.integers(0, 12))
def test_restart_at_any_moment_leads_to_the_same_end(moment: int) -> None:
    """A device that loses power once, anywhere, ends with the releases of one that did not."""
    ends = []
    for has_crash in (False, True):
        world = World()
        world.feed(accepted(1, a=goal("d1", "1.0.0")))
        world.run_well()
        world.feed(accepted(2, a=goal("d2", "2.0.0"), b=goal("d3", "1.0.0")))
        for number in range(13):
            if has_crash and number == moment:
                world.restart()
            if world.pending:
                world.do(good_answers(world.pending.pop(0)))
            world.now_ms += CONFIG.soak_ms // 3
            world.feed(events.Ticked())
        world.run_well()
        ends.append(slots(world.state))
    assert ends[0] == ends[1]


def test_random_lives_cover_every_transition_of_the_table_that_is_a_devices_own() -> None:
    """Counts the transitions of the lifecycle table that random lives go through, and names those that they missed."""
    seen: set[tuple[DeploymentState, DeploymentState]] = set()
    rng = random.Random(1)
    for _ in range(500):
        world = World()
        drive(world, rng.choice, 60)
        seen |= world.transitions
    every = {(old, new) for old, followers in DEPLOYMENT.items() for new in followers}
    mine = {(old, new) for old, new in every if not {old, new} & FOREIGN} - NEVER
    count = f"{len(seen)} of {len(mine)} transitions of a device covered, {len(every)} in the table"
    print(f"lifecycle: {count}")  # noqa: T201 - shown by pytest -s
    assert [] == sorted(mine - seen)
    assert set() == seen & NEVER
