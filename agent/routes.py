"""The local API without its sockets: a request in, a reply out.

The Open Inference Protocol, version 2, and `/v1/status` and `/v1/models` for our own tools. Requests are hostile:
a body is read only when its length fits the model that it is for.
"""

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

import msgspec

from agent.errors import AgentError
from agent.host import InferResult, ModelHost, UnknownModelError
from agent.openinference import (
    EXTENSIONS,
    HEADER_LENGTH,
    ErrorResponse,
    InferRequest,
    describe,
    encode_response,
    input_tensors,
    max_request_bytes,
    parse_request,
    requested_outputs,
)
from agent.runtime.errors import DeadlineError, InputError, ModelError
from protocol.errors import LimitExceededError, MalformedError
from protocol.manifest import Manifest

SERVER_NAME: Final = "fleet-agent"
_MODEL: Final = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<action>/infer|/ready|)")


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What goes back to the caller."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = {}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller asks."""

    method: str
    path: str
    content_length: int
    read: Callable[[int], bytes]
    """Return so many bytes of the body."""
    header_length: str | None = None
    """The header that says where binary tensors begin."""


class NoSuchPathError(AgentError):
    """There is nothing at that path, or not for that method."""

    code = "no_such_path"


class Routes:
    """Answers requests from the resident models and the daemon's status."""

    def __init__(self, host: ModelHost, status: Callable[[], msgspec.Struct], server_version: str) -> None:
        self._host = host
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
        except LimitExceededError as error:
            return error_reply(413, error)
        except (MalformedError, InputError) as error:
            return error_reply(400, error)
        except DeadlineError as error:
            return error_reply(504, error)
        except ModelError as error:
            return error_reply(500, error)

    def _dispatch(self, request: Request) -> Reply:
        path = request.path.partition("?")[0]
        page = self._pages.get(path.rstrip("/"))
        match = _MODEL.fullmatch(path)
        if page is None and match is None:
            raise NoSuchPathError(
                f"there is nothing at {path[:200]!r}: models are at /v2/models/NAME, the status at /v1/status"
            )
        expected = "POST" if match and match["action"] == "/infer" else "GET"
        if request.method != expected:
            raise NoSuchPathError(f"expected {expected} for {path[:200]!r}, got {request.method}")
        if page is not None:
            return page()
        assert match is not None
        manifest = self._manifest(unquote(match["model"]), match["version"])
        if match["action"] == "/infer":
            return self._infer(request, manifest)
        return _json({"name": manifest.model, "ready": True} if match["action"] else describe(manifest))

    def _ready(self) -> Reply:
        is_ready = bool(self._host.manifests())
        return _json({"ready": is_ready}, status=200 if is_ready else 503)

    def _infer(self, request: Request, manifest: Manifest) -> Reply:
        limit = max_request_bytes(manifest)
        if request.content_length > limit:
            raise LimitExceededError(
                f"expected a request of at most {limit:,} bytes for {manifest.model} {manifest.version}, "
                f"got {request.content_length:,}"
            )
        header_length = _header_length(request.header_length)
        asked, binary = parse_request(request.read(request.content_length), header_length)
        result = self._run(asked, binary, manifest)
        wanted = requested_outputs(asked, result.manifest.outputs)
        body, json_length = encode_response(result.manifest, result.outputs, wanted, asked.id)
        if json_length is None:
            return Reply(status=200, body=body)
        return Reply(
            status=200,
            body=body,
            content_type="application/octet-stream",
            headers={HEADER_LENGTH: str(json_length)},
        )

    def _run(self, asked: InferRequest, binary: memoryview, manifest: Manifest) -> InferResult:
        """Run the model on what was asked, again if a release with other inputs was swapped in meanwhile."""
        while True:
            requested_outputs(asked, manifest.outputs)
            try:
                result = self._host.infer(manifest.model, input_tensors(asked, binary, manifest.inputs))
            except InputError:
                newer = self._host.manifest(manifest.model)
                if newer.inputs == manifest.inputs:
                    raise
            else:
                newer = result.manifest
                if newer.inputs == manifest.inputs:
                    return result
            manifest = newer

    def _manifest(self, name: str, version: str | None) -> Manifest:
        manifest = self._host.manifest(name)
        if version not in (None, manifest.version):
            raise UnknownModelError(f"expected version {manifest.version} of {name}, which is active, got {version!r}")
        return manifest


def error_reply(status: int, error: Exception) -> Reply:
    """Return an error in the form of the protocol."""
    return error_text(status, str(error), getattr(error, "code", "internal"))


def error_text(status: int, message: str, code: str) -> Reply:
    """Return an error in the form of the protocol."""
    return _json(ErrorResponse(error=message, code=code), status=status)


def _json(value: object, status: int = 200) -> Reply:
    return Reply(status=status, body=msgspec.json.encode(value))


def _header_length(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise MalformedError(f"expected {HEADER_LENGTH} as a number, got {text[:40]!r}")
    return int(text)
