"""What a device does next: `(state, event, now) -> (state, actions)`, without I/O, clock or randomness."""

from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from agent.engine.actions import (
    Action,
    Activate,
    Announce,
    Collect,
    Commit,
    Compile,
    Load,
    Reactivate,
    RollBack,
    Test,
    Verify,
)
from agent.engine.events import (
    AssignmentAccepted,
    Committed,
    Compiled,
    DeploymentEvent,
    Downloaded,
    Event,
    Failed,
    Faulted,
    LoadFailed,
    Planned,
    PolicyRead,
    Progressed,
    Resumed,
    RolledBack,
    Spoiled,
    Squeezed,
    Started,
    Stopping,
    Swapped,
    Tested,
    Ticked,
    Verified,
)
from agent.engine.state import Deployment, Installed, Model, State, slots, troubles
from agent.engine.turn import ACTIVATED, Turn
from protocol.messages import Reason

PROGRESS_INTERVAL_MS: Final = 1_000
_RISKY: Final = frozenset({"verifying", "installing", "testing", "activated"})
"""States in which the release's own code may be what brings the agent down."""


def step(state: State, event: Event, now_ms: int) -> tuple[State, tuple[Action, ...]]:
    """Return the state after `event`, and what is to be done, in order."""
    before = (slots(state), state.director_version, troubles(state))
    if isinstance(event, AssignmentAccepted):
        if event.version <= state.director_version:
            event = _heard_before(event)
        state = replace(state, config=event.config, director_version=event.version)
        names = sorted({*state.models, *event.goals})
    else:
        names = [event.model] if isinstance(event, DeploymentEvent | Faulted | LoadFailed) else sorted(state.models)
    actions: list[Action] = []
    for name in names:
        model = state.models.get(name, Model())
        turn = Turn(name, model, state.settled, state.config, now_ms)
        if not isinstance(event, DeploymentEvent) or _is_current(model, event):
            _HANDLERS[type(event)](turn, event)
        state = _with_model(state, turn)
        actions += turn.actions
    if Collect() in actions:  # once, and last: what a download may need is known only when it has begun
        actions = [*(action for action in actions if action != Collect()), Collect()]
    if (slots(state), state.director_version, troubles(state)) != before:
        actions.append(Announce())
    return state, tuple(actions)


def next_deadline_ms(state: State) -> int | None:
    """Return when a Ticked event is due, or None."""
    models = state.models.values()
    soaks = [m.current.since_ms + state.config.soak_ms for m in models if m.current and _is_soaking(m.current)]
    repairs = [m.repair_at_ms for m in models if m.repair_at_ms and m.current is None]
    return min([*soaks, *repairs], default=None)


def _is_current(model: Model, event: DeploymentEvent) -> bool:
    return model.current is not None and model.current.goal.deployment_id == event.deployment_id


def _heard_before(event: AssignmentAccepted) -> AssignmentAccepted:
    """Return the same without the question how deployments ended: it was answered when the document was new."""
    return replace(event, goals={name: replace(goal, is_open=False) for name, goal in event.goals.items()})


def _with_model(state: State, turn: Turn) -> State:
    models = {**state.models, turn.name: turn.model}
    if turn.model == Model():
        del models[turn.name]
    return replace(state, models=models, settled=turn.settled)


def _on_assignment(turn: Turn, event: AssignmentAccepted) -> None:
    goal = event.goals.get(turn.name)
    current = turn.model.current
    old = turn.model.goal
    turn.model = replace(turn.model, goal=None if goal and goal.deployment_id in event.canceled else goal)
    if old and (goal is None or goal.deployment_id != old.deployment_id):
        turn.model = replace(turn.model, failed_repairs=0, repair_at_ms=0, unserved=None)
    canceled = Reason.of("canceled", "the operator canceled the deployment")
    if current and current.goal.deployment_id in event.canceled and current.state not in ACTIVATED:
        turn.settle("canceled", reason=canceled)
    else:
        turn.pursue()


def _on_started(turn: Turn, _: Started) -> None:
    """Serve what is committed. Changes no state: this must be possible where nothing can be stored."""
    current = turn.model.current
    serving = _candidate(current) if current and _is_decided(current) else turn.model.active
    if serving:
        turn.actions.append(Load(model=turn.name, installed=serving))


