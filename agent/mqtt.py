"""The link to the broker, and the only importer of paho on the device.

Keeps one connection up for as long as it is open: it reconnects for ever, ever more patiently. What is published
while there is no connection is lost; whoever needs it sends it again at the next LinkUp. Nothing is decided here:
the network thread checks sizes and hands over.
"""

import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import LinkError
from agent.identity import AUTHORITY, CERTIFICATE, KEY
from protocol import limits

ProtocolChoice = Literal["auto", "5", "3.1.1"]
KEEPALIVE_S: Final = 30
ANSWER_TIMEOUT_S: Final = 15.0
FIRST_DELAY_S: Final = 0.25
STABLE_S: Final = 10.0
MAX_DELAY_S: Final = 60.0
MAX_INFLIGHT: Final = 20
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}

_log = logging.getLogger(__name__)


class LinkUp(msgspec.Struct, frozen=True, kw_only=True):
    """Connected: every subscription is new, everything has to be said again."""


class LinkDown(msgspec.Struct, frozen=True, kw_only=True):
    """Not connected any more, or the attempt failed."""

    reason: str


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A message within the size that its topic may have."""

    topic: str
    payload: bytes


class Oversize(msgspec.Struct, frozen=True, kw_only=True):
    """A message that was dropped unread."""

    topic: str
    size_bytes: int
    limit_bytes: int


LinkEvent = LinkUp | LinkDown | Message | Oversize


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where the broker is, and what to prove ourselves with where the URL asks for TLS."""

    url: str
    client_id: str
    identity_folder: Path
    protocol: ProtocolChoice = "auto"


