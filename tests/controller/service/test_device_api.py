"""The device-facing listener: HTTPS under the fleet's own CA, and nothing but enrolment."""

import json
import ssl

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controller.api.schema import InviteResponse
from protocol import limits
from protocol.codec import sha256
from protocol.enrollment import EnrollRequest, EnrollResponse, Invite
from tests.controller.service.asking import parse, problem
from tests.controller.service.fleet import signing_request
from tests.controller.service.serving import Served


def invite_to(served: Served, **body: object) -> InviteResponse:
    return parse(served.api.post("/invites", json=body), InviteResponse)  # type: ignore[return-value]


def test_a_device_joins_with_what_was_pasted(served: Served) -> None:
    """It gets a certificate, the roots and the address of the broker."""
    answered = invite_to(served, device_id="press-1", groups=["line-1"])
    invite = Invite.parse(answered.invite)
    assert (f"fleet-agent enroll {answered.invite}", served.device_url) == (answered.command, invite.url)
    ca_pem = served.device.get("/v1/ca").content
    assert invite.ca_sha256 == sha256(ssl.PEM_cert_to_DER_cert(ca_pem.decode()))
    request = EnrollRequest(token=invite.token, csr_pem=signing_request(Ed25519PrivateKey.generate()))
    response = served.device.post("/v1/enroll", content=msgspec.json.encode(request))
    enrolled = EnrollResponse.from_bytes(response.content)
    assert ("press-1", "mqtt://broker:1883", "fleet") == (
        enrolled.device_id,
        enrolled.mqtt_url,
        enrolled.topic_prefix,
    )
    assert served.fleet.core.trust.image_root == enrolled.image_root.encode()
    assert ca_pem.decode() == enrolled.ca_pem
    assert "registered" == served.api.get("/devices/press-1").json()["state"]
    again = served.device.post("/v1/enroll", content=msgspec.json.encode(request))
    problem(again, 422, "refused")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed"),
        (b"{}", 400, "malformed"),
        (b'{"token": "x", "csr_pem": "y"}', 422, "refused"),
        (b"x" * (limits.MAX_ENROLL_BYTES + 1), 413, "limit_exceeded"),
    ],
)
def test_a_bad_request_gets_a_problem(shared: Served, body: bytes, status: int, code: str) -> None:
    """And changes nothing."""
    problem(shared.device.post("/v1/enroll", content=body), status, code)


def test_a_bad_certificate_request_gets_a_problem(shared: Served) -> None:
    """The invite stays good."""
    invite = Invite.parse(invite_to(shared).invite)
    body = json.dumps({"token": invite.token, "csr_pem": "nonsense"})
    problem(shared.device.post("/v1/enroll", content=body), 400, "malformed")


@pytest.mark.parametrize("path", ["/v1/info", "/v1/devices", "/schema", "/v1/tuf/targets", "/"])
def test_nothing_else_is_there(shared: Served, path: str) -> None:
    """Not even with the operator's token."""
    token = shared.fleet.workspace.operator.api_token
    response = shared.device.get(path, headers={"Authorization": f"Bearer {token}"})
    problem(response, 404, "not_found")


def test_plain_http_gets_nowhere(shared: Served) -> None:
    """The listener speaks TLS alone."""
    with pytest.raises(httpx.HTTPError):
        httpx.get(shared.device_url.replace("https", "http") + "/v1/ca")
