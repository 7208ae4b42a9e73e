"""The local API's threads: one that accepts for each listener, one for each connection, bounded in number."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from typing import Final

import msgspec

from agent.host import ModelHost
from agent.runtime import processors
from agent.serving.connection import BUSY, Conversation
from agent.serving.gate import Gate
from agent.serving.lingering import Lingering
from agent.serving.listeners import Listener, ListenerError
from agent.serving.routes import Reply, Request, Routes

MAX_CONNECTIONS: Final = 64
"""Of the Unix socket and of ports, each: who may only use a port cannot take the places of the agent's owner."""
GRACE_S: Final = 5.0
"""How long running requests may take to end when the service closes."""
SHORTAGE_PAUSE_S: Final = 0.2
"""How long to wait for file descriptors or threads to become free again."""
MIN_IDLE_S: Final = 1.0
"""How long a kept connection may rest before it makes room for a new one, when all places are taken."""
RETRY_S: Final = 5.0
"""How long to wait before a listener that could not be opened is tried again."""

_log = logging.getLogger(__name__)


class LocalService:
    """Serves the resident models and the daemon's status, from `start` to `close`."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        host: ModelHost,
        status: Callable[[], msgspec.Struct],
        *,
        gate: Gate | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._listeners = listeners
        self._max_connections = max_connections
        self._routes = Routes(host, status, version("wasmfleet"), gate)
        self._sockets: dict[Listener, socket.socket] = {}
        self._refused: dict[Listener, str] = {}
        self._acceptors: list[threading.Thread] = []
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._conversations: dict[Conversation, threading.Thread] = {}
        self._ended = threading.Condition(self._lock)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where callers come in."""
        return tuple(listener.address for listener in self._listeners if listener in self._sockets)

    @property
    def problems(self) -> dict[str, str]:
        """Where callers cannot come in now, and why."""
        return {listener.address: why for listener, why in self._refused.copy().items()}

    def answer(self, request: Request) -> Reply:
        """Return the reply to a request that came by another way than a socket; the same bounds hold."""
        return self._routes.answer(request)

    def start(self) -> None:
        """Begin to serve; raises ListenerError or OSError when the first listener cannot be opened.

        The others are tried again and again: any program of the device may have taken their ports.
        """
        self._sockets[self._listeners[0]] = self._listeners[0].open()
        for listener in self._listeners:
            opened = self._open(listener)
            thread = threading.Thread(target=self._offer, args=(listener, opened), name="local-service", daemon=True)
            self._acceptors.append(thread)
            thread.start()

    def close(self) -> None:
        """Refuse new requests, let running ones end, go away. Closing twice does nothing."""
        with self._lock:
            self._closing.set()
            sockets, self._sockets = self._sockets, {}
        for listener, accepting in sockets.items():
            listener.removed()
            with contextlib.suppress(OSError):
                accepting.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        for thread in self._acceptors:
            thread.join()
        for accepting in sockets.values():
            accepting.close()
        with self._lock:
            conversations = dict(self._conversations)
        for conversation in conversations:
            conversation.end()
        _join(conversations.values(), GRACE_S)
        for conversation, thread in conversations.items():
            if thread.is_alive():
                with contextlib.suppress(OSError):  # it ended by itself
                    conversation.connection.shutdown(socket.SHUT_RDWR)
        _join(conversations.values(), GRACE_S)

    def _open(self, listener: Listener) -> socket.socket | None:
        """Return the socket of `listener`, or None when it cannot be had now, with the reason in `problems`."""
        if (opened := self._sockets.get(listener)) is not None:
            return opened
        try:
            opened = listener.open()
        except (ListenerError, OSError) as error:
            if self._refused.get(listener) != str(error):
                _log.error("%s; the rest of the agent runs, this is tried again", error)
            self._refused[listener] = str(error)
            return None
        self._refused.pop(listener, None)
        with self._lock:
            if self._closing.is_set():
                opened.close()
                return None
            self._sockets[listener] = opened
        return opened

    def _offer(self, listener: Listener, opened: socket.socket | None) -> None:
        while opened is None:
            if self._closing.wait(RETRY_S):
                return
            opened = self._open(listener)
        self._accept(opened)

    def _accept(self, accepting: socket.socket) -> None:
        with contextlib.closing(Lingering()) as lingering:
            while not self._closing.is_set():
                lingering.wait_for(accepting)
                try:
                    connection, _ = accepting.accept()
                except OSError as error:
                    if not self._closing.is_set():  # too few file descriptors, perhaps: that passes
                        _log.warning("cannot accept a local connection: %s; trying on", error)
                        self._closing.wait(SHORTAGE_PAUSE_S)
                    continue
                if not self._begin(Conversation(connection)):
                    lingering.turn_away(connection, BUSY)

    def _begin(self, conversation: Conversation) -> bool:
        """Give `conversation` a thread of its own; False when there is none to have."""
        thread = threading.Thread(target=self._serve, args=(conversation,), name="local-request", daemon=True)
        with self._lock:
            if not self._has_place(conversation.is_tcp) and not self._make_room(conversation.is_tcp):
                return False
            self._conversations[conversation] = thread
        try:
            thread.start()
        except RuntimeError as error:
            _log.warning("cannot serve a local connection: %s; trying on", error)
            with self._lock:
                del self._conversations[conversation]
            return False
        return True

    def _has_place(self, is_tcp: bool) -> bool:
        return sum(each.is_tcp == is_tcp for each in self._conversations) < self._max_connections

    def _make_room(self, is_tcp: bool) -> bool:
        """End the connection that has been idle for longest; False when none has been for some time."""
        same = [each for each in self._conversations if each.is_tcp == is_tcp and not each.is_ending]
        since = {each: at_s for each in same if (at_s := each.idle_since_s) is not None}
        if not since or time.monotonic() - min(since.values()) < MIN_IDLE_S:
            return False
        min(since, key=since.__getitem__).end()
        return self._ended.wait_for(lambda: self._has_place(is_tcp), SHORTAGE_PAUSE_S)

    def _serve(self, conversation: Conversation) -> None:
        processors.use_all()
        try:
            if conversation.is_tcp:
                conversation.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            conversation.serve(self._routes)
        finally:
            with self._ended:
                del self._conversations[conversation]
                self._ended.notify_all()
            conversation.connection.close()


def _join(threads: Iterable[threading.Thread], patience_s: float) -> None:
    end = time.monotonic() + patience_s
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
