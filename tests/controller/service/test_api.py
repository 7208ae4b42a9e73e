"""The operator API and the device-facing listener, over real HTTP."""

import socket
import threading

import httpx
import pytest
from sqlalchemy import select

from controller.api.schema import Info, Model, NamedQuery, Plan, QueryResult, Release, Rollout
from controller.store.models import AuditRow
from protocol import limits
from protocol.codec import sha256
from protocol.manifest import FileRef
from tests.controller.service.asking import parse, problem, publish, upload
from tests.controller.service.fleet import HAPPY, bundle
from tests.controller.service.serving import Served


class TestAccess:
    """Nothing below /v1 is told to whom has not the token."""

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer"},
            {"Authorization": "Basic abc"},
            {"Authorization": "\xff"},
        ],
    )
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/v1/info"),
            ("POST", "/v1/rollouts"),
            ("POST", "/v1/tuf/targets/recover"),
            ("GET", "/v1/nothing"),
            ("PUT", "/v1"),
        ],
    )
    def test_without_the_token_nothing_is_answered(
        self, shared: Served, method: str, path: str, headers: dict[str, str]
    ) -> None:
        """Not even whether a path exists."""
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        response = shared.stranger.request(method, path, headers=encoded)
        found = problem(response, 401, "unauthorized")
        assert ("Bearer", True) == (response.headers["www-authenticate"], "api.token" in found.hint)

    def test_two_tokens_are_none(self, shared: Served) -> None:
        """A proxy that adds its own must not decide."""
        token = shared.fleet.workspace.operator.api_token
        headers = [("Authorization", f"Bearer {token}"), ("Authorization", "Bearer x")]
        problem(shared.stranger.get("/v1/info", headers=headers), 401, "unauthorized")

    def test_the_description_of_the_api_is_open(self, shared: Served) -> None:
        """It names every path, and loads nothing from elsewhere."""
        described = shared.stranger.get("/schema").json()
        assert {
            "/v1/info",
            "/v1/tuf/targets",
            "/v1/tuf/targets/recover",
            "/v1/files/{digest}",
            "/v1/models",
            "/v1/releases",
            "/v1/releases/{model}/{version}",
            "/v1/releases/{model}/{version}/yank",
            "/v1/devices",
            "/v1/devices/{device}",
            "/v1/devices/{device}/groups",
            "/v1/devices/{device}/explain",
            "/v1/invites",
            "/v1/rollouts",
            "/v1/rollouts/{rollout}",
            "/v1/rollouts/{rollout}/events",
            "/v1/rollouts/{rollout}/stop",
            "/v1/queries",
            "/v1/query",
        } == set(described["paths"])
        assert 200 == shared.stranger.get("/schema/openapi.json").status_code


