"""Routes: rollouts, and the stream of what happens to one."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from litestar import Response, get, post
from litestar.concurrency import sync_to_thread
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody, QueryParameter
from litestar.response import ServerSentEvent, ServerSentEventMessage

from controller.api.access import new_actor
from controller.api.office import Office, OfficeDependency
from controller.api.schema import Plan, Rollout, RolloutRequest
from controller.commands import rollouts as commands
from controller.errors import RefusedError
from controller.reads.rollouts import get_rollout, list_rollouts
from controller.store.idempotency import MAX_KEY_CHARS, Ticket
from protocol import lifecycle

MAX_LISTED = 1_000
MIN_PAUSE_S = 0.1
"""Between two events of a stream: a fleet that reports all at once changes a rollout many times a second."""
PAUSE_SHARE = 9
"""An event has every device: the pause is at least so many times what it took to make the event."""
KEEP_ALIVE_S = 15.0
"""A comment this often, so that a proxy or a client does not take silence for death."""


@post("/v1/rollouts")
async def start(
    data: JSONBody[RolloutRequest],
    office: OfficeDependency,
    key: Annotated[str | None, HeaderParameter(name="Idempotency-Key")] = None,
) -> Response[Rollout | Plan]:
    """Start a rollout, or return its plan when `is_dry_run`; with an Idempotency-Key it starts once."""
    if data.is_dry_run:
        return Response(await sync_to_thread(commands.plan, office.core, data), status_code=200)
    if key is not None and not 1 <= len(key) <= MAX_KEY_CHARS:
        raise RefusedError(f"expected an Idempotency-Key of 1 to {MAX_KEY_CHARS} characters", hint="send a UUID")
    ticket = Ticket.of(key, msgspec.json.encode(data)) if key is not None else None
    return Response(await sync_to_thread(commands.start, office.core, data, new_actor(), ticket), status_code=201)


@get("/v1/rollouts", sync_to_thread=True)
def rollouts(
    office: OfficeDependency,
    model: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_LISTED)] = 50,
) -> list[Rollout]:
    """Return the newest rollouts, without their deployments."""
    with office.core.store.read() as session:
        return list_rollouts(session, model, limit)


@get("/v1/rollouts/{rollout:str}", sync_to_thread=True)
def rollout(rollout: FromPath[str], office: OfficeDependency) -> Rollout:
    """Return one rollout with its deployments."""
    return _read(office, rollout)


@post("/v1/rollouts/{rollout:str}/stop", status_code=200, sync_to_thread=True)
def stop(rollout: FromPath[str], office: OfficeDependency) -> Rollout:
    """Give up every deployment of the rollout that is not active yet."""
    return commands.stop(office.core, rollout, new_actor())


@get("/v1/rollouts/{rollout:str}/events", media_type="text/event-stream")
async def events(rollout: FromPath[str], office: OfficeDependency) -> ServerSentEvent:
    """Stream the rollout with its deployments: now, and on every change until nothing more can happen."""
    await sync_to_thread(_read, office, rollout)  # so that an unknown one is a 404 and not a broken stream
    return ServerSentEvent(_events(office, rollout))


async def _events(office: Office, rollout_id: str) -> AsyncIterator[ServerSentEventMessage]:
    changes = office.core.changes
    with changes.watch(rollout_id) as watcher:
        is_changed, pause_s = True, MIN_PAUSE_S
        while not changes.is_closed:
            if is_changed:
                began_s = time.monotonic()
                shown = await sync_to_thread(_read, office, rollout_id)
                pause_s = max(MIN_PAUSE_S, PAUSE_SHARE * (time.monotonic() - began_s))
                yield ServerSentEventMessage(data=msgspec.json.encode(shown), event="rollout")
                if shown.state in ("finished", "stopped") or lifecycle.is_final(lifecycle.ROLLOUT, shown.state):
                    return
            else:
                yield ServerSentEventMessage(comment="still here", data=None)
            await asyncio.sleep(pause_s)
            is_changed = await watcher.wait(KEEP_ALIVE_S)


def _read(office: Office, rollout_id: str) -> Rollout:
    with office.core.store.read() as session:
        return get_rollout(session, rollout_id)


HANDLERS = (start, rollouts, rollout, stop, events)