class Link:
    """A connection that comes back."""

    def __init__(
        self,
        endpoint: Endpoint,
        will: Callable[[], tuple[str, bytes]],
        post: Callable[[LinkEvent], None],
        rng: random.Random,
    ) -> None:
        self._endpoint = endpoint
        self._scheme, self._host, self._port, self._path = _parse_url(endpoint.url)
        self._will = will
        self._post = post
        self._rng = rng
        self._version = MQTTv311 if endpoint.protocol == "3.1.1" else MQTTv5
        self._lasting: dict[str, int] = {}
        self._window: dict[str, int] = {}
        self._client: Client | None = None
        self._is_connected = False
        self._unacknowledged = 0
        self._refused: set[str] = set()
        self._refusal = ""
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, name="link", daemon=True)

    @property
    def is_connected(self) -> bool:
        """Whether the broker has accepted us and the connection stands."""
        return self._is_connected

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def subscribe(self, topics: dict[str, int]) -> None:
        """Hear these topics for good, now or as soon as there is a connection; each with its largest message."""
        self._lasting |= topics
        self._send_subscribe(topics)

    def unsubscribe(self, topics: Collection[str]) -> None:
        """Hear these topics no more."""
        self._lasting = {topic: limit for topic, limit in self._lasting.items() if topic not in topics}
        self._send_unsubscribe(topics)

    def listen(self, topics: dict[str, int]) -> None:
        """Hear exactly these further topics from now on."""
        gone = [topic for topic in self._window if topic not in topics]
        new = {topic: limit for topic, limit in topics.items() if topic not in self._window}
        self._window = dict(topics)
        self._send_unsubscribe(gone)
        self._send_subscribe(new)

    def resubscribe(self) -> None:
        """Subscribe to everything, after a LinkUp."""
        self._send_subscribe(self._lasting | self._window)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Send a message at least once; return whether there was a connection to send it on."""
        client = self._client
        if client is None or not self._is_connected:
            return False
        with self._changed:
            self._unacknowledged += 1
        return client.publish(topic, payload, qos=1, retain=retain).rc == 0

    def publish_in_turn(self, topic: str, payload: bytes) -> bool:
        """Send as `publish` does, but not before the broker has taken most of what was sent. Not from the main loop.

        So a fast sender on a slow link waits, instead of filling the memory.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._unacknowledged < MAX_INFLIGHT or not self._is_connected or self._closing.is_set()
            )
        return self.publish(topic, payload)

    def close(self, farewell: tuple[str, bytes] | None = None, timeout_s: float = 3.0) -> None:
        """Say a last retained word, disconnect, end the threads. Closing twice does nothing."""
        client = self._client
        if farewell and client and self._is_connected:
            try:
                client.publish(farewell[0], farewell[1], qos=1, retain=True).wait_for_publish(timeout_s)
            except (RuntimeError, ValueError) as error:
                _log.warning("the broker did not take the farewell: %s", error)
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s + ANSWER_TIMEOUT_S)

    # --- the supervising thread

    def _keep_up(self) -> None:
        delay_s = FIRST_DELAY_S
        while not self._closing.is_set():
            start_s = time.monotonic()
            was_up = self._connect_once()
            # Thrown out again and again is no success: perhaps another machine has a copy of this identity.
            has_lasted = was_up and time.monotonic() - start_s > STABLE_S
            delay_s = FIRST_DELAY_S if has_lasted else min(delay_s * 2, MAX_DELAY_S)
            self._closing.wait(delay_s * self._rng.uniform(0.5, 1.0))

    def _connect_once(self) -> bool:
        """Connect, stay until the connection ends, and return whether the broker had accepted it."""
        self._refusal = ""
        try:
            client = self._new_client()
            client.connect(self._host, self._port, KEEPALIVE_S, **self._connect_options())
        except (OSError, ValueError) as error:
            self._post(LinkDown(reason=f"cannot reach {self._host}:{self._port}: {error}"))
            return False
        self._client = client
        self._unacknowledged = 0
        self._refused.clear()
        client.loop_start()
        with self._changed:
            is_answered = self._changed.wait_for(self._is_answered, ANSWER_TIMEOUT_S)
            was_up = self._is_connected
            self._changed.wait_for(lambda: not self._is_connected or self._closing.is_set())
            self._is_connected = False
        client.disconnect()
        client.loop_stop()
        client.release()
        self._client = None
        if not was_up and self._endpoint.protocol == "auto":
            # An old broker refuses MQTT 5, or just hangs up: try the other version next time.
            self._version = MQTTv311 if self._version == MQTTv5 else MQTTv5
        if not self._closing.is_set():
            reason = self._refusal or ("the broker hung up" if is_answered else "the broker did not answer")
            self._post(LinkDown(reason=reason))
        return was_up

    def _is_answered(self) -> bool:
        return self._is_connected or bool(self._refusal) or self._closing.is_set()

    def _new_client(self) -> "_Client":
        client = _Client(
            self._on_end,
            client_id=self._endpoint.client_id,
            clean_session=True if self._version == MQTTv311 else None,
            protocol=self._version,
            transport="websockets" if self._scheme in ("ws", "wss") else "tcp",
        )
        client.max_inflight_messages_set(MAX_INFLIGHT)
        client.connect_timeout = ANSWER_TIMEOUT_S
        if self._scheme in ("ws", "wss"):
            client.ws_set_options(path=self._path)
        if self._scheme in ("mqtts", "wss"):
            client.tls_set_context(self._tls())
        topic, death = self._will()
        client.will_set(topic, death, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_socket_open = _send_without_delay
        return client

    def _tls(self) -> ssl.SSLContext:
        folder = self._endpoint.identity_folder
        context = ssl.create_default_context(cafile=folder / AUTHORITY)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.sslsocket_class = _TidySocket
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
        return context

    def _connect_options(self) -> dict[str, Any]:
        if self._version == MQTTv311:
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho leaves it untyped
        properties.ReceiveMaximum = MAX_INFLIGHT
        properties.MaximumPacketSize = limits.MAX_METADATA_SET_BYTES + limits.MAX_OFFER_BYTES
        return {"clean_start": True, "properties": properties}

    # --- the network thread

    def _on_connect(self, _: Client, __: object, ___: ConnectFlags, code: ReasonCode, ____: Properties | None) -> None:
        with self._changed:
            self._is_connected = not code.is_failure
            self._refusal = f"the broker refused us: {code}" if code.is_failure else ""
            self._changed.notify_all()
        if not code.is_failure:
            self._post(LinkUp())

    def _on_disconnect(
        self, _: Client, __: object, ___: DisconnectFlags, code: ReasonCode, ____: Properties | None
    ) -> None:
        with self._changed:
            self._is_connected = False
            self._refusal = self._refusal or f"the connection ended: {code}"
            self._changed.notify_all()

    def _on_end(self) -> None:
        with self._changed:
            self._is_connected = False
            self._refusal = self._refusal or "the connection broke"
            self._changed.notify_all()

    def _on_publish(self, _: Client, __: object, ___: int, code: ReasonCode, ____: Properties) -> None:
        with self._changed:
            self._unacknowledged = max(self._unacknowledged - 1, 0)
            self._changed.notify_all()
        self._note_refusals("message", [code])

    def _on_subscribe(self, _: Client, __: object, ___: int, codes: list[ReasonCode], ____: Properties | None) -> None:
        self._note_refusals("subscription", codes)

    def _note_refusals(self, kind: str, codes: list[ReasonCode]) -> None:
        """Say once for each connection that the broker's access control does not allow what we do."""
        refusals = [code for code in codes if code.is_failure]
        if refusals and kind not in self._refused:
            self._refused.add(kind)
            _log.warning("the broker refused a %s: %s. See what it allows to this device", kind, refusals[0])

    def _on_message(self, _: Client, __: object, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return  # no topic of ours
        limit = self._lasting.get(topic, self._window.get(topic, -1))
        if limit < 0:
            return  # a chunk that came after its window had moved on
        if len(message.payload) > limit:
            self._post(Oversize(topic=topic, size_bytes=len(message.payload), limit_bytes=limit))
        else:
            self._post(Message(topic=topic, payload=bytes(message.payload)))

    def _send_subscribe(self, topics: dict[str, int]) -> None:
        client = self._client
        if client and self._is_connected and topics:
            client.subscribe([(topic, 1) for topic in topics])

    def _send_unsubscribe(self, topics: Collection[str]) -> None:
        client = self._client
        if client and self._is_connected and topics:
            client.unsubscribe(list(topics))


class _Client(Client):
    """A client that tells when its network loop ends, whatever ended it, and frees its sockets."""

    def __init__(self, on_end: Callable[[], None], **options: Any) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, reconnect_on_failure=False, **options)
        self._on_end = on_end

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:
        """Run until the connection ends."""
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception:  # noqa: BLE001 - nobody else would see it: the outermost frame of a thread
            _log.exception("the connection to the broker broke on an unexpected error")
            return MQTTErrorCode.MQTT_ERR_UNKNOWN
        finally:
            self._on_end()

    def release(self) -> None:
        """Close the sockets, which a loop that broke leaves open; after the network thread has ended."""
        self._reset_sockets()


class _TidySocket(ssl.SSLSocket):
    """Closes itself when the handshake fails; paho would leave that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        """Perform the TLS handshake."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _parse_url(url: str) -> tuple[str, str, int, str]:
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise LinkError(f"expected the address of a broker, got {url[:200]!r}: {error}") from error
    if not port or not parts.hostname:
        raise LinkError(f"expected a broker at mqtt://, mqtts://, ws:// or wss://, got {url[:200]!r}")
    return parts.scheme, parts.hostname, port, parts.path or "/mqtt"


def _send_without_delay(_: Client, __: object, sock: Any) -> None:
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
