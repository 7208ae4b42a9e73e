"""The operator API, called: one method for each path of `controller.api.schema`.

Owns the translation of HTTP and its failures into typed values and ControllerError. It holds the token and never
shows it. Requests that change nothing twice are tried again when the service restarts under them.
"""

import uuid
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from controller.api import schema
from controller.errors import ConflictError, ControllerError, NotFoundError, RefusedError
from protocol.identifiers import Digest

T = TypeVar("T")

_KINDS: dict[int, type[ControllerError]] = {HTTPStatus.NOT_FOUND: NotFoundError, HTTPStatus.CONFLICT: ConflictError}
_JSON = {"Content-Type": "application/json"}
_BINARY = {"Content-Type": "application/octet-stream"}


class ServiceNotRunningError(ControllerError):
    """Nothing answers at the address of the service."""

    code = "service_not_running"


class ServiceLostError(ControllerError):
    """The service went away in the middle of an answer."""

    code = "service_lost"


class ServiceSilentError(ServiceLostError):
    """Nothing came for as long as we were ready to wait."""

    code = "service_silent"


class TokenError(ControllerError):
    """The service does not accept the token."""

    code = "bad_token"


class FleetClient:
    """One connection to the service; close it, or use it as a context manager."""

    def __init__(self, api_url: str, token: str, *, timeout_s: float = 30.0) -> None:
        self.api_url = api_url.rstrip("/")
        self._http = httpx.Client(
            base_url=f"{self.api_url}/v1/",
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout_s,
            transport=httpx.HTTPTransport(retries=2),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a second time does nothing."""
        self._http.close()

    def info(self) -> schema.Info:
        """Return what the service is and how it fares."""
        return self._get(schema.Info, "info")

    def targets(self) -> bytes:
        """Return the image repository's targets metadata, exactly as signed."""
        return self._send("GET", "tuf/targets").content

    def put_targets(self, signed: bytes) -> schema.TargetsAccepted:
        """Put newly signed targets metadata in force; raises ConflictError when another came first."""
        return self._parse(schema.TargetsAccepted, self._send("PUT", "tuf/targets", content=signed, headers=_JSON))

    def recover_targets(self, signed: bytes) -> schema.TargetsRecovered:
        """Put targets metadata that was in force before in force again; ConflictError when the service has newer."""
        sent = self._send("POST", "tuf/targets/recover", content=signed, headers=_JSON)
        return self._parse(schema.TargetsRecovered, sent)

    def has_file(self, digest: Digest) -> bool:
        """Return whether the service has the file already."""
        try:
            self._send("HEAD", _path("files", digest))
        except NotFoundError:
            return False
        return True

    def put_file(self, digest: Digest, data: bytes) -> None:
        """Hand over one file of a bundle."""
        self._send("PUT", _path("files", digest), content=data, headers=_BINARY)

    def models(self) -> list[schema.Model]:
        """Return every model."""
        return self._get(list[schema.Model], "models")

    def releases(self, model: str | None = None) -> list[schema.Release]:
        """Return every release, or those of one model."""
        return self._get(list[schema.Release], "releases", params=_given(model=model))

    def release(self, model: str, version: str) -> schema.Release:
        """Return one release; raises NotFoundError."""
        return self._get(schema.Release, _path("releases", model, version))

    def yank(self, model: str, version: str, reason: str) -> schema.Release:
        """Keep a release from every further deployment."""
        path = _path("releases", model, version, "yank")
        return self._post(schema.Release, path, schema.YankRequest(reason=reason))

    def devices(self, to: Sequence[str] = ()) -> list[schema.Device]:
        """Return every device, or those that `to` names: `all`, groups, device ids."""
        return self._get(list[schema.Device], "devices", params={"to": list(to)} if to else None)

    def device(self, device_id: str) -> schema.Device:
        """Return one device; raises NotFoundError."""
        return self._get(schema.Device, _path("devices", device_id))

    def set_groups(self, device_id: str, groups: Sequence[str]) -> schema.Device:
        """Make `groups` the groups of the device."""
        body = msgspec.json.encode(schema.GroupsRequest(groups=tuple(groups)))
        path = _path("devices", device_id, "groups")
        return self._parse(schema.Device, self._send("PUT", path, content=body, headers=_JSON))

    def explain(self, device_id: str, model: str | None = None) -> schema.Explanation:
        """Return why the device runs what it runs."""
        return self._get(schema.Explanation, _path("devices", device_id, "explain"), params=_given(model=model))

    def invite(self, request: schema.InviteRequest) -> schema.InviteResponse:
        """Return a single-use invite."""
        return self._post(schema.InviteResponse, "invites", request)

    def plan(self, request: schema.RolloutRequest) -> schema.Plan:
        """Return what a rollout would do; changes nothing."""
        return self._post(schema.Plan, "rollouts", msgspec.structs.replace(request, is_dry_run=True))

    def start_rollout(self, request: schema.RolloutRequest) -> schema.Rollout:
        """Start a rollout, once, however often the request has to be sent."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        body = msgspec.structs.replace(request, is_dry_run=False)
        try:
            return self._post(schema.Rollout, "rollouts", body, headers)
        except ServiceLostError:
            return self._post(schema.Rollout, "rollouts", body, headers)

    def rollouts(self, model: str | None = None, limit: int = 50) -> list[schema.Rollout]:
        """Return the latest rollouts, the newest first."""
        return self._get(list[schema.Rollout], "rollouts", params={**_given(model=model), "limit": limit})

    def rollout(self, rollout_id: str) -> schema.Rollout:
        """Return one rollout with its deployments; raises NotFoundError."""
        return self._get(schema.Rollout, _path("rollouts", rollout_id))

    def stop_rollout(self, rollout_id: str) -> schema.Rollout:
        """Stop a rollout: what is not active yet is given up."""
        return self._post(schema.Rollout, _path("rollouts", rollout_id, "stop"), None)

    def rollout_events(self, rollout_id: str, *, silence_s: float) -> Iterator[schema.Rollout | None]:
        """Yield the rollout now and after every change, and None when the service only says that it is alive.

        Raises:
            ServiceSilentError: nothing came for `silence_s`. Ask again to go on.
            ServiceLostError: the stream broke. Ask again to go on.
        """
        url = _path("rollouts", rollout_id, "events")
        timeout = httpx.Timeout(self._http.timeout.connect, read=silence_s)
        try:
            with self._http.stream("GET", url, timeout=timeout, headers={"Accept": "text/event-stream"}) as response:
                if response.is_error:
                    response.read()
                    raise _problem(response)
                for data in _event_data(response.iter_lines()):
                    yield None if data is None else _decode(schema.Rollout, data)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def queries(self) -> list[schema.NamedQuery]:
        """Return the dashboard queries."""
        return self._get(list[schema.NamedQuery], "queries")

    def query(self, request: schema.QueryRequest) -> schema.QueryResult:
        """Return the rows of a named query, or of SQL over the documented views."""
        return self._post(schema.QueryResult, "query", request)

    def _get(self, kind: type[T], path: str, params: dict[str, Any] | None = None) -> T:
        return self._parse(kind, self._send("GET", path, params=params))

    def _post(self, kind: type[T], path: str, body: object, headers: dict[str, str] | None = None) -> T:
        content = b"" if body is None else msgspec.json.encode(body)
        return self._parse(kind, self._send("POST", path, content=content, headers={**_JSON, **(headers or {})}))

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **request)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _problem(response)
        return response

    def _parse(self, kind: type[T], response: httpx.Response) -> T:
        return _decode(kind, response.content)

    def _unreachable(self, error: httpx.TransportError) -> ControllerError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ServiceNotRunningError(
                f"no service answers at {self.api_url}",
                hint="start it with `fleetctl up` (or `fleetctl serve`), or name another with --api-url",
            )
        kind = ServiceSilentError if isinstance(error, httpx.ReadTimeout) else ServiceLostError
        return kind(
            f"the service at {self.api_url} went away: {error or type(error).__name__}",
            hint="see whether `fleetctl up` still runs, then try again",
        )


def _given(**params: str | None) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _path(kind: str, *names: str) -> str:
    """Return the path of one thing; raises NotFoundError for a name that would be another path."""
    for name in names:
        if name in {"", ".", ".."} or "/" in name:
            raise NotFoundError(f"nothing has the name {name[:64]!r}", hint=f"give a name as {kind} are listed")
    return "/".join((kind, *(quote(name, safe="") for name in names)))


def _decode(kind: type[T], data: bytes | str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ControllerError(
            f"the service answered something that is not the API of wasmfleet: {error}",
            hint="see whether --api-url names the service, and whether it has the version of fleetctl",
        ) from error


def _problem(response: httpx.Response) -> ControllerError:
    """Return the error that the service reports, as the class that its status means."""
    status = response.status_code
    try:
        problem = msgspec.json.decode(response.content, type=schema.Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        phrase = f"{status} {response.reason_phrase}"
        problem = schema.Problem(status=status, code="http", title=phrase, detail=f"the service answered {phrase}")
    if status == HTTPStatus.UNAUTHORIZED:
        hint = problem.hint or "give the token of the operator's folder with --token-file, or its fleet with --home"
        return TokenError(problem.detail, hint=hint)
    fallback = RefusedError if status < HTTPStatus.INTERNAL_SERVER_ERROR else ControllerError
    error = _KINDS.get(status, fallback)(problem.detail, hint=problem.hint)
    error.code = problem.code
    return error


def _event_data(lines: Iterator[str]) -> Iterator[str | None]:
    """Yield the data of each event, None for a comment.

    Source: HTML Living Standard, section 9.2.6 (interpreting an event stream).
    """
    data: list[str] = []
    for line in lines:
        if line.startswith(":"):
            yield None
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []
