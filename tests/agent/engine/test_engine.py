"""The life of a deployment on a device, step by step."""

import pytest

from agent.engine import State, actions, events, next_deadline_ms, references, slots, step
from protocol.messages import Progress, Reason, SlotReport
from tests.agent.engine.world import CONFIG, REASON, World, accepted, bad_answers, file, goal, good_answers

HAPPY = [
    "retrieved",
    "downloading",
    "downloaded",
    "verifying",
    "installing",
    "testing",
    "activated",
    "committing",
    "succeeded",
]


def installed(*versions: str) -> World:
    """Return a world in which these releases of `m` were deployed one after another."""
    world = World()
    for number, version in enumerate(versions):
        world.feed(accepted(number + 1, m=goal(f"d{version}", version)))
        world.run_well()
    return world


def advance(world: World, state: str) -> None:
    """Let the world do its work until the deployment of `m` is in `state`."""
    for _ in range(20):
        current = world.state.models["m"].current
        assert current is not None
        if current.state == state:
            return
        world.do(good_answers(world.pending.pop(0)))
    raise AssertionError(f"never reached {state}")


def test_new_release_goes_through_every_phase_and_is_committed() -> None:
    """A release that works is reported phase by phase, with what each phase took."""
    world = World()
    world.feed(accepted(m=goal("d1")))
    world.run_well()
    assert HAPPY == world.states("d1")
    assert (SlotReport(model="m", active="1.0.0"),) == slots(world.state)
    expected = {"download_ms": 0, "verify_ms": 2, "compile_ms": 3, "self_test_ms": 4, "swap_us": 5}
    assert expected == world.receipts[-1].measures


def test_release_before_stays_behind_as_previous() -> None:
    """After an update the device holds the new release and the one before it, and both releases' files."""
    world = installed("1.0.0", "1.1.0")
    assert (SlotReport(model="m", active="1.1.0", previous="1.0.0"),) == slots(world.state)
    kept = {file(f"{kind} {v}").digest for kind in ("manifest", "module", "vectors") for v in ("1.0.0", "1.1.0")}
    assert kept == references(world.state)


def test_same_assignment_again_changes_nothing() -> None:
    """The retained document comes with every connection; it starts nothing twice."""
    world = installed("1.0.0")
    before = world.state
    assert () == world.feed(accepted(1, m=goal("d1.0.0")))
    assert before == world.state


def test_version_that_is_active_already_is_not_installed_again() -> None:
    """A new deployment of the active version ends at once, without a download."""
    world = installed("1.0.0")
    world.feed(accepted(2, m=goal("again")))
    assert ["retrieved", "already_installed"] == world.states("again")
    assert [] == world.pending


@pytest.mark.parametrize("state", ["downloading", "verifying", "installing", "testing"])
def test_failure_in_each_phase_keeps_the_active_release(state: str) -> None:
    """Whatever phase fails, the deployment ends with the reason and the active release stays."""
    world = installed("1.0.0")
    world.feed(accepted(2, m=goal("d2", "2.0.0")))
    advance(world, state)
    world.do(bad_answers(world.pending.pop(0))[:1])
    assert ("failed", REASON) == (world.receipts[-1].state, world.receipts[-1].reason)
    assert (SlotReport(model="m", active="1.0.0"),) == slots(world.state)


def test_failed_deployment_is_not_tried_again() -> None:
    """A deployment that failed stays failed, however often the assignment names it, also after a restart."""
    world = World()
    world.feed(accepted(1, m=goal("d1")))
    world.do(bad_answers(world.pending.pop(0))[:1])
    for _ in range(3):
        world.feed(accepted(1, m=goal("d1")))
        world.restart()
    assert [] == [a for a in world.pending if isinstance(a, actions.Download)]


