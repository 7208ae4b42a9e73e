"""Routes: the service itself, signed targets, files, models and releases."""

from typing import Any

from litestar import Request, Response, get, head, post, put
from litestar.concurrency import sync_to_thread
from litestar.params import FromPath, FromQuery, JSONBody

from controller.api.access import new_actor
from controller.api.office import Office, OfficeDependency
from controller.api.schema import Info, Model, Release, TargetsAccepted, TargetsRecovered, YankRequest
from controller.commands import releases as commands
from controller.errors import NotFoundError
from controller.reads.releases import get_release, list_models, list_releases
from controller.store.metadata import newest
from controller.trust.image import MAX_TARGETS_BYTES
from protocol.errors import LimitExceededError
from protocol.identifiers import parse_digest

AnyRequest = Request[Any, Any, Any]


@get("/v1/info", sync_to_thread=True)
def info(office: OfficeDependency) -> Info:
    """Return what the service is and how it fares."""
    return office.describe()


@get("/v1/tuf/targets")
async def targets(office: OfficeDependency) -> Response[bytes]:
    """Return the image repository's targets metadata, exactly as signed."""
    return Response(await sync_to_thread(_targets, office), media_type="application/json")


def _targets(office: Office) -> bytes:
    with office.core.store.read() as session:
        row = newest(session, "image", "targets")
    if row is None:
        raise NotFoundError("there are no signed targets yet", hint="start the service once with its first targets")
    return row.raw


@put("/v1/tuf/targets", request_max_body_size=MAX_TARGETS_BYTES)
async def put_targets(request: AnyRequest, office: OfficeDependency) -> TargetsAccepted:
    """Put newly signed targets metadata in force; 409 when another came first."""
    raw = await request.body()
    return await sync_to_thread(commands.accept_targets, office.core, raw, new_actor())


@post("/v1/tuf/targets/recover", request_max_body_size=MAX_TARGETS_BYTES, status_code=200)
async def recover_targets(request: AnyRequest, office: OfficeDependency) -> TargetsRecovered:
    """Put the operator's newest targets metadata in force again after a restore; 409 when the service has newer."""
    raw = await request.body()
    return await sync_to_thread(commands.recover_targets, office.core, raw, new_actor())


@head("/v1/files/{digest:str}", sync_to_thread=True)
def has_file(digest: FromPath[str], office: OfficeDependency) -> None:
    """Answer 200 when the service has the file and knows it, else 404."""
    if not commands.has_file(office.core, parse_digest(digest)):
        raise NotFoundError(f"there is no file {digest[:64]}", hint="upload it")


@put("/v1/files/{digest:str}", request_max_body_size=None, status_code=204)
async def put_file(request: AnyRequest, digest: FromPath[str], office: OfficeDependency) -> None:
    """Take the bytes of one file of a bundle, which must have the SHA-256 that the path names."""
    wanted = parse_digest(digest)
    announced = request.headers.get("content-length", "0")
    limit_bytes = office.core.files.limit_bytes
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise LimitExceededError(f"expected a file of at most {limit_bytes:,} bytes, got {int(announced):,}")
    with office.core.files.upload(wanted) as upload:
        async for piece in request.stream():
            upload.write(piece)
        await sync_to_thread(upload.commit)
    await sync_to_thread(commands.record_file, office.core, wanted, upload.size_bytes, new_actor())


@get("/v1/models", sync_to_thread=True)
def models(office: OfficeDependency) -> list[Model]:
    """Return every model."""
    with office.core.store.read() as session:
        return list_models(session)


@get("/v1/releases", sync_to_thread=True)
def releases(office: OfficeDependency, model: FromQuery[str | None] = None) -> list[Release]:
    """Return every release, or those of one model."""
    with office.core.store.read() as session:
        return list_releases(session, model)


@get("/v1/releases/{model:str}/{version:str}", sync_to_thread=True)
def release(model: FromPath[str], version: FromPath[str], office: OfficeDependency) -> Release:
    """Return one release."""
    with office.core.store.read() as session:
        return get_release(session, model, version)


@post("/v1/releases/{model:str}/{version:str}/yank", status_code=200, sync_to_thread=True)
def yank(
    model: FromPath[str], version: FromPath[str], data: JSONBody[YankRequest], office: OfficeDependency
) -> Release:
    """Keep a release from every further deployment; devices that run it keep it."""
    return commands.yank(office.core, model, version, data.reason, new_actor())


HANDLERS = (info, targets, put_targets, recover_targets, has_file, put_file, models, releases, release, yank)
