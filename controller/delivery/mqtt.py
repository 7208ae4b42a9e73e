"""The controller's connection to the broker: the only file here that knows paho.

Each connection has a paho client of its own, so that nothing of a lost one (an unsent message, a late acknowledgement)
reaches the next. A publish is done when the broker has confirmed it. What is too large is dropped before anybody looks
at it. `MqttLink` is what the rest of the controller uses.
"""

import logging
import os
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from controller.delivery.confirmations import Confirmation, Confirmations
from controller.delivery.link import Connection, Incoming, Link, LinkSettings, MqttVersion, Outgoing
from controller.errors import BrokerError
from protocol import limits

__all__ = ["LinkSettings", "MqttLink", "MqttVersion", "Outgoing"]

log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 2.0
_MAX_PACKET_BYTES = 16 * limits.MIB
_HEADER_BYTES = 32
_UNSUPPORTED_PROTOCOL_VERSION = 0x84
_KEEP_ALIVE_TIMEOUT = 0x8D


class MqttLink(Link):
    """A link over MQTT 5, or 3.1.1 where the broker speaks nothing newer."""

    def connection(self, version: MqttVersion) -> Connection:
        """Return a new connection, not yet open."""
        return _PahoConnection(self, version)


class _Unconfirmed(NamedTuple):
    """A received message that the broker does not yet know to have arrived."""

    number: int
    packet_id: int
    qos: int


class _PahoConnection:
    """One connection, from CONNECT to its end. Its callbacks run on the network thread of its paho client."""

    def __init__(self, link: Link, version: MqttVersion) -> None:
        self.version = version
        self.ended = threading.Event()
        self.is_version_refused = False
        self.confirmations = Confirmations(
            max_outstanding=link.settings.max_outstanding, timeout_s=link.settings.ack_timeout_s, on_stall=self.abort
        )
        self._link = link
        self._settings = link.settings
        self._refusal = ""
        self._reason = "the broker closed it"
        self._max_packet_bytes = _MAX_PACKET_BYTES
        self._answered = threading.Event()
        self._sending = threading.Lock()
        self._received = 0
        self._unconfirmed: deque[_Unconfirmed] = deque()
        self._client = _make_client(link, version, self)

    def open(self) -> str:
        """Connect, and return an empty text when the broker has accepted, else why not."""
        address = self._link.address
        options: dict[str, Any] = {}
        if self.version == "5":
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho has no annotation here
            properties.SessionExpiryInterval = self._settings.session_expiry_s
            properties.ReceiveMaximum = 2 * self._settings.max_unconfirmed
            properties.MaximumPacketSize = _MAX_PACKET_BYTES
            options = {"clean_start": False, "properties": properties}
        try:
            self._client.connect(address.host, address.port, self._settings.keepalive_s, **options)
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be encoded, a bad handshake
            self.ended.set()
            return str(error) or type(error).__name__
        self._client.loop_start()
        if not self._answered.wait(self._settings.connect_timeout_s):
            self.abort("the broker does not answer")
            self._answered.wait()
        return self._refusal

    def release(self) -> None:
        """Free the sockets and the thread of a connection that has ended."""
        with self._sending:
            self._client.release()

    def leave(self) -> None:
        """End the connection politely, or else abruptly."""
        with self._sending:
            self._client.disconnect()
        if not self.ended.wait(_CLOSE_TIMEOUT_S):
            self.abort("the controller closes it")

    def abort(self, reason: str) -> None:
        """Cut the connection; may be called from any thread."""
        self._reason = reason
        if (opened := self._client.socket()) is not None:
            try:
                with _twin(opened) as twin:
                    twin.shutdown(socket.SHUT_RDWR)
            except OSError:
                log.debug("the connection was gone already")

    def publish(self, message: Outgoing) -> Confirmation:
        """Send a message when its turn comes, and return its confirmation to come; raises BrokerError."""
        if not message.topic:
            raise BrokerError("cannot publish to an empty topic")
        size_bytes = len(message.payload) + len(message.topic.encode()) + _HEADER_BYTES
        if size_bytes > self._max_packet_bytes:
            raise BrokerError(
                f"{message.topic}: a message of {size_bytes:,} bytes, the broker takes {self._max_packet_bytes:,}",
                hint="raise the broker's maximum packet size",
            )
        self.confirmations.take_slot()
        try:
            with self._sending:
                info = self._client.publish(message.topic, message.payload, qos=1, retain=message.retain)
        except ValueError as error:
            self.confirmations.free_slot()
            raise BrokerError(f"cannot publish to {message.topic[:200]!r}: {error}") from error
        confirmation = self.confirmations.expect(info.mid)
        confirmation.add_done_callback(lambda _: self.confirmations.free_slot())
        return confirmation

    def subscribe(self, topics: list[str]) -> Confirmation:
        """Ask for topics, and return the answer to come; raises BrokerError."""
        return self._request(lambda: self._client.subscribe([(topic, 1) for topic in topics]))

    def unsubscribe(self, topic: str) -> Confirmation:
        """Give up a topic, and return the answer to come; raises BrokerError."""
        return self._request(lambda: self._client.unsubscribe(topic))

    def confirm(self, number: int) -> None:
        """Tell the broker that this message, and all before it, are done with; unconfirmed ones come again."""
        with self._sending:
            # In the order of arrival: MQTT 3.1.1, section 4.6; the embedded broker cuts off who does otherwise.
            while self._unconfirmed and self._unconfirmed[0].number <= number:
                first = self._unconfirmed.popleft()
                if not self.ended.is_set():
                    self._client.ack(first.packet_id, first.qos)

    def on_connect(self, _client: object, _data: object, _flags: object, reason: ReasonCode, sent: Any) -> None:
        """Note the answer to CONNECT."""
        if reason.is_failure:
            self.is_version_refused = reason.value == _UNSUPPORTED_PROTOCOL_VERSION
            self._refusal = f"it refuses the connection: {reason}"
        else:
            self._max_packet_bytes = min(_MAX_PACKET_BYTES, getattr(sent, "MaximumPacketSize", _MAX_PACKET_BYTES))
            self.confirmations.lower_limit(getattr(sent, "ReceiveMaximum", self._settings.max_outstanding))
            self._link.went_up(self)
        self._answered.set()

    def on_disconnect(self, _client: object, _data: object, flags: Any, reason: ReasonCode, _sent: object) -> None:
        """Note why it ended: what the broker says, or that it has fallen silent."""
        if flags.is_disconnect_packet_from_server:
            self._reason = str(reason)
        elif reason.value == _KEEP_ALIVE_TIMEOUT:
            self._reason = f"it has not answered for {self._settings.keepalive_s} s"

    def on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        """Hand over a message."""
        try:
            topic = message.topic if len(message.payload) <= self._settings.max_message_bytes else None
        except UnicodeDecodeError:
            topic = None
        self._received += 1
        payload = b"" if topic is None else bytes(message.payload)
        incoming = Incoming(self._received, topic, payload, message.retain)
        if message.qos:
            with self._sending:
                self._unconfirmed.append(_Unconfirmed(incoming.number, message.mid, message.qos))
        self._link.received(self, incoming)
        self.confirm(incoming.number - self._settings.max_unconfirmed)

    def on_answer(self, packet_id: int, reasons: list[ReasonCode]) -> None:
        """Note a PUBACK, SUBACK or UNSUBACK."""
        failures = [str(reason) for reason in reasons if reason.is_failure]
        self.confirmations.answer(packet_id, failures[0] if failures else "")

    def on_end(self) -> None:
        """Note that the network thread is done."""
        if not self._answered.is_set() and not self._refusal:
            # A broker for another version of MQTT closes the connection instead of saying so.
            self.is_version_refused = True
            self._refusal = f"no answer to CONNECT: {self._reason}"
        self.ended.set()
        self.confirmations.end(self._reason)
        self._link.went_down(self, self._reason)
        self._answered.set()

    def _request(self, send: Callable[[], tuple[MQTTErrorCode, int | None]]) -> Confirmation:
        try:
            with self._sending:
                status, packet_id = send()
        except ValueError as error:
            raise BrokerError(f"not a topic filter: {error}") from error
        if packet_id is None:
            raise BrokerError(f"the connection to the broker was lost: {status.name}", hint="try again")
        return self.confirmations.expect(packet_id)