def test_one_failed_deployment_does_not_block_the_next() -> None:
    """After a failure the next deployment of the same model starts at once."""
    world = World()
    world.feed(accepted(1, m=goal("d1")))
    world.do(bad_answers(world.pending.pop(0))[:1])
    world.feed(accepted(2, m=goal("d2", "1.0.1")))
    world.run_well()
    assert HAPPY == world.states("d2")


def test_rejection_is_another_end_than_failure() -> None:
    """What no further attempt can mend is rejected."""
    world = World()
    world.feed(accepted(1, m=goal("d1")))
    world.do([bad_answers(world.pending.pop(0))[1]])
    assert ["retrieved", "downloading", "rejected"] == world.states("d1")


def test_release_that_the_domains_disagree_about_is_rejected() -> None:
    """A refusal ends the deployment before anything is downloaded."""
    world = World()
    refusal = Reason.of("domains_disagree", "two manifests")
    world.feed(accepted(1, m=goal("d1", manifest=None, refusal=refusal)))
    assert ["retrieved", "rejected"] == world.states("d1")
    assert refusal == world.receipts[-1].reason


def test_release_that_the_image_repository_does_not_know_waits() -> None:
    """The two domains arrive in any order: the deployment waits until both name the release."""
    world = World()
    world.feed(accepted(1, m=goal("d1", manifest=None)))
    assert ["retrieved"] == world.states("d1")
    world.feed(accepted(1, m=goal("d1")))
    world.run_well()
    assert HAPPY == world.states("d1")


def test_newer_goal_supersedes_work_in_progress() -> None:
    """A newer release takes the place of one that is still being installed."""
    world = World()
    world.feed(accepted(1, m=goal("d1")))
    todo = world.feed(accepted(2, m=goal("d2", "2.0.0")))
    assert actions.Abandon(model="m", deployment_id="d1") in todo
    assert ["retrieved", "downloading", "superseded"] == world.states("d1")
    world.run_well()
    assert HAPPY == world.states("d2")


def test_newer_goal_waits_for_the_soak_of_an_activated_release() -> None:
    """A release that already answers requests is committed or rolled back before the next one starts."""
    world = World()
    world.feed(accepted(1, m=goal("d1")))
    advance(world, "activated")
    world.feed(accepted(2, m=goal("d2", "2.0.0")))
    assert [] == world.states("d2")
    world.run_well()
    assert HAPPY == world.states("d1")
    assert HAPPY == world.states("d2")


def test_canceled_deployment_is_given_up() -> None:
    """A deployment that the operator cancels in time ends as canceled, and the work stops."""
    world = World()
    world.feed(accepted(1, m=goal("d1")))
    todo = world.feed(accepted(2, canceled=("d1",)))
    assert ["retrieved", "downloading", "canceled"] == world.states("d1")
    assert actions.Abandon(model="m", deployment_id="d1") in todo


def test_cancellation_comes_too_late_for_an_activated_release() -> None:
    """What already answers requests is committed all the same."""
    world = World()
    world.feed(accepted(1, m=goal("d1")))
    advance(world, "activated")
    world.feed(accepted(2, canceled=("d1",), m=goal("d1")))
    world.run_well()
    assert "succeeded" == world.reported["d1"]


def test_goal_that_the_assignment_no_longer_names_is_given_up() -> None:
    """A model that vanishes from the assignment keeps its active release; its unfinished deployment ends."""
    world = installed("1.0.0")
    world.feed(accepted(2, m=goal("d2", "2.0.0")))
    world.feed(accepted(3))
    assert "superseded" == world.reported["d2"]
    assert (SlotReport(model="m", active="1.0.0"),) == slots(world.state)


def test_removal_takes_everything_of_a_model_away() -> None:
    """A removal stops serving, forgets both slots and is not repeated."""
    world = installed("1.0.0", "1.1.0")
    todo = world.feed(accepted(3, m=goal("gone", manifest=None, is_removal=True)))
    assert actions.Unload(model="m") in todo
    assert actions.Collect() in todo
    assert ["retrieved", "removed"] == world.states("gone")
    assert () == slots(world.state)
    assert () == world.feed(accepted(3, m=goal("gone", manifest=None, is_removal=True)))
    assert frozenset() == references(world.state)


