"""Invites that survive copy and paste, and enrolment messages."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import encode
from protocol.enrollment import EnrollRequest, EnrollResponse, Invite
from protocol.errors import LimitExceededError, MalformedError, ProtocolError

FINGERPRINT = "5a" * 32
INVITE = Invite(url="https://10.0.0.7:8471", ca_sha256=FINGERPRINT, token="tNc-0_x")


@pytest.mark.property
@given(st.text(max_size=60), st.text(min_size=1, max_size=60))
def test_invites_round_trip(host: str, token: str) -> None:
    """Any invite parses back, with white space of the clipboard around it."""
    invite = Invite(url=f"https://{host}", ca_sha256=FINGERPRINT, token=token)
    assert invite == Invite.parse(f"  {invite}\n")


def test_an_invite_is_one_word() -> None:
    """A shell takes it as it is: no quotes, spaces, padding or slashes."""
    text = str(INVITE)
    assert text.startswith("wf1.")
    assert set() == set(text) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")


def spelt(**fields: object) -> str:
    """Return an invite with these fields, whatever they are."""
    return "wf1." + base64.urlsafe_b64encode(encode(fields)).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    [
        "", "wf1.", "wf2." + str(INVITE)[4:], str(INVITE)[4:], "hello", "wf1.é", "wf1.!!!!", "wf1.A",
        "wf1." + "A" * 3_000, str(INVITE)[:-7], spelt(), spelt(url="https://h", ca_sha256=FINGERPRINT),
        spelt(url="https://h", ca_sha256="00", token="t"), spelt(url="http://h", ca_sha256=FINGERPRINT, token="t"),
        spelt(url=1, ca_sha256=FINGERPRINT, token="t"), spelt(url="file:///x", ca_sha256=FINGERPRINT, token="t"),
    ],
)  # fmt: skip
def test_bad_invites(text: str) -> None:
    """A cut, foreign or insecure invite raises."""
    with pytest.raises(ProtocolError):
        Invite.parse(text)


def test_every_truncation_of_an_invite() -> None:
    """A line that was not copied whole never parses into another invite."""
    text = str(INVITE)
    for length in range(len(text)):
        with pytest.raises(ProtocolError):
            Invite.parse(text[:length])


def test_an_insecure_invite_says_why() -> None:
    """A device never sends its token over plain HTTP."""
    with pytest.raises(MalformedError, match="https"):
        Invite.parse(spelt(url="http://h", ca_sha256=FINGERPRINT, token="t"))


def test_enrolment_messages_round_trip() -> None:
    """Request and response come back from their JSON."""
    request = EnrollRequest(token="t", csr_pem="-----BEGIN")
    assert request == EnrollRequest.from_bytes(encode(request))
    response = EnrollResponse(
        device_id="d",
        certificate_pem="c",
        ca_pem="a",
        mqtt_url="mqtts://h",
        topic_prefix="fleet",
        image_root="{}",
        director_root="{}",
    )
    assert response == EnrollResponse.from_bytes(encode(response))


def test_an_oversize_request() -> None:
    """The open listener parses nothing beyond 16 KiB."""
    with pytest.raises(LimitExceededError):
        EnrollRequest.from_bytes(encode(EnrollRequest(token="t", csr_pem="x" * 16_384)))
