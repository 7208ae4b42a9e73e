"""Who may use the operator API: whoever holds the token. Everything below `/v1` asks for it."""

import hmac
import secrets

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from controller.api.problems import MEDIA_TYPE, UnauthorizedError, problem_of
from controller.store.audit import Actor

OPERATOR = "operator"


class TokenCheck:
    """ASGI middleware around the whole application: without the token not even a path is looked up."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] != ScopeType.HTTP or not scope["path"].startswith("/v1") or self._is_allowed(scope):
            await self._app(scope, receive, send)
            return
        error = UnauthorizedError(
            "expected the header `Authorization: Bearer` with the token of this fleet",
            hint="it is in operator/api.token of the fleet's folder",
        )
        await _send_problem(send, error)

    def _is_allowed(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if len(given) != 1:
            return False
        kind, _, token = given[0].partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)


async def _send_problem(send: Send, error: UnauthorizedError) -> None:
    body = msgspec.json.encode(problem_of(error))
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b"Bearer"),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def new_actor(name: str = OPERATOR) -> Actor:
    """Return who commands in this request, with an id to find it again in the audit log."""
    return Actor(name=name, request_id=secrets.token_hex(8))