class TestReleases:
    """Files first, then signed targets."""

    def test_a_release_is_published(self, served: Served) -> None:
        """And listed, with its model."""
        publish(served)
        (release,) = parse(served.api.get("/releases", params={"model": "double"}), list[Release])  # type: ignore[misc]
        (model,) = parse(served.api.get("/models"), list[Model])  # type: ignore[misc]
        assert ("1.0.0", "1.0.0") == (release.version, model.latest)
        assert served.fleet.targets() == served.api.get("/tuf/targets").content

    def test_a_file_is_there_when_it_was_taken(self, served: Served) -> None:
        """HEAD tells; a second PUT does no harm."""
        data = b"some file"
        assert 404 == served.api.head(f"/files/{sha256(data)}").status_code
        upload(served, data, data)
        assert 200 == served.api.head(f"/files/{sha256(data)}").status_code

    def test_a_large_file_streams_to_the_disk(self, served: Served) -> None:
        """More than the bound of a JSON request."""
        data = bytes(5 << 20)
        upload(served, data)
        assert data == served.fleet.core.files.read(FileRef.of(data).digest)

    def test_a_file_that_is_another_is_refused(self, shared: Served) -> None:
        """Nothing is kept."""
        digest = sha256(b"right")
        problem(shared.api.put(f"/files/{digest}", content=b"wrong"), 422, "digest_mismatch")
        assert 404 == shared.api.head(f"/files/{digest}").status_code

    def test_a_file_without_a_proper_name_is_refused(self, shared: Served) -> None:
        """A name is a SHA-256, never a path."""
        for name in ("x", "..", "%2e%2e%2fapi.token", "A" * 64):
            response = shared.api.put(f"/files/{name}", content=b"x")
            assert response.status_code in (400, 404, 405)
            assert "application/problem+json" == response.headers["content-type"]

    def test_a_file_that_is_announced_too_large_is_refused_at_once(self, shared: Served) -> None:
        """Before a byte of it is read."""
        token = shared.fleet.workspace.operator.api_token
        host, port = shared.api_url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as raw:
            raw.sendall(
                f"PUT /v1/files/{'0' * 64} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                f"Content-Length: {limits.MAX_FILE_BYTES + 1}\r\n\r\n".encode()
            )
            assert raw.recv(100).startswith(b"HTTP/1.1 413")

    def test_a_file_that_was_never_recorded_is_uploaded_again(self, served: Served) -> None:
        """The service was killed after the file got its name: the release can still be published."""
        release = bundle()
        for data in release.files:
            with served.fleet.core.files.upload(sha256(data)) as unrecorded:
                unrecorded.write(data)
                unrecorded.commit()
            assert 404 == served.api.head(f"/files/{sha256(data)}").status_code
        publish(served)
        for data in release.files:
            assert 200 == served.api.head(f"/files/{sha256(data)}").status_code

    def test_an_upload_that_breaks_off_leaves_nothing(self, served: Served) -> None:
        """The file is there whole or not at all."""
        token = served.fleet.workspace.operator.api_token
        host, port = served.api_url.removeprefix("http://").split(":")
        incoming = served.fleet.workspace.server.files_path / "incoming"
        with socket.create_connection((host, int(port)), timeout=20) as raw:
            raw.sendall(
                f"PUT /v1/files/{sha256(b'whole file')} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                "Content-Length: 10\r\n\r\nwhole".encode()
            )
            until(lambda: any(incoming.iterdir()))
        until(lambda: not any(incoming.iterdir()))
        assert not served.fleet.core.files.has(FileRef.of(b"whole file").digest)

    @pytest.mark.parametrize("body", [b"", b"{}", b"nonsense", b'{"signed": {}, "signatures": []}', b"[" * 5_000])
    def test_targets_that_are_none_are_refused(self, shared: Served, body: bytes) -> None:
        """The code is that of the protocol."""
        problem(shared.api.put("/tuf/targets", content=body), 400, "malformed")
        problem(shared.api.post("/tuf/targets/recover", content=body), 400, "malformed")

    def test_targets_have_a_bound(self, shared: Served) -> None:
        """A larger body is not read."""
        problem(shared.api.put("/tuf/targets", content=bytes(5 << 20)), 413, "limit_exceeded")
        problem(shared.api.post("/tuf/targets/recover", content=bytes(5 << 20)), 413, "limit_exceeded")

    def test_of_two_at_once_one_gets_a_conflict(self, served: Served) -> None:
        """It fetches the targets again."""
        one, two = bundle("one"), bundle("two")
        upload(served, *one.files, *two.files)
        signed = [served.fleet.signed_with(release) for release in (one, two)]
        responses: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda raw=raw: responses.append(served.api.put("/tuf/targets", content=raw)))
            for raw in signed
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [200, 409] == sorted(response.status_code for response in responses)
        problem(next(r for r in responses if r.status_code == 409), 409, "conflict")

    def test_a_yank_is_shown(self, served: Served) -> None:
        """With its reason."""
        publish(served)
        response = served.api.post("/releases/double/1.0.0/yank", json={"reason": "wrong labels"})
        assert "wrong labels" == parse(response, Release).yank_reason  # type: ignore[attr-defined]
        problem(served.api.post("/releases/double/9.9.9/yank", json={"reason": "x"}), 404, "not_found")
        problem(served.api.post("/releases/double/1.0.0/yank", json={}), 400, "malformed")