def test_fault_during_the_soak_rolls_back() -> None:
    """A release that fails while it answers requests is taken out again, with the fault as the reason."""
    world = installed("1.0.0")
    world.feed(accepted(2, m=goal("d2", "2.0.0")))
    advance(world, "activated")
    todo = world.feed(events.Faulted(model="m", version="2.0.0", reason=REASON))
    assert actions.RollBack(model="m", deployment_id="d2", has_previous=True) in todo
    world.run_well()
    assert ("rolled_back", REASON) == (world.receipts[-1].state, world.receipts[-1].reason)
    assert (SlotReport(model="m", active="1.0.0"),) == slots(world.state)


def test_fault_of_the_committed_release_is_no_reason_to_roll_back() -> None:
    """A fault of another release than the one on trial changes nothing."""
    world = installed("1.0.0")
    world.feed(accepted(2, m=goal("d2", "2.0.0")))
    advance(world, "activated")
    assert () == world.feed(events.Faulted(model="m", version="1.0.0", reason=REASON))


def test_soak_must_pass_before_the_commit() -> None:
    """The commit comes when the soak has passed on the engine's clock, not before."""
    world = World()
    world.feed(accepted(1, m=goal("d1")))
    world.now_ms = 500
    advance(world, "activated")
    assert 500 + CONFIG.soak_ms == next_deadline_ms(world.state)
    world.now_ms = 500 + CONFIG.soak_ms - 1
    assert () == world.feed(events.Ticked())
    world.now_ms += 1
    world.feed(events.Ticked())
    assert "committing" == world.reported["d1"]


@pytest.mark.parametrize("state", ["downloading", "verifying", "installing", "testing"])
def test_restart_in_each_phase_looks_for_the_files_again_and_finishes(state: str) -> None:
    """Power loss in any phase before activation goes back to downloading, and the deployment ends well."""
    world = World()
    world.feed(accepted(1, m=goal("d1")))
    advance(world, state)
    world.restart()
    world.run_well()
    assert "succeeded" == world.reported["d1"]


def test_restart_during_the_soak_swaps_the_release_in_again() -> None:
    """After a power loss during the soak both releases are loaded, and the soak begins anew."""
    world = installed("1.0.0")
    world.feed(accepted(2, m=goal("d2", "2.0.0")))
    advance(world, "activated")
    world.restart()
    assert ["Load", "Reactivate"] == [type(a).__name__ for a in world.pending]
    world.run_well()
    assert HAPPY == world.states("d2")


def test_release_that_brings_the_agent_down_is_rolled_back_in_the_end() -> None:
    """A provisional release during which the agent dies again and again is given up."""
    world = installed("1.0.0")
    world.feed(accepted(2, m=goal("d2", "2.0.0")))
    advance(world, "activated")
    for _ in range(CONFIG.max_boot_attempts + 1):
        world.restart()
    assert ("rolled_back", "crashed") == (world.receipts[-1].state, world.receipts[-1].reason.code)  # type: ignore[union-attr]
    assert ["Load"] == [type(a).__name__ for a in world.pending]


def test_release_that_brings_the_agent_down_while_it_is_tested_fails_in_the_end() -> None:
    """The same holds before activation, so that no device reboots for ever."""
    world = World()
    world.feed(accepted(1, m=goal("d1")))
    for _ in range(CONFIG.max_boot_attempts + 1):
        advance(world, "testing")
        world.restart()
    assert "failed" == world.reported["d1"]


def test_clean_stops_are_not_crashes() -> None:
    """An agent that is stopped and started as often as one likes goes on with its work."""
    world = World()
    world.feed(accepted(1, m=goal("d1")))
    advance(world, "activated")
    for _ in range(10):
        world.restart(is_clean=True)
    world.run_well()
    assert "succeeded" == world.reported["d1"]


def test_restart_between_commit_and_its_receipt_ends_the_commit() -> None:
    """What was decided is not undone: after the restart the new release is the active one."""
    world = installed("1.0.0")
    world.feed(accepted(2, m=goal("d2", "2.0.0")))
    advance(world, "activated")
    world.now_ms += CONFIG.soak_ms
    world.feed(events.Ticked())
    world.restart()
    assert HAPPY == world.states("d2")
    load = world.pending[0]
    assert isinstance(load, actions.Load)
    assert "2.0.0" == load.installed.version


def test_commit_that_the_host_refuses_is_rolled_back() -> None:
    """A fault that the engine hears of only after the soak ends the deployment as one during the soak does."""
    world = installed("1.0.0")
    world.feed(accepted(2, m=goal("d2", "2.0.0")))
    advance(world, "activated")
    world.now_ms += CONFIG.soak_ms
    world.feed(events.Ticked())
    world.do(bad_answers(world.pending.pop(0)))
    world.feed(events.Faulted(model="m", version="2.0.0", reason=REASON))
    world.run_well()
    assert ["committing", "rolled_back"] == world.states("d2")[-2:]
    assert (SlotReport(model="m", active="1.0.0"),) == slots(world.state)


def test_restart_after_a_refused_commit_ends_the_rollback() -> None:
    """The power goes between the refusal and the rollback: the release that failed is not trusted after all."""
    world = installed("1.0.0")
    world.feed(accepted(2, m=goal("d2", "2.0.0")))
    advance(world, "activated")
    world.now_ms += CONFIG.soak_ms
    world.feed(events.Ticked())
    world.do(bad_answers(world.pending.pop(0)))
    world.restart()
    assert ("rolled_back", REASON) == (world.receipts[-1].state, world.receipts[-1].reason)


def test_restart_during_a_rollback_ends_the_rollback() -> None:
    """A fault that was noted before the power went is not forgotten."""
    world = installed("1.0.0")
    world.feed(accepted(2, m=goal("d2", "2.0.0")))
    advance(world, "activated")
    world.feed(events.Faulted(model="m", version="2.0.0", reason=REASON))
    world.restart()
    assert ("rolled_back", REASON) == (world.receipts[-1].state, world.receipts[-1].reason)


def test_damaged_active_release_is_replaced_by_the_previous_one_and_repaired() -> None:
    """A release whose files went bad is served by the one before it, and got again without a word to the operator."""
    world = installed("1.0.0", "1.1.0")
    world.restart()
    reported = len(world.receipts)
    world.do(bad_answers(world.pending.pop(0)))
    assert "1.0.0" == world.state.models["m"].active.version  # type: ignore[union-attr]
    world.run_well()
    assert (SlotReport(model="m", active="1.1.0", previous="1.0.0"),) == slots(world.state)
    assert reported == len(world.receipts)


def test_release_that_soaks_answers_again_after_a_damaged_one_was_replaced() -> None:
    """The load of the previous release takes the place of the provisional one: the soak waits until that is back."""
    world = installed("1.0.0", "1.1.0")
    world.feed(accepted(3, m=goal("d3", "2.0.0")))
    advance(world, "activated")
    world.restart()
    load, reactivate = world.pending
    world.pending.clear()
    world.do([*bad_answers(load), *good_answers(reactivate)])
    assert [actions.Load, actions.Reactivate] == [type(action) for action in world.pending]
    world.run_well()
    assert "succeeded" == world.states("d3")[-1]
    assert (SlotReport(model="m", active="2.0.0", previous="1.0.0"),) == slots(world.state)


