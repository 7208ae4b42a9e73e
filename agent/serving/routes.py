"""The local API without its sockets: a request in, a reply out.

The Open Inference Protocol, version 2, and `/v1/status` and `/v1/models` for our own tools. Requests are hostile:
a body is read only when its length fits the model that it is for, and there is room for it.
"""

import re
import time
from collections.abc import Callable
from typing import Final, Protocol
from urllib.parse import unquote

import msgspec

from agent.errors import AgentError
from agent.host import InferResult, ModelHost, UnknownModelError
from agent.runtime.errors import DeadlineError, FaultError, InputError, ModelClosedError, ModelError
from agent.serving import HEADER_LENGTH
from agent.serving.gate import Gate, OverloadedError, RequestTimeoutError
from agent.serving.openinference import (
    EXTENSIONS,
    ErrorResponse,
    FaultReport,
    InferRequest,
    describe,
    encode_response,
    input_tensors,
    max_request_bytes,
    parse_request,
    requested_outputs,
)
from agent.serving.sequences import SequenceError, Sequences
from protocol.errors import LimitExceededError, MalformedError
from protocol.manifest import Manifest

SERVER_NAME: Final = "fleet-agent"
REQUEST_TIMEOUT_S: Final = 30.0
"""How long a request waits for its turn at most; its parameter `timeout`, in microseconds, may say less."""
REQUEST_TIMEOUT_US: Final = round(REQUEST_TIMEOUT_S * 1e6)
RETRY_AFTER_S: Final = 1
_MODEL: Final = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<action>/infer|/ready|)")


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What goes back to the caller."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = {}


