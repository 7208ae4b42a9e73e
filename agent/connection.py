"""One connection of the local API: HTTP/1.1 requests in, replies out, until either side has enough."""

import http.server
import logging
import re
import socket
from http import HTTPStatus
from typing import Any, Final

from agent.openinference import HEADER_LENGTH
from agent.routes import SERVER_NAME, Reply, Request, Routes, error_text

IDLE_TIMEOUT_S: Final = 60
MAX_DRAIN_BYTES: Final = 16 * 1024 * 1024
"""How much of an unwanted body is read and thrown away, so that its sender gets to read why."""
_BUSY_BODY: Final = b'{"error":"too many connections: try again in a moment","code":"overloaded"}'
BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Retry-After: 1\r\nContent-Length: %d\r\n\r\n" % len(_BUSY_BODY)
) + _BUSY_BODY

_log = logging.getLogger(__name__)


def serve_connection(connection: socket.socket, routes: Routes) -> None:
    """Answer the requests on `connection` until it ends."""
    try:
        _Handler(connection, routes)
    except (ConnectionError, TimeoutError):
        pass  # the caller went away; nobody is left to tell
    except Exception:  # noqa: BLE001 - one connection must not take the service down
        _log.exception("a connection of the local API failed")


class _BodyError(Exception):
    """The body cannot be read, so that nothing behind it can be either."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(http.server.BaseHTTPRequestHandler):
    """The standard library's parser of requests, with replies of our own form."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # replies have a head even when the request line has no version
    timeout = IDLE_TIMEOUT_S
    wbufsize = -1  # a reply leaves in one piece

    def __init__(self, connection: socket.socket, routes: Routes) -> None:
        self._routes = routes
        self._unread_bytes = 0
        super().__init__(connection, "", None)  # type: ignore[arg-type] # the server is never used

    def do_GET(self) -> None:
        """Answer a request that has no effect."""
        self._answer()

    def do_POST(self) -> None:
        """Answer a request with a body."""
        self._answer()

    def _answer(self) -> None:
        try:
            self._unread_bytes = self._body_bytes()
        except _BodyError as error:
            self.close_connection = True
            self._reply(error_text(error.status, str(error), "bad_request"))
            return
        request = Request(
            method=self.command,
            path=self.path,
            content_length=self._unread_bytes,
            read=self._read,
            header_length=self.headers.get(HEADER_LENGTH),
        )
        try:
            reply = self._routes.answer(request)
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 - one request must not take the service down
            _log.exception("a request of the local API failed")
            reply = error_text(500, "internal error: see the agent's log", "internal")
        self._drain()
        self._reply(reply)

    def _body_bytes(self) -> int:
        """Return the length of the body; raises _BodyError when there is no telling."""
        if "Transfer-Encoding" in self.headers:
            raise _BodyError(HTTPStatus.NOT_IMPLEMENTED, "expected a Content-Length, got a Transfer-Encoding")
        if self.headers.get("Content-Encoding", "identity") != "identity":
            raise _BodyError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected a body that is not compressed")
        lengths = self.headers.get_all("Content-Length", [])
        if not lengths and self.command == "POST":
            raise _BodyError(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
        if len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,15}", lengths[0] if lengths else "0"):
            raise _BodyError(HTTPStatus.BAD_REQUEST, "expected one Content-Length, a number")
        return int(lengths[0]) if lengths else 0

    def _read(self, size_bytes: int) -> bytes:
        data = self.rfile.read(min(size_bytes, self._unread_bytes))
        self._unread_bytes -= len(data)
        if len(data) < size_bytes:
            raise ConnectionAbortedError("the caller hung up in the middle of a request")
        return data

    def _drain(self) -> None:
        """Throw the rest of the body away; what comes behind it is the next request."""
        if self._unread_bytes > MAX_DRAIN_BYTES:
            self.close_connection = True
        while self._unread_bytes and not self.close_connection:
            self._read(min(self._unread_bytes, 65_536))

    def _reply(self, reply: Reply) -> None:
        self.send_response_only(reply.status)
        self.send_header("Server", SERVER_NAME)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body)
        self.wfile.flush()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Reply to what the parser of requests refuses."""
        self.close_connection = True
        self._reply(error_text(code, explain or message or HTTPStatus(code).phrase, "bad_request"))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the standard library's
        """Say nothing: what was asked and answered is counted, not logged."""
