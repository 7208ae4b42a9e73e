"""`fleetctl releases`: what was ever made of each model, and what may no longer be installed."""

from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from controller.api import schema
from controller.cli import options, wording
from controller.cli.groups import example, listing_group
from controller.cli.repository import KnownRelease, open_repository, releases_of, until_first
from controller.cli.screen import Cell, Screen, facts
from controller.cli.session import session_of
from controller.errors import NotFoundError, RefusedError
from controller.trust.image import raise_floor
from protocol.identifiers import Version

app = listing_group("The releases of every model.", "releases")


class Retirement(msgspec.Struct, frozen=True, kw_only=True):
    """What `fleetctl releases retire` did; releases whose counter is below the floor can never be installed again."""

    model: str
    min_release_counter: int
    retired: tuple[str, ...]
    targets_version: int


@app.command("list", epilog=example("fleetctl releases list --model digits"))
def list_releases(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Only of this model.")] = None,
    is_json: options.Json = False,
) -> None:
    """List releases with their size and how many devices run them."""
    screen = Screen(is_json=is_json)
    with session_of(ctx).client() as client:
        releases = client.releases(model)
    screen.document(releases)
    if not releases:
        screen.say("no releases yet: `fleetctl push model.wasm` makes one")
        return
    now = datetime.now(UTC)
    columns = ("release", "counter", "module", "memory", "devices", "status", "made")
    numbers = ("counter", "module", "memory", "devices")
    screen.table(columns, (_row(release, now) for release in releases), right=numbers)


@app.command("show", epilog=example("fleetctl releases show digits 1.0.0"))
def show_release(
    ctx: typer.Context, model: options.Model, version: options.Version, is_json: options.Json = False
) -> None:
    """Show one release."""
    screen = Screen(is_json=is_json)
    with session_of(ctx).client() as client:
        release = client.release(model, version)
    screen.document(release)
    rows = (
        ("status", _status(release) + (f": {release.yank_reason}" if release.yank_reason else "")),
        ("made", wording.ago(release.created_at, datetime.now(UTC))),
        ("counter", f"{release.release_counter}"),
        ("module", wording.size(release.module_bytes)),
        ("memory", wording.size(release.memory_bytes)),
        ("devices", f"{release.devices} run it now"),
        ("manifest", f"sha256 {release.manifest_digest}"),
    )
    screen.say(facts(f"{release.model} {release.version}", rows))


@app.command("yank", epilog=example('fleetctl releases yank digits 1.1.0 --reason "wrong labels"'))
def yank_release(
    ctx: typer.Context,
    model: options.Model,
    version: options.Version,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; shown to whoever asks for it.")],
    is_json: options.Json = False,
) -> None:
    """Keep a release from further deployments.

    Devices that run it keep it.
    """
    screen = Screen(is_json=is_json)
    with session_of(ctx).client() as client:
        release = client.yank(model, version, reason)
    screen.document(release)
    still = f"{wording.count(release.devices, 'device')} still {'runs' if release.devices == 1 else 'run'} it"
    screen.say(f"{release.model} {release.version} is yanked; {still}")


@app.command("retire", epilog=example("fleetctl releases retire digits 1.0.0"))
def retire_release(
    ctx: typer.Context,
    model: options.Model,
    version: options.Version,
    is_sure: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    is_json: options.Json = False,
) -> None:
    """Retire a release and all made before it, for ever.

    The operator's key signs it: no device will install one of them again, whatever the service says.
    """
    screen = Screen(is_json=is_json)
    session = session_of(ctx)
    with session.client() as client:
        with open_repository(client, session.operator) as repository:
            known = releases_of(repository.fetch(), model)
        retired, floor = _retired(known, model, Version.parse(version))
        if not is_sure:
            names = ", ".join(str(release.version) for release in retired)
            typer.confirm(f"Retire {model} {names}? This cannot be taken back", abort=True, err=True)

        def attempt() -> schema.TargetsAccepted:
            signer = session.operator.targets_signer
            with open_repository(client, session.operator) as repository:
                return repository.put(raise_floor(repository.fetch(), model, floor, signer, datetime.now(UTC)))

        accepted = until_first(attempt)
    versions = tuple(str(release.version) for release in retired)
    screen.document(
        Retirement(model=model, min_release_counter=floor, retired=versions, targets_version=accepted.version)
    )
    screen.say(f"{model} {', '.join(versions)} can never be installed again")


@app.command("recover", epilog=example("fleetctl releases recover"))
def recover_releases(ctx: typer.Context, *, is_json: options.Json = False) -> None:
    """Give the service back the signed list that it lost.

    For a service that was restored from an old backup, when the broker had lost its memory as well: the service is
    behind what the operator has signed, and `fleetctl push` refuses to sign over its old list. Nothing is signed anew.
    """
    screen = Screen(is_json=is_json)
    session = session_of(ctx)
    with session.client() as client, open_repository(client, session.operator) as repository:
        recovered = repository.recover()
    screen.document(recovered)
    screen.say(f"the service has targets version {recovered.version} again; devices hear of it now")
    if recovered.missing:
        names = ", ".join(name.replace("@", " ") for name in recovered.missing)
        screen.say(f"without files, so that it cannot be rolled out: {names}\nnext: push the same file again, for each")


def _retired(known: list[KnownRelease], model: str, version: Version) -> tuple[list[KnownRelease], int]:
    """Return the releases up to `version`, and the release_counter of the next one, which is the new floor."""
    position = next((n for n, release in enumerate(known) if release.version == version), None)
    if position is None:
        raise NotFoundError(f"there is no release {model} {version}", hint=f"see `fleetctl releases --model {model}`")
    if position + 1 == len(known):
        raise RefusedError(
            f"{model} {version} is the newest release, and one has to stay installable",
            hint="push its successor first; to keep it from further deployments: `fleetctl releases yank`",
        )
    return known[: position + 1], known[position + 1].release_counter


def _status(release: schema.Release) -> str:
    if release.is_below_floor:
        return "retired"
    return "available" if release.yanked_at is None else "yanked"


def _row(release: schema.Release, now: datetime) -> tuple[Cell, ...]:
    return (
        f"{release.model} {release.version}",
        f"{release.release_counter}",
        wording.size(release.module_bytes),
        wording.size(release.memory_bytes),
        f"{release.devices}",
        _status(release),
        wording.ago(release.created_at, now),
    )
