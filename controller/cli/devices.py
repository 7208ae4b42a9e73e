"""`fleetctl devices`: who is in the fleet, how each fares and why it runs what it runs."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from controller.api import schema
from controller.cli import options, wording
from controller.cli.groups import example, listing_group
from controller.cli.screen import Cell, Screen, facts, plain
from controller.cli.session import session_of

app = listing_group("The devices of the fleet.", "devices")

DeviceArgument = Annotated[str, typer.Argument(metavar="DEVICE", help="The id of a device.")]
_STATE_STYLES = {"in_sync": "green", "pending": "yellow", "error": "red", "registered": "dim"}
_LIVENESS_STYLES = {"online": "green", "offline": "red", "never_seen": "dim"}


@app.command("list", epilog=example("fleetctl devices list --to site-a"))
def list_devices(ctx: typer.Context, to: options.To = None, is_json: options.Json = False) -> None:
    """List devices with what they run."""
    screen = Screen(is_json=is_json)
    with session_of(ctx).client() as client:
        devices = client.devices(to or ())
    screen.document(devices)
    if not devices:
        screen.say("no devices yet: `fleetctl devices invite` prints a line to paste on one")
        return
    now = datetime.now(UTC)
    columns = ("device", "liveness", "state", "models", "groups", "last seen")
    screen.table(columns, (_row(device, now) for device in devices))


@app.command("show", epilog=example("fleetctl devices show cam-1"))
def show_device(ctx: typer.Context, device_id: DeviceArgument, is_json: options.Json = False) -> None:
    """Show one device with its models and its assignment."""
    screen = Screen(is_json=is_json)
    with session_of(ctx).client() as client:
        device = client.device(device_id)
    screen.document(device)
    now = datetime.now(UTC)
    acknowledged = f"acknowledged {device.acknowledged_director_version}"
    rows = (
        ("state", _state(device)),
        ("liveness", _styled(device.liveness, _LIVENESS_STYLES)),
        ("last seen", wording.ago(device.last_seen_at, now)),
        ("enrolled", wording.ago(device.enrolled_at, now)),
        ("groups", ", ".join(device.groups) or "none"),
        ("agent", f"{device.agent_version or 'unknown'} on {device.arch or 'unknown hardware'}"),
        ("assignment", f"version {device.director_version}, {acknowledged}"),
    )
    screen.say(facts(device.id, rows))
    if device.models:
        screen.say()
        screen.table(("model", "installed", "desired", "previous", "deployment"), _model_rows(device))
    if device.problems:
        screen.say()
        problems = sorted(device.problems.items())
        screen.table(("problem", "reason", "code"), ((name, reason.message, reason.code) for name, reason in problems))


@app.command("invite", epilog=example("fleetctl devices invite cam-1 --group site-a"))
def invite_device(  # noqa: PLR0913 - typer reads options from the signature
    ctx: typer.Context,
    device_id: options.NewDevice = None,
    *,
    groups: options.Groups = None,
    valid_min: Annotated[
        int, typer.Option("--valid-min", metavar="MINUTES", min=1, max=43_200, help="How long it may be used.")
    ] = 60,
    is_replacement: Annotated[
        bool, typer.Option("--replace", help="Let a device that has enrolled come back with a new key.")
    ] = False,
    is_json: options.Json = False,
) -> None:
    """Invite a device: prints the line to paste there.

    The invite works once, and no longer than --valid-min.
    """
    screen = Screen(is_json=is_json)
    request = schema.InviteRequest(
        device_id=device_id,
        groups=tuple(groups or ()),
        valid_s=valid_min * 60,
        is_replacement=is_replacement,
    )
    with session_of(ctx).client() as client:
        invited = client.invite(request)
    screen.document(invited)
    ends = wording.until(invited.expires_at, datetime.now(UTC))
    screen.say(f"On the device {invited.device_id}, run this once (it ends {ends}):\n")
    screen.verbatim(invited.command)
    if is_replacement:
        screen.say(f"\nUntil then {invited.device_id} goes on with its present key, which counts no more afterwards.")
    screen.say("\nthen start the agent there: fleet-agent run")


@app.command("explain", epilog=example("fleetctl devices explain cam-1 --model digits"))
def explain_device(
    ctx: typer.Context,
    device_id: DeviceArgument,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Only this model.")] = None,
    is_json: options.Json = False,
) -> None:
    """Explain why a device runs what it runs.

    Also says why it does not run something else, and what to do next.
    """
    screen = Screen(is_json=is_json)
    with session_of(ctx).client() as client:
        explanation = client.explain(device_id, model)
    screen.document(explanation)
    screen.say(plain(explanation.summary, "bold"))
    for explained in explanation.models:
        runs = explained.installed or "nothing"
        wants = "" if explained.desired == explained.installed else f", must run {explained.desired or 'nothing'}"
        screen.say(Text.assemble("\n", (explained.model, "bold"), f": runs {runs}{wants}"))
        screen.say(facts("", (("-", sentence) for sentence in explained.because)))
    if explanation.next_step:
        screen.say(f"\nnext: {explanation.next_step}")


@app.command("group", epilog=example("fleetctl devices group cam-1 --add site-a --remove lab"))
def group_device(
    ctx: typer.Context,
    device_id: DeviceArgument,
    add: options.AddedGroups = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", metavar="GROUP", help="Take it out.")] = None,
    is_json: options.Json = False,
) -> None:
    """Put a device into groups, or take it out.

    Without options, show its groups.
    """
    screen = Screen(is_json=is_json)
    with session_of(ctx).client() as client:
        device = client.device(device_id)
        wanted = (set(device.groups) | set(add or ())) - set(remove or ())
        if wanted != set(device.groups):
            device = client.set_groups(device_id, sorted(wanted))
    screen.document(device)
    screen.say(f"{device.id} is in {', '.join(device.groups) or 'no group'}")


def _row(device: schema.Device, now: datetime) -> tuple[Cell, ...]:
    models = "\n".join(f"{m.model} {m.installed}" for m in device.models if m.installed)
    return (
        device.id,
        _styled(device.liveness, _LIVENESS_STYLES),
        _state(device),
        models or "-",
        ", ".join(device.groups) or "-",
        wording.ago(device.last_seen_at, now),
    )


def _model_rows(device: schema.Device) -> list[tuple[Cell, ...]]:
    previous = {slot.model: slot.previous for slot in device.slots}
    return [
        (
            entry.model,
            entry.installed or "-",
            entry.desired or "-",
            previous.get(entry.model) or "-",
            wording.state(entry.deployment_state or "-") + (f": {entry.reason.message}" if entry.reason else ""),
        )
        for entry in device.models
    ]


def _state(device: schema.Device) -> Text:
    shown = _styled(device.state, _STATE_STYLES)
    if not device.problems:
        return shown
    return Text.assemble(shown, (f", {wording.count(len(device.problems), 'problem')}", "red"))


def _styled(name: str, styles: dict[str, str]) -> Text:
    return plain(wording.state(name), styles.get(name, ""))
