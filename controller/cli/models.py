"""`fleetctl models`: the named series of releases."""

import typer

from controller.api import schema
from controller.cli import options
from controller.cli.following import Following, start
from controller.cli.groups import example, listing_group
from controller.cli.screen import Screen
from controller.cli.session import session_of

app = listing_group("The models of the fleet.", "models")


@app.command("list", epilog=example("fleetctl models list"))
def list_models(ctx: typer.Context, is_json: options.Json = False) -> None:
    """List models with their latest release."""
    screen = Screen(is_json=is_json)
    with session_of(ctx).client() as client:
        models = client.models()
    screen.document(models)
    if not models:
        screen.say("no models yet: `fleetctl push model.wasm` makes the first release of one")
        return
    rows = ((m.name, m.latest or "-", f"{m.releases}", f"{m.devices}") for m in models)
    screen.table(("model", "latest", "releases", "devices"), rows, right=("releases", "devices"))


@app.command("undeploy", epilog=example("fleetctl models undeploy digits --to site-a"))
def undeploy_model(  # noqa: PLR0913 - typer reads options from the signature
    ctx: typer.Context,
    model: options.Model,
    *,
    to: options.To = None,
    wait: options.Wait = None,
    timeout_s: options.Timeout = 600.0,
    is_dry_run: options.DryRun = False,
    is_json: options.Json = False,
) -> None:
    """Remove a model from devices.

    Its releases stay and can be rolled out again.
    """
    screen = Screen(is_json=is_json)
    request = schema.RolloutRequest(model=model, version=None, to=tuple(to or options.EVERYBODY))
    with session_of(ctx).client() as client:
        start(screen, client, request, Following(wait, timeout_s, is_dry_run))