def _on_resumed(turn: Turn, _: Resumed) -> None:
    current = turn.model.current
    if current and _is_decided(current):
        turn.settle("succeeded")
        return
    turn.model = replace(turn.model, repair_at_ms=0)  # of a clock that ended with the last start
    if current is None:
        turn.actions.append(Collect())  # perhaps the agent died while it did so
        turn.pursue()
        return
    has_crashed = current.state in _RISKY and not current.is_paused
    setbacks = current.setbacks + has_crashed
    turn.set_current(replace(current, setbacks=setbacks, is_paused=False, is_serving=False))
    if setbacks > turn.config.max_boot_attempts:
        reason = Reason.of("crashed", f"the agent died while it worked on this release, {setbacks} times")
        turn.settle("rolled_back" if current.state in ACTIVATED else "failed", reason=reason)
    elif current.state in ACTIVATED and current.fault:
        turn.settle("rolled_back", reason=current.fault)
    elif current.state == "activated":
        turn.actions.append(
            Reactivate(model=turn.name, deployment_id=current.goal.deployment_id, candidate=_candidate(current))
        )
    elif current.state == "retrieved":
        turn.begin()
    else:
        turn.download()


def _on_stopping(turn: Turn, _: Stopping) -> None:
    if turn.model.current:
        turn.set_current(replace(turn.model.current, is_paused=True))


def _on_squeezed(turn: Turn, _: Squeezed) -> None:
    if turn.model.previous or turn.model.unserved:
        turn.model = replace(turn.model, previous=None, unserved=None)
        turn.actions.append(Collect())


def _on_policy_read(turn: Turn, _: PolicyRead) -> None:
    if turn.model.repair_at_ms:
        turn.model = replace(turn.model, failed_repairs=0, repair_at_ms=0)
        turn.pursue()
    elif turn.model.current and turn.model.current.is_repair:
        turn.set_current(replace(turn.model.current, is_outdated=True))


def _on_tick(turn: Turn, _: Ticked) -> None:
    current = turn.model.current
    if current is None and turn.model.repair_at_ms and turn.now_ms >= turn.model.repair_at_ms:
        turn.model = replace(turn.model, repair_at_ms=0)
        turn.pursue()
    if current and _is_soaking(current) and turn.now_ms - current.since_ms >= turn.config.soak_ms:
        turn.move("committing")
        turn.actions.append(
            Commit(model=turn.name, deployment_id=current.goal.deployment_id, version=current.goal.version)
        )


def _on_planned(turn: Turn, event: Planned) -> None:
    if turn.current.state == "downloading":
        turn.set_current(replace(turn.current, candidate=event.candidate))


def _on_progress(turn: Turn, event: Progressed) -> None:
    current = turn.current
    if current.state != "downloading" or turn.now_ms - current.reported_ms < PROGRESS_INTERVAL_MS:
        return
    # The state stays, so `since_ms` does too: it is the start of the download.
    turn.set_current(replace(current, reported_ms=turn.now_ms))
    turn.report(progress=event.progress, reason=event.waiting)


def _on_downloaded(turn: Turn, _: Downloaded) -> None:
    current = turn.current
    if current.state == "downloading" and current.candidate is not None:
        turn.move("downloaded", measures={"download_ms": turn.now_ms - current.since_ms})
        turn.move("verifying")
        turn.actions.append(
            Verify(model=turn.name, deployment_id=current.goal.deployment_id, candidate=current.candidate)
        )


def _on_verified(turn: Turn, event: Verified) -> None:
    current = turn.current
    if current.state == "verifying":
        turn.move("installing", measures={"verify_ms": event.elapsed_ms})
        turn.actions.append(Compile(model=turn.name, deployment_id=event.deployment_id, candidate=_candidate(current)))


def _on_compiled(turn: Turn, event: Compiled) -> None:
    current = turn.current
    if current.state == "installing":
        turn.move("testing", measures={"compile_ms": event.elapsed_ms})
        turn.actions.append(Test(model=turn.name, deployment_id=event.deployment_id, candidate=_candidate(current)))


def _on_tested(turn: Turn, event: Tested) -> None:
    current = turn.current
    if current.state == "testing":
        turn.set_current(replace(current, measures={**current.measures, "self_test_ms": event.elapsed_ms}))
        turn.actions.append(Activate(model=turn.name, deployment_id=event.deployment_id, candidate=_candidate(current)))


