"""What the publisher needs of the link to the broker: `controller.delivery.mqtt.MqttLink` here, another in tests."""

from collections.abc import Iterable
from typing import Protocol

from controller.delivery.link import Outgoing


class Outlet(Protocol):
    """A way out that comes and goes by itself."""

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there now."""
        ...

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Have the broker take a message; raises BrokerError."""
        ...

    def publish_all(self, messages: Iterable[Outgoing]) -> None:
        """Have the broker take messages in order; raises BrokerError."""
        ...

    def subscribe(self, *topics: str) -> None:
        """Ask for the messages of some topics; raises BrokerError."""
        ...

    def unsubscribe(self, *topics: str) -> None:
        """Ask for them no longer; raises BrokerError."""
        ...
