"""`fleetctl rollouts`: what was asked of the fleet, and how far it is."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from controller.api import schema
from controller.cli import options, wording
from controller.cli.following import Following, changes, conclude, deployments_table, follow, is_all_well, start
from controller.cli.groups import EXIT_NOT_ALL_WELL, example, listing_group
from controller.cli.screen import Cell, Screen
from controller.cli.session import session_of
from controller.errors import NotFoundError
from protocol.identifiers import Version
from protocol.lifecycle import BAD_ENDS, DEPLOYMENT, GOOD_ENDS, is_final

app = listing_group("The rollouts of the fleet.", "rollouts")

RolloutArgument = Annotated[str, typer.Argument(metavar="ROLLOUT", help="The id of a rollout.")]


@app.command("list", epilog=example("fleetctl rollouts list --model digits"))
def list_rollouts(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Only of this model.")] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=1_000, help="At most so many.")] = 20,
    is_json: options.Json = False,
) -> None:
    """List rollouts, the newest first."""
    screen = Screen(is_json=is_json)
    with session_of(ctx).client() as client:
        rollouts = client.rollouts(model, limit)
    screen.document(rollouts)
    if not rollouts:
        screen.say("no rollouts yet: `fleetctl push model.wasm` starts one")
        return
    now = datetime.now(UTC)
    columns = ("rollout", "release", "to", "state", "well", "bad", "open", "started")
    screen.table(columns, (_row(rollout, now) for rollout in rollouts), right=("well", "bad", "open"))


@app.command("start", epilog=example("fleetctl rollouts start digits 1.0.0 --to site-a"))
def start_rollout(  # noqa: PLR0913 - typer reads options from the signature
    ctx: typer.Context,
    model: options.Model,
    version: options.NewestVersion = None,
    *,
    to: options.To = None,
    wait: options.Wait = None,
    timeout_s: options.Timeout = 600.0,
    is_dry_run: options.DryRun = False,
    soak_ms: options.SoakMs = None,
    is_json: options.Json = False,
) -> None:
    """Roll out a release that exists already.

    For devices that came later, or to go back to an older one.
    """
    screen = Screen(is_json=is_json)
    with session_of(ctx).client() as client:
        wanted = _newest(client.releases(model), model) if version is None else version
        who = tuple(to or options.EVERYBODY)
        screen.say(f"model {model} · version {wanted}{'' if version else ' (the newest)'} · to {', '.join(who)}")
        request = schema.RolloutRequest(model=model, version=wanted, to=who, soak_ms=soak_ms)
        start(screen, client, request, Following(wait, timeout_s, is_dry_run))


def _newest(releases: Sequence[schema.Release], model: str) -> str:
    """Return the newest version that may still be installed; raises NotFoundError."""
    able = [Version.parse(r.version) for r in releases if r.yanked_at is None and not r.is_below_floor]
    if not able:
        raise NotFoundError(f"{model} has no release that may be installed", hint="`fleetctl push FILE` makes one")
    return str(max(able))


@app.command("show", epilog=example("fleetctl rollouts show ROLLOUT"))
def show_rollout(ctx: typer.Context, rollout_id: RolloutArgument, is_json: options.Json = False) -> None:
    """Show one rollout with every device in it."""
    screen = Screen(is_json=is_json)
    with session_of(ctx).client() as client:
        rollout = client.rollout(rollout_id)
    screen.document(rollout)
    screen.say(_headline(rollout, datetime.now(UTC)))
    if rollout.deployments:
        screen.say()
        screen.say(deployments_table(rollout.deployments))
    for planned in rollout.refused:
        screen.say(f"{planned.device} refused: {planned.reason or 'no reason given'}")


@app.command("watch", epilog=example("fleetctl rollouts watch ROLLOUT --timeout 60"))
def watch_rollout(
    ctx: typer.Context,
    rollout_id: RolloutArgument,
    timeout_s: options.Timeout = 600.0,
    is_json: options.JsonLines = False,
) -> None:
    """Follow a rollout until every device ended.

    The exit code is 0 when all ended well, else 3.
    """
    screen = Screen(is_json=is_json)
    with session_of(ctx).client() as client:
        rollout = client.rollout(rollout_id)
        if is_json:
            for rollout in changes(client, rollout_id, timeout_s=timeout_s):
                screen.line(rollout)
            raise typer.Exit(0 if is_all_well(rollout) else EXIT_NOT_ALL_WELL)
        screen.say(_headline(rollout, datetime.now(UTC)))
        rollout = follow(screen, client, rollout, timeout_s=timeout_s)
    raise typer.Exit(conclude(screen, rollout))


@app.command("stop", epilog=example("fleetctl rollouts stop ROLLOUT"))
def stop_rollout(ctx: typer.Context, rollout_id: RolloutArgument, is_json: options.Json = False) -> None:
    """Stop a rollout.

    Devices that have not activated the release give it up, the others keep it.
    """
    screen = Screen(is_json=is_json)
    with session_of(ctx).client() as client:
        rollout = client.stop_rollout(rollout_id)
    screen.document(rollout)
    screen.say(f"{rollout.id} is {wording.state(rollout.state)}")


def _release(rollout: schema.Rollout) -> str:
    return f"{rollout.model} {rollout.version}" if rollout.version else f"undeploy {rollout.model}"


def _headline(rollout: schema.Rollout, now: datetime) -> str:
    parts = (
        f"{rollout.id}: {_release(rollout)} to {', '.join(rollout.to)}",
        wording.state(rollout.state),
        f"started {wording.ago(rollout.created_at, now)}",
    )
    return " · ".join(parts)


def _row(rollout: schema.Rollout, now: datetime) -> tuple[Cell, ...]:
    well = sum(rollout.counts.get(state, 0) for state in GOOD_ENDS)
    bad = sum(rollout.counts.get(state, 0) for state in BAD_ENDS)
    unfinished = sum(rollout.counts.get(state, 0) for state in DEPLOYMENT if not is_final(DEPLOYMENT, state))
    return (
        rollout.id,
        _release(rollout),
        ", ".join(rollout.to),
        wording.state(rollout.state),
        f"{well}",
        f"{bad}",
        f"{unfinished}",
        wording.ago(rollout.created_at, now),
    )
