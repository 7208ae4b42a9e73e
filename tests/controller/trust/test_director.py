"""The director's own limits; what a device makes of its documents is in test_device_side."""

import pytest

from controller.errors import NotFoundError, RefusedError
from controller.trust.director import sign_assignment
from protocol import limits
from protocol.assignment import AssignedRelease, Assignment


def sign(fleet, assignment: Assignment, targets: bytes) -> bytes:
    return sign_assignment(assignment, targets, version=1, now=fleet.now, signer=fleet.director)


def test_a_release_that_is_not_signed_cannot_be_assigned(fleet):
    """The director binds digests of the image repository; without one there is nothing to bind."""
    release = AssignedRelease(model="digits", version="2.0.0", deployment_id="d-1")
    assignment = Assignment(device_id="press-7", issued_at_ms=0, releases=(release,))
    with pytest.raises(NotFoundError, match=r"digits 2\.0\.0 is not in the signed targets"):
        sign(fleet, assignment, fleet.released(("1.0.0", 1)))


def test_a_document_that_no_device_would_take_is_not_signed(fleet):
    """The size is checked where it can still be helped."""
    canceled = tuple(f"{n:064}" for n in range(1_000))
    assignment = Assignment(device_id="press-7", issued_at_ms=0, canceled=canceled)
    with pytest.raises(RefusedError, match=f"expected at most {limits.MAX_DIRECTOR_BYTES:,}"):
        sign(fleet, assignment, fleet.released())


def test_each_document_is_of_the_targets_it_was_given(fleet):
    """What was parsed for one list of releases is not used for another."""
    release = AssignedRelease(model="digits", version="1.1.0", deployment_id="d-1")
    assignment = Assignment(device_id="press-7", issued_at_ms=0, releases=(release,))
    old, new = fleet.released(("1.0.0", 1)), fleet.released(("1.0.0", 1), ("1.1.0", 2))
    assert sign(fleet, assignment, new) == sign(fleet, assignment, new)
    with pytest.raises(NotFoundError):
        sign(fleet, assignment, old)
