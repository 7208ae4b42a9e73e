"""Where each message lives on the broker.

<prefix>/v1/tuf/timestamp             the image repository's timestamp (retained)
<prefix>/v1/tuf/metadata              all its other metadata, one compressed set (retained)
<prefix>/v1/offer/<digest>            where to get the file with that SHA-256 (retained)
<prefix>/v1/blob/<blob>/index         the chunk index whose SHA-256 is <blob> (retained)
<prefix>/v1/blob/<blob>/<n>           its n-th chunk (retained)
<prefix>/v1/dev/<id>/down/director    the signed document this device obeys (retained)
<prefix>/v1/dev/<id>/down/ack         up to which report the controller has stored everything (retained)
<prefix>/v1/dev/<id>/up/liveness      birth, or death by Last Will (retained)
<prefix>/v1/dev/<id>/up/receipts      batches of signed receipts
<prefix>/v1/dev/<id>/up/telemetry     batches of signed telemetry
<prefix>/v1/dev/<id>/up/want          retained messages that this device misses
<prefix>/v1/controller/memory         a marker by which the controller sees that a broker forgot (retained)
"""

from typing import Literal

import msgspec

from protocol import PROTOCOL_VERSION
from protocol.errors import UnknownIdentifierError
from protocol.identifiers import DeviceId, Digest, parse_device_id

Uplink = Literal["liveness", "receipts", "telemetry", "want"]
UPLINKS: tuple[Uplink, ...] = ("liveness", "receipts", "telemetry", "want")
DEFAULT_PREFIX = "fleet"


class Topics(msgspec.Struct, frozen=True):
    """The topic names under one prefix; several fleets may share a broker under different ones."""

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        if not 1 <= len(self.prefix) <= 100 or any(c in "+#$" or not c.isprintable() for c in self.prefix):
            raise UnknownIdentifierError(
                f"expected a topic prefix of 1 to 100 printable characters without + # $, got {self.prefix[:120]!r}"
            )

    @property
    def _root(self) -> str:
        return f"{self.prefix}/v{PROTOCOL_VERSION}"

    @property
    def timestamp(self) -> str:
        """The image repository's timestamp."""
        return f"{self._root}/tuf/timestamp"

    @property
    def metadata(self) -> str:
        """The compressed set of all other image metadata."""
        return f"{self._root}/tuf/metadata"

    @property
    def memory_marker(self) -> str:
        """The controller's own marker on the broker."""
        return f"{self._root}/controller/memory"

    def offer(self, digest: Digest) -> str:
        """Where the sources of one file are offered."""
        return f"{self._root}/offer/{digest}"

    def chunk_index(self, blob: Digest) -> str:
        """The chunk index of one blob."""
        return f"{self._root}/blob/{blob}/index"

    def chunk(self, blob: Digest, number: int) -> str:
        """One chunk of one blob, counted from 0."""
        return f"{self._root}/blob/{blob}/{number}"

    def director(self, device: DeviceId) -> str:
        """The signed document that `device` obeys."""
        return f"{self._root}/dev/{device}/down/director"

    def ack(self, device: DeviceId) -> str:
        """Which reports of `device` the controller has stored."""
        return f"{self._root}/dev/{device}/down/ack"

    def up(self, device: DeviceId, uplink: Uplink) -> str:
        """One of the topics on which `device` speaks."""
        return f"{self._root}/dev/{device}/up/{uplink}"

    @property
    def all_uplinks(self) -> str:
        """The subscription by which the controller hears every device."""
        return f"{self._root}/dev/+/up/+"

    def parse_up(self, topic: str) -> tuple[DeviceId, Uplink]:
        """Return which device spoke on which uplink, or raise UnknownIdentifierError."""
        head = f"{self._root}/dev/"
        parts = topic.removeprefix(head).split("/") if topic.startswith(head) else []
        if len(parts) == 3 and parts[1] == "up":
            for uplink in UPLINKS:
                if parts[2] == uplink:
                    return parse_device_id(parts[0]), uplink
        raise UnknownIdentifierError(f"expected an uplink topic below {head}, got {topic[:200]!r}")