def test_files_that_the_disk_spoils_are_fetched_again_but_not_for_ever() -> None:
    """A damaged file sends the deployment back to downloading, until it happened too often."""
    world = World()
    world.feed(accepted(1, m=goal("d1")))
    for _ in range(CONFIG.max_boot_attempts + 1):
        advance(world, "verifying")
        world.do([bad_answers(world.pending.pop(0))[2]])
    assert "failed" == world.reported["d1"]


def test_previous_releases_make_way_for_a_download_without_room() -> None:
    """A full disk costs the way back before it costs the way forward."""
    world = installed("1.0.0", "1.1.0")
    assert actions.Collect() in world.feed(events.Squeezed())
    assert (SlotReport(model="m", active="1.1.0"),) == slots(world.state)
    assert () == world.feed(events.Squeezed())


def test_files_of_a_release_that_is_not_served_stay_while_it_is_wanted() -> None:
    """What it lacked, such as memory or a limit, may come back where no network is; another goal lets them go."""
    world = installed("1.0.0", "1.1.0")
    both = references(world.state)
    world.restart()
    load = world.pending.pop(0)
    assert isinstance(load, actions.Load)
    world.do(bad_answers(load))
    assert both == references(world.state)
    world.do([bad_answers(a)[0] for a in world.pending if isinstance(a, actions.Download)])
    assert world.state.models["m"].repair_at_ms
    assert both == references(world.state)
    world.restart()
    world.pending = [a for a in world.pending if not isinstance(a, actions.Load)]
    world.run_well()
    assert (SlotReport(model="m", active="1.1.0", previous="1.0.0"),) == slots(world.state)
    assert both == references(world.state)
    world.restart()
    world.do(bad_answers(world.pending.pop(0)))
    world.feed(accepted(9, m=goal("d9", "2.0.0")))
    world.run_well()
    kept = {file(f"{kind} {v}").digest for kind in ("manifest", "module", "vectors") for v in ("1.0.0", "2.0.0")}
    assert kept == references(world.state)


def test_release_that_is_not_served_makes_way_for_a_download_without_room() -> None:
    """What runs, and what is to run, counts more."""
    world = installed("1.0.0")
    world.restart()
    world.do(bad_answers(world.pending.pop(0)))
    assert file("module 1.0.0").digest in references(world.state)
    assert actions.Collect() in world.feed(events.Squeezed())
    assert file("module 1.0.0").digest not in references(world.state)


def test_files_are_collected_after_every_download_has_begun() -> None:
    """At a start the idle model's clean-up must not take what the other model's download has on the disk."""
    world = World()
    world.feed(accepted(1, a=goal("da"), b=goal("db")))
    world.run_well()
    world.feed(accepted(2, a=goal("da"), b=goal("db2", "2.0.0")))
    todo = [type(action).__name__ for event in (events.Started(), events.Resumed()) for action in world.feed(event)]
    assert ["Load", "Load", "EmitReceipt", "Download", "Collect"] == todo


def test_what_is_committed_is_served_without_storing_anything() -> None:
    """The first step of a start changes no state in whatever it finds: the disk may be full."""
    world = installed("1.0.0")
    world.feed(accepted(9, m=goal("d9", "2.0.0")))
    seen = []
    while world.pending:
        seen.append(world.state.models["m"].current)
        state, todo = step(world.state, events.Started(), 0)
        assert (world.state, ["1.0.0"]) == (state, [a.installed.version for a in todo if isinstance(a, actions.Load)])
        world.do(good_answers(world.pending.pop(0)))
    assert len(seen) > 4


def test_a_commit_that_was_decided_is_served_before_its_end_is_stored() -> None:
    """Dying between the decision and its end brings the old release back for nobody, also on a full disk."""
    world = installed("1.0.0")
    world.feed(accepted(9, m=goal("d9", "2.0.0")))
    while not (world.pending and isinstance(world.pending[0], actions.Commit)):
        if world.pending:
            world.do(good_answers(world.pending.pop(0)))
        world.now_ms += CONFIG.soak_ms
        world.feed(events.Ticked())
    state, todo = step(world.state, events.Started(), 0)
    assert (world.state, ["2.0.0"]) == (state, [a.installed.version for a in todo if isinstance(a, actions.Load)])
    world.restart()
    assert "succeeded" == world.reported["d9"]
    assert 1 == sum(isinstance(action, actions.Load) for action in world.pending)