class TestRollouts:
    """Started once, followed live."""

    def test_a_rollout_is_planned_started_and_listed(self, served: Served) -> None:
        """A dry run answers with a plan."""
        publish(served)
        served.fleet.enroll("press-1")
        body = {"model": "double", "version": "1.0.0", "to": ["all"]}
        plan = parse(served.api.post("/rollouts", json={**body, "is_dry_run": True}), Plan)
        assert ("press-1",) == tuple(d.device for d in plan.devices)  # type: ignore[attr-defined]
        started = served.api.post("/rollouts", json=body)
        rollout = parse(started, Rollout)
        assert (201, {"queued": 1}) == (started.status_code, rollout.counts)  # type: ignore[attr-defined]
        (listed,) = parse(served.api.get("/rollouts", params={"model": "double", "limit": 1}), list[Rollout])  # type: ignore[misc]
        assert listed.id == rollout.id  # type: ignore[attr-defined]
        assert rollout == parse(served.api.get(f"/rollouts/{listed.id}"), Rollout)

    def test_the_same_key_starts_it_once(self, served: Served) -> None:
        """Also when both come at the same time."""
        publish(served)
        served.fleet.enroll("press-1")
        body = {"model": "double", "version": "1.0.0"}
        answers = [served.api.post("/rollouts", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
        assert answers[0].content == answers[1].content
        other = served.api.post("/rollouts", json={**body, "to": ["press-1"]}, headers={"Idempotency-Key": "k"})
        problem(other, 409, "conflict")
        problem(served.api.post("/rollouts", json=body, headers={"Idempotency-Key": "k" * 201}), 422, "refused")
        assert 1 == len(served.api.get("/rollouts").json())

    def test_its_events_stream_until_it_ends(self, served: Served) -> None:
        """The first one at once, the last one with the end."""
        publish(served)
        device = served.fleet.enroll("press-1")
        rollout = served.fleet.roll_out("double", "1.0.0")
        events = served.events(rollout.id)
        assert "running" == next(events)["state"]
        report = device.report(rollout.deployments[0].id, bundle().manifest, HAPPY)
        served.fleet.say(device, "receipts", report)
        assert ["finished"] == [event["state"] for event in events]

    def test_the_events_of_a_finished_rollout_are_one(self, served: Served) -> None:
        """Nothing more can happen."""
        publish(served)
        device = served.fleet.enroll("press-1")
        rollout = served.fleet.roll_out("double", "1.0.0")
        served.fleet.say(device, "receipts", device.report(rollout.deployments[0].id, bundle().manifest, HAPPY))
        assert ["finished"] == [event["state"] for event in served.events(rollout.id)]

    def test_a_stop_is_answered_with_the_rollout(self, served: Served) -> None:
        """Without a body."""
        publish(served)
        served.fleet.enroll("press-1")
        rollout = served.fleet.roll_out("double", "1.0.0")
        response = served.api.post(f"/rollouts/{rollout.id}/stop", headers={"Content-Type": "application/json"})
        assert "stopped" == parse(response, Rollout).state  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            (b"{", 400, "malformed"),
            (b"[]", 400, "malformed"),
            (b'{"model": 1, "version": "1.0.0"}', 400, "malformed"),
            (b'{"model": "double"}', 400, "malformed"),
            (b'{"model": "double", "version": "1.0.0", "to": "all"}', 400, "malformed"),
            (b'{"model": "double", "version": "one"}', 400, "bad_identifier"),
            (b'{"model": "../x", "version": "1.0.0"}', 400, "bad_identifier"),
            (b'{"model": "double", "version": "1.0.0", "to": ["nobody"]}', 404, "not_found"),
            (b'{"model": "double", "version": "1.0.0", "to": []}', 400, "malformed"),
            (b'{"model": "double", "version": "1.0.0"}', 422, "refused"),
            (b"\xff\xfe", 400, "malformed"),
            (b'"' + b"x" * (2 << 20) + b'"', 413, "limit_exceeded"),
        ],
    )
    def test_a_bad_request_gets_a_problem(self, shared: Served, body: bytes, status: int, code: str) -> None:
        """With a stable code, and a sentence that says what was expected."""
        response = shared.api.post("/rollouts", content=body, headers={"Content-Type": "application/json"})
        assert problem(response, status, code).detail


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("DELETE", "/rollouts", 405, "method_not_allowed"),
        ("GET", "/rollouts?limit=x", 400, "malformed"),
        ("GET", "/rollouts?limit=0", 400, "malformed"),
        ("GET", "/rollouts/none", 404, "not_found"),
        ("GET", "/rollouts/none/events", 404, "not_found"),
        ("POST", "/rollouts/none/stop", 404, "not_found"),
        ("GET", "/devices/none", 404, "not_found"),
        ("GET", "/devices?to=none", 404, "not_found"),
        ("GET", "/devices/none/explain", 404, "not_found"),
        ("GET", "/releases?model=none", 404, "not_found"),
        ("GET", "/releases/none/1.0.0", 404, "not_found"),
    ],
)
def test_every_error_is_a_problem(shared: Served, method: str, path: str, status: int, code: str) -> None:
    """Unknown paths, wrong methods, bad parameters, unknown things."""
    problem(shared.api.request(method, path), status, code)