def _on_swapped(turn: Turn, event: Swapped) -> None:
    current = turn.current
    if current.state == "testing":
        turn.move("activated", measures={"swap_us": event.swap_us})
    if turn.current.state == "activated":  # also when it is swapped in again after a restart: the soak begins anew
        turn.set_current(replace(turn.current, is_serving=True, since_ms=turn.now_ms))


def _on_committed(turn: Turn, _: Committed) -> None:
    if turn.current.state == "committing":
        turn.settle("succeeded")


def _on_rolled_back(turn: Turn, event: RolledBack) -> None:
    current = turn.current
    if current.state in ACTIVATED:
        turn.settle("rollback_failed" if event.error else "rolled_back", reason=event.error or current.fault)


def _on_failed(turn: Turn, event: Failed) -> None:
    current = turn.current
    if current.state in ACTIVATED:
        _roll_back(turn, event.reason)
    else:
        turn.settle("rejected" if event.is_rejection else "failed", reason=event.reason)


def _on_spoiled(turn: Turn, event: Spoiled) -> None:
    """Fetch what is missing again, unless the disk spoils it time after time."""
    current = turn.current
    if current.state in ACTIVATED:
        _roll_back(turn, event.reason)
    elif current.setbacks >= turn.config.max_boot_attempts:
        turn.settle("failed", reason=event.reason)
    elif current.state != "retrieved":
        turn.set_current(replace(current, setbacks=current.setbacks + 1))
        turn.download()


def _on_faulted(turn: Turn, event: Faulted) -> None:
    current = turn.model.current
    if current and current.state == "activated" and current.goal.version == event.version:
        _roll_back(turn, event.reason)


def _roll_back(turn: Turn, reason: Reason) -> None:
    current = turn.current
    if current.fault is None:
        turn.set_current(replace(current, fault=reason))
        has_previous = turn.model.active is not None
        turn.actions.append(
            RollBack(model=turn.name, deployment_id=current.goal.deployment_id, has_previous=has_previous)
        )


def _on_load_failed(turn: Turn, event: LoadFailed) -> None:
    """Serve the previous release instead, and get the broken one again if the assignment still wants it.

    What fails is tried again, ever more patiently: perhaps the disk or the broker is better then.
    """
    broken = turn.model.active
    if broken is None or broken.version != event.version:
        return
    goal = turn.model.goal
    unserved = broken if goal and goal.manifest == broken.manifest else turn.model.unserved
    turn.model = replace(turn.model, active=turn.model.previous, previous=None, trouble=event.reason, unserved=unserved)
    current = turn.model.current
    if turn.model.active:
        turn.actions.append(Load(model=turn.name, installed=turn.model.active))
    if current and current.state == "activated" and current.fault is None:
        # The load took the place of the provisional release: that one has to answer again for its soak to count.
        turn.set_current(replace(current, is_serving=False))
        turn.actions.append(
            Reactivate(model=turn.name, deployment_id=current.goal.deployment_id, candidate=_candidate(current))
        )
    if current is None:
        turn.remember_success(broken)
        turn.pursue()


def _is_soaking(current: Deployment) -> bool:
    return current.state == "activated" and current.is_serving and current.fault is None


def _is_decided(current: Deployment) -> bool:
    """Whether it was committed, and only the end was not written down."""
    return current.state == "committing" and current.fault is None


def _candidate(current: Deployment) -> Installed:
    assert current.candidate is not None
    return current.candidate


# Each handler takes the events of its key alone; a dict cannot say so.
_HANDLERS: Final[dict[type, Callable[[Turn, Any], None]]] = {
    AssignmentAccepted: _on_assignment,
    Started: _on_started,
    Resumed: _on_resumed,
    Stopping: _on_stopping,
    Squeezed: _on_squeezed,
    PolicyRead: _on_policy_read,
    Ticked: _on_tick,
    Planned: _on_planned,
    Progressed: _on_progress,
    Downloaded: _on_downloaded,
    Verified: _on_verified,
    Compiled: _on_compiled,
    Tested: _on_tested,
    Swapped: _on_swapped,
    Committed: _on_committed,
    RolledBack: _on_rolled_back,
    Failed: _on_failed,
    Spoiled: _on_spoiled,
    Faulted: _on_faulted,
    LoadFailed: _on_load_failed,
}