class _Client(paho.Client):
    """A paho client that tells when its network loop ends, whatever ended it, and frees its sockets."""

    def __init__(self, on_end: Callable[[], None], **options: Any) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, reconnect_on_failure=False, manual_ack=True, **options)
        self._on_end = on_end
        self._looping: threading.Thread | None = None

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:
        """Run until the connection ends."""
        self._looping = threading.current_thread()
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception:  # nobody else would see it: this is the outermost frame of a thread
            log.exception("the MQTT connection broke on an unexpected error")
            return MQTTErrorCode.MQTT_ERR_UNKNOWN
        finally:
            self._on_end()

    def release(self) -> None:
        """Join the network thread, which has ended, and close the sockets."""
        if self._looping is not None:
            self._looping.join()
        self._reset_sockets()


def _make_client(link: Link, version: MqttVersion, connection: _PahoConnection) -> _Client:
    options: dict[str, Any] = {"transport": "websockets" if link.address.is_websocket else "tcp"}
    if version == "5":
        options["protocol"] = MQTTProtocolVersion.MQTTv5
    else:
        options |= {"protocol": MQTTProtocolVersion.MQTTv311, "clean_session": False}
    client = _Client(connection.on_end, client_id=link.client_id, **options)
    client.max_inflight_messages_set(link.settings.max_outstanding)
    if link.address.is_websocket:
        client.ws_set_options(path=link.address.path)
    if link.address.is_encrypted:
        client.tls_set_context(link.tls or ssl.create_default_context())
    if link.address.username is not None:
        client.username_pw_set(link.address.username, link.address.password)
    client.connect_timeout = link.settings.connect_timeout_s
    client.on_socket_open = _set_no_delay
    client.on_connect = connection.on_connect
    client.on_disconnect = connection.on_disconnect
    client.on_message = connection.on_message
    client.on_publish = lambda _c, _d, packet_id, reason, _p: connection.on_answer(packet_id, [reason])
    client.on_subscribe = lambda _c, _d, packet_id, reasons, _p: connection.on_answer(packet_id, reasons)
    client.on_unsubscribe = lambda _c, _d, packet_id, reasons, _p: connection.on_answer(packet_id, reasons)
    return client


def _set_no_delay(_client: object, _data: object, opened: Any) -> None:
    with _twin(opened) as twin:
        twin.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _twin(opened: Any) -> socket.socket:
    # Whatever wraps the connection (TLS, WebSocket), a duplicate of its descriptor is the same TCP connection.
    return socket.socket(fileno=os.dup(opened.fileno()))
