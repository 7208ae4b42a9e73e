"""Errors over HTTP: every one is `application/problem+json` (RFC 9457), with a stable code and the next thing to do."""

import http
import logging
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap

from controller.api.schema import Problem
from controller.errors import BrokerError, ConflictError, ControllerError, NotFoundError, RefusedError
from controller.store.faults import DiskFault, disk_fault
from protocol.errors import LimitExceededError, ProtocolError, TrustError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NotFoundError, 404),
    (ConflictError, 409),
    (RefusedError, 422),
    (BrokerError, 503),
    (ControllerError, 500),
    (LimitExceededError, 413),
    (TrustError, 422),
    (ProtocolError, 400),
)
_CODES = {401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "limit_exceeded"}


class UnauthorizedError(ControllerError):
    """The request carries no valid token."""

    code = "unauthorized"


def problem_of(error: Exception) -> Problem:
    """Return the problem that `error` means to a client."""
    if isinstance(error, UnauthorizedError):
        return _problem(401, error.code, str(error), error.hint)
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return _problem(status, error.code, str(error), getattr(error, "hint", ""))  # type: ignore[attr-defined]
    if isinstance(error, HTTPException):
        code = _CODES.get(error.status_code, "malformed" if error.status_code < 500 else "internal")
        return _problem(error.status_code, code, _detail(error), "see /schema for what the API takes")
    if (fault := disk_fault(error)) is not None:
        return _disk_problem(fault)
    return _problem(500, "internal", "the service failed at this request; its log says why", "try again")


def _disk_problem(fault: DiskFault) -> Problem:
    if fault.takes_nothing:
        hint = "nothing was changed: make room on the disk of the service, or let it write there, then try again"
        return _problem(507, "disk", f"the service cannot store this: {fault.words}", hint)
    hint = "mend the disk of the service (its kernel's log says more); see what was changed before you try again"
    return _problem(500, "disk", f"the disk of the service fails: {fault.words}", hint)


def render(problem: Problem, headers: dict[str, str] | None = None) -> Response[bytes]:
    """Return `problem` as a response."""
    return Response(
        msgspec.json.encode(problem), status_code=problem.status, media_type=MEDIA_TYPE, headers=headers or {}
    )


def handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer a request that failed."""
    problem = problem_of(error)
    if problem.status >= 500:
        _log(request, error, problem)
    headers = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else {}
    if isinstance(error, HTTPException) and error.headers:
        headers.update(error.headers)
    return render(problem, headers)


def _log(request: Request[Any, Any, Any], error: Exception, problem: Problem) -> None:
    """Tell the operator why a request failed; a mistake of ours with its place, which no client gets to see."""
    is_bug = problem.code == "internal"
    reason = f"{type(error).__name__}: {error}" if is_bug else problem.detail
    about = {"method": request.method, "path": request.url.path, "reason": reason[:1_000]}
    log.error("request failed", exc_info=error if is_bug else None, extra=about)


HANDLERS: ExceptionHandlersMap = {Exception: handle, HTTPException: handle}


def _problem(status: int, code: str, detail: str, hint: str) -> Problem:
    return Problem(status=status, code=code, title=http.HTTPStatus(status).phrase, detail=detail, hint=hint)


def _detail(error: HTTPException) -> str:
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        return "; ".join(f"{e.get('key') or e.get('source', 'body')}: {e.get('message')}" for e in error.extra)[:1_000]
    return error.detail[:1_000]
