"""One connection of the local API: HTTP/1.1 requests in, replies out, until either side has enough."""

import contextlib
import http.server
import io
import logging
import re
import socket
import time
from http import HTTPStatus
from typing import Any, Final

from agent.serving import HEADER_LENGTH
from agent.serving.body import MAX_DRAIN_BYTES, Body, PatientSocket, RequestError
from agent.serving.routes import SERVER_NAME, Reply, Request, Routes, error_text

IDLE_TIMEOUT_S: Final = 60.0
HEAD_TIMEOUT_S: Final = 10.0
"""How long the line and the headers of a request may take from their first byte on."""
REPLY_TIMEOUT_S: Final = 30.0
"""How long a caller may take to read a reply."""
LINGER_S: Final = 1.0
"""How long a caller may go on sending what nobody wants: hung up on at once, it would not get to read why."""
MAX_MESSAGE_CHARACTERS: Final = 300
MAX_HEAD_BYTES: Final = 128 * 1024
BUFFER_BYTES: Final = 16 * 1024
"""A small request is read in one piece: each read gives the interpreter lock away."""
_BUSY_BODY: Final = b'{"error":"too many connections: try again in a moment","code":"overloaded"}'
BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Retry-After: 1\r\nContent-Length: %d\r\n\r\n" % len(_BUSY_BODY)
) + _BUSY_BODY
_METHODS: Final = ("GET", "HEAD", "POST")
_CODINGS: Final = ("identity", "gzip", "deflate")
_ABSOLUTE: Final = re.compile(r"http://(?P<host>[^/?]*)(?P<path>.*)", re.IGNORECASE)
_HERE: Final = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)

_log = logging.getLogger(__name__)