def test_devices_are_listed_by_what_names_them(served: Served) -> None:
    """`to` may be given more than once."""
    for name, group in (("press-1", "line-1"), ("press-2", "line-2"), ("press-3", "line-2")):
        served.fleet.enroll(name, group)
    named = served.api.get("/devices", params={"to": ["line-2", "press-1"]}).json()
    assert ["press-1", "press-2", "press-3"] == [device["id"] for device in named]
    assert 3 == len(served.api.get("/devices").json())
    regrouped = served.api.put("/devices/press-1/groups", json={"groups": ["b", "a"]}).json()
    assert ["a", "b"] == regrouped["groups"]
    assert regrouped == served.api.get("/devices/press-1").json()


def test_queries_are_answered(served: Served) -> None:
    """Named ones with their SQL, and one's own."""
    named = parse(served.api.get("/queries"), list[NamedQuery])
    assert "fleet-status" in [query.name for query in named]  # type: ignore[attr-defined]
    served.fleet.enroll("press-1")
    result = parse(served.api.post("/query", json={"name": "fleet-status"}), QueryResult)
    assert "press-1" == result.rows[0][0]  # type: ignore[attr-defined]
    problem(served.api.post("/query", json={"sql": "SELECT * FROM invites"}), 422, "refused")
    problem(served.api.post("/query", json={}), 400, "malformed")


def test_every_command_is_audited(served: Served) -> None:
    """Each with an id of its request; reading and planning are not."""
    publish(served)
    served.api.post("/invites", json={})
    served.fleet.enroll("press-1")
    rollout = served.api.post("/rollouts", json={"model": "double", "version": "1.0.0"}).json()
    served.api.post(f"/rollouts/{rollout['id']}/stop")
    served.api.put("/devices/press-1/groups", json={"groups": []})
    served.api.post("/releases/double/1.0.0/yank", json={"reason": "x"})
    with served.fleet.core.store.read() as session:
        rows = list(session.scalars(select(AuditRow)))
    assert {
        "file.put",
        "targets.put",
        "device.invite",
        "device.enroll",
        "rollout.start",
        "rollout.stop",
        "device.groups",
        "release.yank",
    } == {row.action for row in rows}
    ids = [row.request_id for row in rows if row.request_id != "test"]
    assert len(set(ids)) == len(ids)


def test_the_service_describes_itself(shared: Served) -> None:
    """Version, addresses, connection."""
    assert "fleet" == parse(shared.api.get("/info"), Info).topic_prefix  # type: ignore[attr-defined]


def until(condition, timeout_s: float = 20) -> None:  # type: ignore[no-untyped-def]
    """Wait for a condition."""
    done = threading.Event()
    for _ in range(int(timeout_s / 0.02)):
        if condition():
            return
        done.wait(0.02)
    raise AssertionError("it did not happen in time")
