"""What tests ask of the API, and what they make of the answers."""

import httpx
import msgspec

from controller.api.schema import Problem
from protocol.codec import sha256
from tests.controller.service.fleet import bundle
from tests.controller.service.serving import Served


def parse(response: httpx.Response, kind: type) -> object:
    assert response.is_success, response.text
    return msgspec.json.decode(response.content, type=kind)


def problem(response: httpx.Response, status: int, code: str) -> Problem:
    """Return the problem, which must be one."""
    assert (status, "application/problem+json") == (response.status_code, response.headers["content-type"])
    found = msgspec.json.decode(response.content, type=Problem)
    assert (status, code) == (found.status, found.code)
    return found


def upload(served: Served, *files: bytes) -> None:
    for data in files:
        response = served.api.put(f"/files/{sha256(data)}", content=data)
        assert 204 == response.status_code, response.text


def publish(served: Served) -> None:
    release = bundle()
    upload(served, *release.files)
    response = served.api.put("/tuf/targets", content=served.fleet.signed_with(release))
    assert {"version": 2, "released": ["double@1.0.0"]} == response.json()