class Conversation:
    """A connection as the service sees it: whether it waits for a request, and that it should not wait for more."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.idle_since_s: float | None = time.monotonic()
        """None while there is something to do."""
        self.is_ending = False

    @property
    def is_tcp(self) -> bool:
        """Whether others than the owner of the agent can be at the other end, a web browser above all."""
        return self.connection.family != socket.AF_UNIX

    def end(self) -> None:
        """Let what was asked already be answered, and take nothing else."""
        self.is_ending = True
        with contextlib.suppress(OSError):  # it ended by itself
            self.connection.shutdown(socket.SHUT_RD)

    def serve(self, routes: Routes) -> None:
        """Answer the requests until the connection ends."""
        try:
            _Handler(self, routes)
        except (ConnectionError, TimeoutError):
            pass  # the caller went away; nobody is left to tell
        except Exception:  # noqa: BLE001 - one connection must not take the service down
            _log.exception("a connection of the local API failed")


class _Handler(http.server.BaseHTTPRequestHandler):
    """The standard library's parser of requests, with bounds and replies of our own form."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # replies have a head even when the request line has no version

    def __init__(self, conversation: Conversation, routes: Routes) -> None:
        self._conversation = conversation
        self._routes = routes
        self._source = PatientSocket(conversation.connection)
        self._expects_continue = False
        super().__init__(conversation.connection, "", None)  # type: ignore[arg-type] # the server is never used

    def setup(self) -> None:
        """Read and write through the bounded socket."""
        self.connection = self.request
        self.rfile = io.BufferedReader(self._source, BUFFER_BYTES)
        self.wfile = io.BufferedWriter(self._source)  # type: ignore[type-var] # gives a memoryview, too

    def handle(self) -> None:
        """Answer one request after another."""
        self.close_connection = False
        while not self.close_connection:
            self._conversation.idle_since_s = time.monotonic()
            self._source.allow(IDLE_TIMEOUT_S, MAX_HEAD_BYTES)
            if not self.rfile.peek(1):  # type: ignore[attr-defined] # it is a BufferedReader
                return
            self._conversation.idle_since_s = None
            self._source.allow(HEAD_TIMEOUT_S, MAX_HEAD_BYTES)
            try:
                self.handle_one_request()
            except RequestError as error:
                self.send_error(error.status, str(error))
            except TimeoutError:
                self.send_error(HTTPStatus.REQUEST_TIMEOUT, "expected the whole request sooner")
        self._linger()

    def handle_one_request(self) -> None:
        """Read the head of a request and answer it; raises RequestError, TimeoutError or ConnectionError."""
        self._expects_continue = False
        self.command, self.requestline, self.request_version = "", "", ""
        self.raw_requestline = self.rfile.readline(65_537)
        if len(self.raw_requestline) > 65_536:
            raise RequestError(HTTPStatus.REQUEST_URI_TOO_LONG, "expected a shorter request line")
        if not self.raw_requestline:
            self.close_connection = True
            return
        if self.parse_request():
            self._answer()

    def handle_expect_100(self) -> bool:
        """Let the caller wait until its body is wanted."""
        self._expects_continue = True
        return True

    def _answer(self) -> None:
        if self.command not in _METHODS:
            raise RequestError(HTTPStatus.NOT_IMPLEMENTED, f"expected GET or POST, got {self.command[:20]!r}")
        self._check_head()
        host, path = self._target()
        self._check_origin(host)
        body = self._body()
        method = "GET" if self.command == "HEAD" else self.command
        reply = self._reply_to(
            Request(method=method, path=path, body=body, header_length=self.headers.get(HEADER_LENGTH))
        )
        if self._conversation.is_ending or self._expects_continue or not body.drain():
            self.close_connection = True
        self._reply(reply)

    def _reply_to(self, request: Request) -> Reply:
        try:
            return self._routes.answer(request)
        except (ConnectionError, TimeoutError, RequestError):
            raise
        except Exception:  # noqa: BLE001 - one request must not take the service down
            _log.exception("a request of the local API failed")
            return error_text(500, "internal error: see the agent's log", "internal")

    def _linger(self) -> None:
        """Say that nothing follows, and throw away what the caller still sends."""
        with contextlib.suppress(OSError, RequestError):
            self.connection.shutdown(socket.SHUT_WR)
            self._source.allow(LINGER_S, MAX_DRAIN_BYTES)
            while self.rfile.read(65_536):
                pass

    def _check_head(self) -> None:
        """Refuse a head that another reader may take for something else."""
        if self.headers.defects or len(self.headers.get_all("Host", [])) > 1:
            raise RequestError(HTTPStatus.BAD_REQUEST, "expected lines of 'name: value', and one Host")

    def _target(self) -> tuple[str, str]:
        """Return host and path of what is asked for; an absolute form names both (RFC 9112, section 3.2.2)."""
        match = _ABSOLUTE.fullmatch(self.path)
        return (match["host"], match["path"]) if match else (self.headers["Host"] or "", self.path)

    def _check_origin(self, host: str) -> None:
        """Refuse what a web page on some other site makes a browser on this machine send."""
        if self._conversation.is_tcp and ("Origin" in self.headers or not _HERE.fullmatch(host)):
            raise RequestError(
                HTTPStatus.FORBIDDEN, "expected a program on this device that asks for a loopback address"
            )

    def _body(self) -> Body:
        """Return the body, unread; raises RequestError when there is no telling where it ends."""
        lengths = self.headers.get_all("Content-Length", [])
        transfer = self.headers.get_all("Transfer-Encoding", [])
        coding = ", ".join(self.headers.get_all("Content-Encoding", ["identity"])).lower()
        if coding not in _CODINGS:
            raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"expected an encoding of {', '.join(_CODINGS)}")
        if transfer:
            if lengths or self.request_version == "HTTP/1.0":
                raise RequestError(HTTPStatus.BAD_REQUEST, "expected a Content-Length or chunks, not both")
            if [name.strip().lower() for name in transfer] != ["chunked"]:
                raise RequestError(HTTPStatus.NOT_IMPLEMENTED, "expected no Transfer-Encoding but chunked")
        elif not lengths and self.command == "POST":
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
        if len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,15}", lengths[0] if lengths else "0"):
            raise RequestError(HTTPStatus.BAD_REQUEST, "expected one Content-Length, a number")
        length = None if transfer else int(lengths[0] if lengths else 0)
        return Body(self._source, self.rfile, length, coding=coding, before=self._continue)

    def _continue(self) -> None:
        if self._expects_continue:
            self._expects_continue = False
            self._source.allow_write(REPLY_TIMEOUT_S)
            self.send_response_only(HTTPStatus.CONTINUE)
            self.end_headers()
            self.wfile.flush()

    def _reply(self, reply: Reply) -> None:
        self._source.allow_write(REPLY_TIMEOUT_S)
        self.send_response_only(reply.status)
        self.send_header("Server", SERVER_NAME)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":  # it asks what a reply would be, not for the reply
            self.wfile.write(reply.body)
        self.wfile.flush()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Reply to what the parser of requests refuses."""
        self.close_connection = True
        text = explain or message or HTTPStatus(code).phrase  # the parser's may quote a whole line
        self._reply(error_text(code, text[:MAX_MESSAGE_CHARACTERS], "bad_request"))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the standard library's
        """Say nothing: what was asked and answered is counted, not logged."""