def test_progress_is_reported_once_a_second() -> None:
    """However fast chunks arrive, receipts stay few; a reason for waiting is passed on."""
    world = World()
    world.feed(accepted(1, m=goal("d1")))
    emitted = []
    for number in range(1, 31):
        world.now_ms = number * 100
        emitted += world.feed(
            events.Progressed(
                model="m", deployment_id="d1", progress=Progress(done_bytes=number, total_bytes=30), waiting=REASON
            )
        )
    assert [10, 20, 30] == [a.progress.done_bytes for a in emitted if isinstance(a, actions.EmitReceipt) and a.progress]
    assert REASON == world.receipts[-1].reason


def test_answers_about_a_deployment_that_ended_are_ignored() -> None:
    """The worker may still be at it when a deployment is superseded; its answers change nothing."""
    world = World()
    world.feed(accepted(1, m=goal("d1")))
    late = good_answers(world.pending.pop(0))
    world.feed(accepted(2, m=goal("d2", "2.0.0")))
    before = world.state
    world.do(late)
    assert before == world.state


def test_models_do_not_disturb_each_other() -> None:
    """One model fails while another one is installed."""
    world = World()
    world.feed(accepted(1, a=goal("da"), b=goal("db", "2.0.0")))
    first = next(action for action in world.pending if isinstance(action, actions.Download) and action.model == "a")
    world.pending.remove(first)
    world.do(bad_answers(first)[:1])
    world.run_well()
    assert {"da": "failed", "db": "succeeded"} == world.reported


def test_settled_deployments_are_remembered_in_bounds() -> None:
    """The memory of ended deployments does not grow without end."""
    world = World()
    for number in range(300):
        world.feed(accepted(number + 1, m=goal(f"d{number}", f"1.0.{number}")))
        world.do(bad_answers(world.pending.pop(0))[:1])
    assert 256 == len(world.state.settled)


def test_event_for_an_unknown_model_changes_nothing() -> None:
    """A late event about a model that is gone is no error."""
    state = State()
    assert (state, ()) == step(state, events.Faulted(model="x", version="1.0.0", reason=REASON), 0)


def test_what_the_director_has_forgotten_is_told_again() -> None:
    """A newer document says that the end is not known there: the device says again how the deployment ended."""
    world = installed("1.0.0")
    world.feed(accepted(7, m=goal("d1.0.0"), n=goal("dn", "2.0.0")))
    world.run_well()
    world.feed(accepted(8, m=goal("d1.0.0"), n=goal("dn2", "3.0.0")))
    while world.pending:
        world.do(bad_answers(world.pending.pop(0))[:1])
    world.forgotten = {"d1.0.0", "dn2"}
    again = accepted(9, m=goal("d1.0.0", is_open=True), n=goal("dn2", "3.0.0", is_open=True))
    told = [a for a in world.feed(again) if isinstance(a, actions.EmitReceipt)]
    assert [("d1.0.0", "already_installed", ""), ("dn2", "failed", "test")] == [
        (a.deployment_id, a.state, a.reason.code if a.reason else "") for a in told
    ]
    assert () == world.feed(again)  # the retained document comes again: it was answered
    world.restart()
    assert () == world.feed(again)


def test_removal_that_the_director_has_forgotten_is_told_again() -> None:
    """The same for a model that was taken off."""
    world = installed("1.0.0")
    gone = goal("gone", manifest=None, is_removal=True)
    world.feed(accepted(8, m=gone))
    world.forgotten = {"gone"}
    world.feed(accepted(9, m=goal("gone", manifest=None, is_removal=True, is_open=True)))
    assert ["retrieved", "removed", "removed"] == world.states("gone")