class RequestBody(Protocol):
    """A body that may not have come yet."""

    def most_bytes(self, limit_bytes: int) -> int:
        """Return how many bytes `read` returns at most."""

    def read(self, limit_bytes: int) -> bytes:
        """Return all of it; raises LimitExceededError when it is larger than `limit_bytes`."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller asks."""

    method: str
    path: str
    body: RequestBody
    header_length: str | None = None
    """The header that says where binary tensors begin."""
    stream: str = ""
    """The sequence of a request that names none and cannot be told to begin one."""


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request to run a model, with the tensors behind its JSON."""

    request: InferRequest
    binary: memoryview
    until_s: float
    version: str | None
    """The version that the path names."""
    stream: str


class NoSuchPathError(AgentError):
    """There is nothing at that path."""

    code = "no_such_path"


class WrongMethodError(AgentError):
    """There is something at that path, for the method `allowed`."""

    code = "wrong_method"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class Routes:
    """Answers requests from the resident models and the daemon's status."""

    def __init__(
        self, host: ModelHost, status: Callable[[], msgspec.Struct], server_version: str, gate: Gate | None = None
    ) -> None:
        self._host = host
        self._gate = gate or Gate()
        self._sequences = Sequences(host)
        self._pages: dict[str, Callable[[], Reply]] = {
            "/v2": lambda: _json({"name": SERVER_NAME, "version": server_version, "extensions": EXTENSIONS}),
            "/v2/health/live": lambda: _json({"live": True}),
            "/v2/health/ready": self._ready,
            "/v1/status": lambda: _json(status()),
            "/v1/models": lambda: _json({"models": [describe(m) for _, m in sorted(host.manifests().items())]}),
        }

    def answer(self, request: Request) -> Reply:
        """Return the reply to `request`; errors that a caller can cause or must know of are replies too."""
        try:
            return self._dispatch(request)
        except UnknownModelError as error:
            # Nothing at all is active on a device that waits for its first assignment: that will pass.
            return error_reply(404 if self._host.manifests() else 503, error)
        except NoSuchPathError as error:
            return error_reply(404, error)
        except WrongMethodError as error:
            return msgspec.structs.replace(error_reply(405, error), headers={"Allow": error.allowed})
        except SequenceError as error:
            return error_reply(409, error)
        except OverloadedError as error:
            return msgspec.structs.replace(error_reply(429, error), headers={"Retry-After": str(RETRY_AFTER_S)})
        except LimitExceededError as error:
            return error_reply(413, error)
        except (MalformedError, InputError) as error:
            return error_reply(400, error)
        except (DeadlineError, RequestTimeoutError) as error:
            return error_reply(504, error)
        except ModelClosedError as error:
            return error_reply(503, error)  # the model is being removed, or the agent stops
        except ModelError as error:
            return error_reply(500, error)

    def _dispatch(self, request: Request) -> Reply:
        path = request.path.partition("?")[0]
        page = self._pages.get(path.rstrip("/"))
        match = _MODEL.fullmatch(path)
        if page is None and match is None:
            raise NoSuchPathError(
                f"there is nothing at {path[:200]!r}: models are at /v2/models/NAME, the status at /v1/status; "
                f"of the protocol's extensions there are {', '.join(EXTENSIONS)}"
            )
        expected = "POST" if match and match["action"] == "/infer" else "GET"
        if request.method != expected:
            raise WrongMethodError(f"expected {expected} for {path[:200]!r}, got {request.method}", expected)
        if page is not None:
            return page()
        assert match is not None
        version = match["version"] and unquote(match["version"])
        manifest = self._manifest(unquote(match["model"]), version)
        if match["action"] == "/infer":
            return self._infer(request, manifest, version)
        return _json({"name": manifest.model, "ready": True} if match["action"] else describe(manifest))

    def _ready(self) -> Reply:
        is_ready = bool(self._host.manifests())
        return _json({"ready": is_ready}, status=200 if is_ready else 503)

    def _infer(self, request: Request, manifest: Manifest, version: str | None) -> Reply:
        until_s = time.monotonic() + REQUEST_TIMEOUT_S
        limit = max_request_bytes(manifest)
        with self._gate.room(request.body.most_bytes(limit)):
            body = request.body.read(limit)
            asked, binary = parse_request(body, _header_length(request.header_length))
            if asked.parameters.timeout is not None:
                until_s = min(until_s, time.monotonic() + min(asked.parameters.timeout, REQUEST_TIMEOUT_US) / 1e6)
            results = self._run(
                _Asked(request=asked, binary=binary, until_s=until_s, version=version, stream=request.stream), manifest
            )
        answered = results[0].manifest
        outputs = [b"".join(parts) for parts in zip(*(result.outputs for result in results), strict=True)]
        wanted = requested_outputs(asked, answered.outputs)
        nan_outputs = {name for result in results for name in result.nan_outputs}
        reply, json_length = encode_response(answered, outputs, wanted, asked.id, nan_outputs)
        if json_length is None:
            return Reply(status=200, body=reply)
        return Reply(
            status=200,
            body=reply,
            content_type="application/octet-stream",
            headers={HEADER_LENGTH: str(json_length)},
        )

    def _run(self, asked: _Asked, manifest: Manifest) -> list[InferResult]:
        """Run the model on each item of what was asked: on one release, whatever is swapped in meanwhile."""
        while True:
            requested_outputs(asked.request, manifest.outputs)
            try:
                items = input_tensors(asked.request, asked.binary, manifest)
                with self._gate.turn(manifest.model, asked.until_s):
                    results = self._call(manifest, items, asked)
            except InputError:
                newer = self._manifest(manifest.model, asked.version)
                if newer.inputs == manifest.inputs:
                    raise
            else:
                newer = results[-1].manifest
                _check_version(newer, asked.version)
                if newer.inputs == manifest.inputs and all(result.manifest is newer for result in results):
                    return results
            manifest = newer

    def _call(self, manifest: Manifest, items: list[list[bytes]], asked: _Asked) -> list[InferResult]:
        active = self._manifest(manifest.model, asked.version)  # perhaps swapped in while the call waited for its turn
        if active.inputs != manifest.inputs:
            raise InputError(f"{manifest.model}: {active.version} takes other inputs, and was swapped in")
        if active.stateful:
            return self._sequences.run(manifest.model, items, asked.request.parameters, asked.stream)
        return [self._host.infer(manifest.model, item) for item in items]

    def _manifest(self, name: str, version: str | None) -> Manifest:
        manifest = self._host.manifest(name)
        _check_version(manifest, version)
        return manifest


def error_reply(status: int, error: Exception) -> Reply:
    """Return an error in the form of the protocol."""
    fault = None
    if isinstance(error, FaultError):
        fault = FaultReport(
            kind=error.kind,
            layer=error.function,
            offset=error.offset,
            release=error.release,
            input_sha256=error.input_digest,
            capture=error.capture,
        )
    return _json(ErrorResponse(error=str(error), code=getattr(error, "code", "internal"), fault=fault), status=status)


def error_text(status: int, message: str, code: str) -> Reply:
    """Return an error in the form of the protocol."""
    return _json(ErrorResponse(error=message, code=code), status=status)


def _check_version(manifest: Manifest, version: str | None) -> None:
    """Raise UnknownModelError unless `version` is the active one, or none is asked for."""
    if version not in (None, manifest.version):
        raise UnknownModelError(
            f"expected version {manifest.version} of {manifest.model}, which is active, got {str(version)[:80]!r}"
        )


def _json(value: object, status: int = 200) -> Reply:
    return Reply(status=status, body=msgspec.json.encode(value))


def _header_length(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise MalformedError(f"expected {HEADER_LENGTH} as a number, got {text[:40]!r}")
    return int(text)
