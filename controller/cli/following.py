"""Rollouts on the screen: what one would do, how one goes, how it ended.

Follows a rollout through restarts of the service; the rollout itself never depends on this terminal.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple, NoReturn, Protocol

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controller.api import schema
from controller.cli import wording
from controller.cli.groups import EXIT_INTERRUPTED, EXIT_NOT_ALL_WELL
from controller.cli.screen import Cell, Screen, plain, table, warn
from controller.client import FleetClient, ServiceLostError, ServiceNotRunningError, ServiceSilentError
from protocol.lifecycle import BAD_ENDS, DEPLOYMENT, GOOD_ENDS, is_final

_MANY = 16
"""More devices than this are not shown one by one."""
_SILENCE_S = 10.0
_RECONNECT_PAUSE_S = 0.5


class Following(NamedTuple):
    """Whether a rollout is only planned, and how it is followed: the options of the commands that start one."""

    wait: bool | None
    timeout_s: float
    is_dry_run: bool


def is_waiting(wait: bool | None, screen: Screen) -> bool:
    """Return whether to follow the rollout: as asked for, else when a person watches."""
    return screen.out.is_terminal if wait is None else wait


def show_plan(screen: Screen, plan: schema.Plan) -> None:
    """Show what a rollout would do to each device."""
    counts = {d: sum(1 for p in plan.devices if p.decision == d) for d in ("deploy", "already_installed", "refused")}
    total = sum(p.download_bytes for p in plan.devices if p.decision == "deploy")
    if plan.devices:
        columns = ("device", "decision", "installed", "download", "liveness", "reason")
        screen.table(columns, (_planned_row(plan, planned) for planned in plan.devices), right=("download",))
    else:
        screen.say("no device matches")
    deployed = wording.count(counts["deploy"], "device")
    if plan.version is None:
        parts = [f"{deployed} would remove it"]
    else:
        parts = [
            f"{deployed} would get it ({wording.size(total)} in all)",
            f"{counts['already_installed']} have it already",
        ]
    screen.say("\ndry run: " + ", ".join([*parts, f"{counts['refused']} refused"]) + "; nothing was changed")


def announce(screen: Screen, rollout: schema.Rollout) -> None:
    """Say that a rollout was started, and who was refused."""
    refused = f", {len(rollout.refused)} refused" if rollout.refused else ""
    screen.step("rollout", f"{rollout.id}: {wording.count(len(rollout.deployments), 'device')}{refused}")
    for planned in rollout.refused:
        screen.say(f"  {planned.device} refused: {planned.reason or 'no reason given'}")


class RolloutSource(Protocol):
    """Where the events of a rollout come from: FleetClient."""

    def rollout_events(self, rollout_id: str, *, silence_s: float) -> Iterator[schema.Rollout | None]:
        """Yield the rollout now and after every change, None for a sign of life."""


def changes(client: RolloutSource, rollout_id: str, *, timeout_s: float) -> Iterator[schema.Rollout]:
    """Yield the rollout now and after every change until it ended or time is up, across restarts of the service."""
    deadline = time.monotonic() + timeout_s
    is_lost, is_heard = False, False
    last: schema.Rollout | None = None
    while (left_s := deadline - time.monotonic()) > 0:
        try:
            for rollout in client.rollout_events(rollout_id, silence_s=min(_SILENCE_S, left_s)):
                is_lost, is_heard = False, True
                if rollout is not None and rollout != last:
                    last = rollout
                    yield rollout
                    if rollout.finished_at is not None:
                        return
                if time.monotonic() > deadline:
                    return
        except (ServiceLostError, ServiceNotRunningError) as error:
            is_patient = is_heard or left_s < _SILENCE_S
            is_heard = False
            if isinstance(error, ServiceSilentError) and is_patient:
                continue  # nothing has changed for a while: we look whether it is still there, or time is up
            if not is_lost:
                warn(f"{error}; the rollout goes on without it, trying to reach it again")
            is_lost = True
        time.sleep(min(_RECONNECT_PAUSE_S, max(0.0, deadline - time.monotonic())))


def follow(screen: Screen, client: RolloutSource, rollout: schema.Rollout, *, timeout_s: float) -> schema.Rollout:
    """Show how the rollout goes until it ended or time is up; return its last state."""
    shown: dict[str, str] = {}
    live = Live(progress_table(rollout), console=screen.out, transient=True) if screen.is_live else nullcontext()
    try:
        with live as view:
            for rollout in changes(client, rollout.id, timeout_s=timeout_s):  # noqa: B020, PLR1704 - its newer state
                if view is not None:
                    view.update(progress_table(rollout))
                else:
                    _say_changes(screen, rollout, shown)
    except KeyboardInterrupt:
        screen.say(f"the rollout goes on without this terminal: `fleetctl rollouts watch {rollout.id}`")
        screen.say(f"to stop it: `fleetctl rollouts stop {rollout.id}`")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    return rollout


def keep_watching(
    screen: Screen, client: RolloutSource, rollout: schema.Rollout, how: Following
) -> tuple[schema.Rollout, bool]:
    """Announce a new rollout and follow it where that is wanted; return its last state, and whether it was followed."""
    announce(screen, rollout)
    if not is_waiting(how.wait, screen):
        return rollout, False
    return follow(screen, client, rollout, timeout_s=how.timeout_s), True


def start(screen: Screen, client: FleetClient, request: schema.RolloutRequest, how: Following) -> NoReturn:
    """Start the rollout, or show what it would do; the command ends with the exit code that this means."""
    if how.is_dry_run:
        plan = client.plan(request)
        screen.document(plan)
        show_plan(screen, plan)
        raise typer.Exit
    rollout, is_followed = keep_watching(screen, client, client.start_rollout(request), how)
    screen.document(rollout)
    raise typer.Exit(conclude(screen, rollout, is_followed=is_followed))


def conclude(screen: Screen, rollout: schema.Rollout, *, is_followed: bool = True) -> int:
    """Show how the rollout ended for each device and what to do next; return the exit code."""
    if not is_followed:
        screen.say(f"next: fleetctl rollouts watch {rollout.id}")
        return 0
    good = sum(1 for d in rollout.deployments if d.state in GOOD_ENDS)
    shown = rollout.deployments
    if len(shown) > _MANY:
        shown = tuple(d for d in shown if d.state not in GOOD_ENDS)
    if shown:
        screen.say()
        screen.say(deployments_table(shown))
        screen.say()
    mark = ("✓ ", "green") if is_all_well(rollout) else ("✗ ", "red")
    devices = wording.count(len(rollout.deployments), "device")
    screen.say(Text.assemble(mark, f"{good} of {devices} ended well{_ending(rollout)}"))
    for line in _next_steps(rollout):
        screen.say(f"next: {line}")
    return 0 if is_all_well(rollout) else EXIT_NOT_ALL_WELL


def _ending(rollout: schema.Rollout) -> str:
    if rollout.finished_at is not None:
        return wording.took(rollout.created_at, rollout.finished_at)
    unfinished = sum(1 for d in rollout.deployments if not is_final(DEPLOYMENT, d.state))
    has = "has" if unfinished == 1 else "have"
    return f", {unfinished} {has} not ended: time is up, the rollout goes on"


def is_all_well(rollout: schema.Rollout) -> bool:
    """Return whether every device that was not refused beforehand has ended well, and not all were refused."""
    if not rollout.deployments:
        return not rollout.refused
    return all(d.state in GOOD_ENDS for d in rollout.deployments)


def deployments_table(deployments: Sequence[schema.Deployment]) -> Table:
    """Return one row for each device."""
    return table(("device", "state", "details"), map(_deployment_row, deployments))


def progress_table(rollout: schema.Rollout) -> Table:
    """Return what fits a terminal: of many devices those that failed, then those that are at work."""
    done = sum(1 for d in rollout.deployments if is_final(DEPLOYMENT, d.state))
    shown = rollout.deployments
    if len(shown) > _MANY:
        shown = tuple(sorted(shown, key=_urgency)[:_MANY])
    grid = deployments_table(shown)
    grid.caption = f"{done} of {wording.count(len(rollout.deployments), 'device')} done"
    grid.caption_justify = "left"
    return grid


def _urgency(deployment: schema.Deployment) -> int:
    if deployment.state in BAD_ENDS:
        return 0
    return 3 if is_final(DEPLOYMENT, deployment.state) else 2 if deployment.state == "queued" else 1


def _say_changes(screen: Screen, rollout: schema.Rollout, shown: dict[str, str]) -> None:
    for deployment in rollout.deployments:
        if shown.get(deployment.id) != deployment.state:
            shown[deployment.id] = deployment.state
            screen.say(Text("  ").join(_text(cell) for cell in _deployment_row(deployment)))


def _deployment_row(deployment: schema.Deployment) -> tuple[Cell, ...]:
    is_good, is_bad = deployment.state in GOOD_ENDS, deployment.state in BAD_ENDS
    style = "green" if is_good else "red" if is_bad else "yellow"
    return deployment.device, plain(wording.state(deployment.state), style), _details(deployment)


def _details(deployment: schema.Deployment) -> str:
    if deployment.reason is not None:
        return f"{deployment.reason.code}: {deployment.reason.message}"
    if is_final(DEPLOYMENT, deployment.state):
        return ", ".join(wording.measure(name, value) for name, value in deployment.measures.items() if value)
    progress = deployment.progress
    if progress is None or not progress.total_bytes or deployment.state != "downloading":
        return ""
    return f"{100 * progress.done_bytes // progress.total_bytes} % of {wording.size(progress.total_bytes)}"


def _planned_row(plan: schema.Plan, planned: schema.PlannedDevice) -> tuple[Cell, ...]:
    styles = {"deploy": "green", "refused": "red"}
    decision = "remove" if plan.version is None and planned.decision == "deploy" else planned.decision
    return (
        planned.device,
        plain(wording.state(decision), styles.get(planned.decision, "")),
        planned.installed or "-",
        wording.size(planned.download_bytes) if planned.decision == "deploy" else "-",
        wording.state(planned.liveness),
        planned.reason or "",
    )


def _next_steps(rollout: schema.Rollout) -> Iterator[str]:
    if bad := next((d for d in rollout.deployments if d.state in BAD_ENDS), None):
        yield f"fleetctl devices explain {bad.device}"
    if rollout.finished_at is None:
        yield f"fleetctl rollouts watch {rollout.id}"
    if not rollout.deployments and not rollout.refused:
        yield "fleetctl devices invite"


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else plain(cell)