def test_release_that_the_director_fell_back_to_is_installed_again() -> None:
    """A restored director wants the release before, whose end it does not know: the device goes back and reports it."""
    world = installed("1.0.0", "1.1.0")
    world.forgotten = {"d1.0.0"}
    world.feed(accepted(9, m=goal("d1.0.0", is_open=True)))
    world.run_well()
    assert HAPPY == world.states("d1.0.0")[-len(HAPPY) :]
    assert (SlotReport(model="m", active="1.0.0", previous="1.1.0"),) == slots(world.state)


def damaged(world: World) -> None:
    """Let the active release of `m` be unreadable."""
    active = world.state.models["m"].active
    assert active is not None
    world.feed(events.LoadFailed(model="m", version=active.version, reason=REASON))


def test_repair_that_fails_is_tried_again_ever_more_patiently() -> None:
    """The broker may have nothing today, the disk may be full: the release comes back when it can."""
    world = installed("1.0.0", "1.1.0")
    reported = len(world.receipts)
    damaged(world)
    pauses = []
    for _ in range(12):
        (download,) = [a for a in world.pending if isinstance(a, actions.Download)]
        world.pending.clear()
        world.do(bad_answers(download)[:1])
        due_ms = next_deadline_ms(world.state)
        assert due_ms is not None
        pauses.append(due_ms - world.now_ms)
        world.now_ms = due_ms - 1
        assert () == world.feed(events.Ticked())
        world.now_ms = due_ms
        world.feed(events.Ticked())
    assert [60_000, 120_000, 240_000] == pauses[:3]
    assert 6 * 3_600_000 == pauses[-1]
    world.run_well()
    assert (SlotReport(model="m", active="1.1.0", previous="1.0.0"),) == slots(world.state)
    assert reported == len(world.receipts)
    assert None is next_deadline_ms(world.state)


def test_failed_repair_is_tried_at_once_after_a_restart() -> None:
    """A person who mended the disk starts the agent: nobody should have to wait for hours then."""
    world = installed("1.0.0", "1.1.0")
    damaged(world)
    world.do(bad_answers(next(a for a in world.pending if isinstance(a, actions.Download)))[:1])
    world.restart()
    world.run_well()
    assert (SlotReport(model="m", active="1.1.0", previous="1.0.0"),) == slots(world.state)


def test_repair_that_a_new_policy_overtook_is_tried_again_at_once() -> None:
    """It may have failed by what the policy said before: the owner who raised a limit does not wait for a minute."""
    world = installed("1.0.0", "1.1.0")
    damaged(world)
    (download,) = [a for a in world.pending if isinstance(a, actions.Download)]
    world.pending.clear()
    world.feed(events.PolicyRead())
    world.do(bad_answers(download)[:1])
    assert world.now_ms + 1 == next_deadline_ms(world.state)
    world.now_ms += 1
    world.feed(events.Ticked())
    (download,) = [a for a in world.pending if isinstance(a, actions.Download)]
    world.pending.clear()
    world.do(bad_answers(download)[:1])
    assert world.now_ms + 60_000 == next_deadline_ms(world.state)


def test_failed_repair_does_not_hold_up_the_next_release() -> None:
    """A new deployment begins at once, and a repair of its own would not wait for the old one's pause."""
    world = installed("1.0.0", "1.1.0")
    damaged(world)
    world.do(bad_answers(next(a for a in world.pending if isinstance(a, actions.Download)))[:1])
    world.pending.clear()
    world.feed(accepted(9, m=goal("d2", "2.0.0")))
    world.run_well()
    assert HAPPY == world.states("d2")
    damaged(world)
    assert [actions.Download] == [type(a) for a in world.pending if isinstance(a, actions.Download)]
