"""Tests of following a rollout: across losses of the service, until it ended or time is up, on any screen."""

import io
import time
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from controller.api.schema import Deployment, PlannedDevice, Rollout
from controller.cli.following import changes, conclude, follow, is_all_well, progress_table
from controller.cli.screen import Screen
from controller.client import ServiceLostError, ServiceNotRunningError, ServiceSilentError
from controller.errors import NotFoundError
from protocol.messages import Progress, Reason

Event = Rollout | None | Exception


def rollout(*states: str, **fields: Any) -> Rollout:
    deployments = tuple(
        Deployment(id=f"r-1-{n}", device=f"cam-{n}", state=state, updated_at="2026-03-01T12:00:00Z")  # type: ignore[arg-type] # a state
        for n, state in enumerate(states, 1)
    )
    values: dict[str, Any] = {
        "id": "r-1", "model": "m", "version": "1.0.0", "state": "running", "to": ("all",),
        "created_at": "2026-03-01T12:00:00Z", "finished_at": None, "counts": {}, "deployments": deployments,
    }  # fmt: skip
    return Rollout(**(values | fields))


def ended(*states: str, **fields: Any) -> Rollout:
    return rollout(*states, state="finished", finished_at="2026-03-01T12:00:03Z", **fields)


class Streams:
    """A service whose event streams are prepared; each break is an exception."""

    def __init__(self, *streams: list[Event]) -> None:
        self.streams = list(streams)

    def rollout_events(self, rollout_id: str, *, silence_s: float) -> Iterator[Rollout | None]:
        for event in self.streams.pop(0):
            if isinstance(event, Exception):
                raise event
            yield event


def lines(captured: pytest.CaptureFixture[str]) -> list[str]:
    return captured.readouterr().out.splitlines()


def test_a_rollout_is_followed_to_its_end() -> None:
    """Every change comes through, signs of life do not."""
    service = Streams([rollout("queued"), None, rollout("downloading"), ended("succeeded"), rollout("queued")])
    seen = [r.deployments[0].state for r in changes(service, "r-1", timeout_s=10)]
    assert ["queued", "downloading", "succeeded"] == seen


def test_a_lost_service_is_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    """The rollout goes on without the service, and the screen says so once."""
    gone = ServiceNotRunningError("no service answers at http://x")
    service = Streams(
        [rollout("queued"), ServiceLostError("the service at http://x went away")], [gone], [ended("succeeded")]
    )
    assert "finished" == list(changes(service, "r-1", timeout_s=10))[-1].state
    said = capsys.readouterr().err
    assert "warning: the service at http://x went away; the rollout goes on without it" in said
    assert 1 == said.count("warning:")


def test_a_stream_that_only_ends_is_asked_again() -> None:
    """A service that stops closes its streams; the next one goes on."""
    service = Streams([rollout("queued")], [ended("succeeded")])
    assert 2 == len(list(changes(service, "r-1", timeout_s=10)))


def test_silence_is_no_loss(capsys: pytest.CaptureFixture[str]) -> None:
    """A rollout in which nothing happens is asked for again without a word; a service that never speaks is lost."""
    silent = ServiceSilentError("the service at http://x went away: timed out")
    service = Streams([rollout("queued"), silent], [rollout("queued"), silent], [silent], [ended("succeeded")])
    assert ["running", "finished"] == [r.state for r in changes(service, "r-1", timeout_s=60)]
    assert 1 == capsys.readouterr().err.count("warning:")


def test_other_errors_are_not_waited_out() -> None:
    """A rollout that no longer exists will not come back."""
    with pytest.raises(NotFoundError):
        list(changes(Streams([NotFoundError("gone")]), "r-1", timeout_s=10))


def test_following_ends_when_time_is_up() -> None:
    """A device that is offline does not keep the terminal for ever."""

    class Endless:
        def rollout_events(self, rollout_id: str, *, silence_s: float) -> Iterator[Rollout | None]:
            yield rollout("queued")
            while True:
                yield None

    assert ["running"] == [r.state for r in changes(Endless(), "r-1", timeout_s=0.05)]


