"""Routes of the device-facing listener: the fleet's certificate, and enrolment. Nothing else is reachable there."""

import asyncio
from typing import Any

import msgspec
from litestar import Request, Response, get, post
from litestar.concurrency import sync_to_thread
from litestar.exceptions import HTTPException

from controller.api.access import new_actor
from controller.api.office import Office, OfficeDependency
from controller.commands.devices import enroll as command
from protocol import limits
from protocol.enrollment import EnrollRequest, EnrollResponse

BODY_TIMEOUT_S = 10
"""Strangers reach this listener: none may hold a connection for as long as he likes."""


@get("/v1/ca", sync_to_thread=False)
def ca(office: OfficeDependency) -> Response[bytes]:
    """Return the certificate of the fleet's CA; a device compares its fingerprint with the invite."""
    return Response(office.ca_pem, media_type="application/x-pem-file")


@post("/v1/enroll", status_code=200, request_max_body_size=limits.MAX_ENROLL_BYTES)
async def enroll(request: Request[Any, Any, Any], office: OfficeDependency) -> Response[bytes]:
    """Take in the device that holds the invite."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await request.body()
    except TimeoutError as error:
        raise HTTPException(f"expected the whole request within {BODY_TIMEOUT_S} s", status_code=408) from error
    asked = EnrollRequest.from_bytes(body)
    answer = await sync_to_thread(_enroll, office, asked)
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _enroll(office: Office, asked: EnrollRequest) -> EnrollResponse:
    enrolled = command(office.core, office.authority, asked, new_actor("device"))
    return EnrollResponse(
        device_id=enrolled.device_id,
        certificate_pem=enrolled.certificate_pem,
        ca_pem=office.ca_pem.decode(),
        mqtt_url=office.addresses.device_mqtt_url,
        topic_prefix=office.topic_prefix,
        image_root=office.core.trust.image_root.decode(),
        director_root=office.core.trust.director_root.decode(),
    )


HANDLERS = (ca, enroll)