def test_that_time_is_up_is_no_loss(capsys: pytest.CaptureFixture[str]) -> None:
    """A wait that ends with --timeout says nothing of the service, even when its first answer was still to come."""

    class Silent:
        def rollout_events(self, rollout_id: str, *, silence_s: float) -> Iterator[Rollout | None]:
            time.sleep(silence_s)
            raise ServiceSilentError("the service at http://x went away: timed out")
            yield

    assert [] == list(changes(Silent(), "r-1", timeout_s=0.05))
    assert "" == capsys.readouterr().err


def test_each_change_of_state_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal, what changed is printed once, with how far a download is."""
    part = rollout("downloading")
    at_work = Deployment(
        id="r-1-1", device="cam-1", state="downloading", updated_at="", progress=Progress(done_bytes=1, total_bytes=4)
    )
    service = Streams([rollout("queued"), rollout("queued"), part, ended("succeeded")])
    follow(Screen(is_json=False), service, rollout("queued", deployments=(at_work,)), timeout_s=10)
    assert ["cam-1  queued", "cam-1  downloading", "cam-1  succeeded"] == [line.rstrip() for line in lines(capsys)]


def test_a_document_is_not_mixed_with_words(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json following is silent."""
    last = follow(Screen(is_json=True), Streams([ended("succeeded")]), rollout("queued"), timeout_s=10)
    assert (0, []) == (conclude(Screen(is_json=True), last), lines(capsys))


def test_a_failure_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """The reason stands beside the device, and the next command is there to type."""
    failed = Deployment(
        id="r-1-1",
        device="cam-1",
        state="failed",
        updated_at="",
        reason=Reason(code="self_test_failed", message="vector 0, output 'y': expected 1, got 2"),
    )
    code = conclude(Screen(is_json=False), ended(deployments=(failed,)))
    shown = lines(capsys)
    assert 3 == code
    assert "cam-1   failed  self_test_failed: vector 0, output 'y': expected 1, got 2" in shown
    assert ["✗ 0 of 1 device ended well after 3 s", "next: fleetctl devices explain cam-1"] == shown[-2:]


def test_an_unfinished_rollout_is_not_well(capsys: pytest.CaptureFixture[str]) -> None:
    """When time was up, that is said, with the command to go on with."""
    assert 3 == conclude(Screen(is_json=False), rollout("succeeded", "queued"))
    assert [
        "✗ 1 of 2 devices ended well, 1 has not ended: time is up, the rollout goes on",
        "next: fleetctl rollouts watch r-1",
    ] == lines(capsys)[-2:]


def test_of_many_devices_only_those_are_shown_that_need_a_look(capsys: pytest.CaptureFixture[str]) -> None:
    """A hundred good ends are a number."""
    assert 3 == conclude(Screen(is_json=False), ended(*["succeeded"] * 99, "failed"))
    shown = lines(capsys)
    assert (1, True) == (
        sum(line.startswith("cam-") for line in shown),
        "✗ 99 of 100 devices ended well after 3 s" in shown,
    )


@pytest.mark.parametrize(
    ("states", "refused", "expected"),
    [
        (["succeeded", "already_installed", "removed"], 0, True),
        (["succeeded"], 1, True),
        ([], 0, True),
        ([], 1, False),
        (["succeeded", "rolled_back"], 0, False),
        (["canceled"], 0, False),
        (["superseded"], 0, False),
        (["queued"], 0, False),
    ],
)
def test_well_is_when_every_device_ended_well(states: list[str], refused: int, expected: bool) -> None:
    """Refused devices were told before; all others must have ended, and well."""
    no = PlannedDevice(device="x", decision="refused", installed=None, download_bytes=0, reason="too small")
    assert expected == is_all_well(ended(*states, refused=(no,) * refused))


def test_a_terminal_shows_a_table_that_fits() -> None:
    """Of a hundred devices those are on the screen that failed or are at work."""
    console = Console(file=io.StringIO(), width=80)
    states = ["succeeded"] * 90 + ["queued"] * 8 + ["downloading", "failed"]
    console.print(progress_table(rollout(*states)))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue().splitlines()
    assert ["cam-100  failed", "cam-99   downloading"] == [line.rstrip() for line in shown[1:3]]
    assert (18, "91 of 100 devices done") == (len(shown), shown[-1].rstrip())
