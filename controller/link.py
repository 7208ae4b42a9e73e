"""What the service needs of its link to the broker; `controller.mqtt.MqttLink` is one."""

from typing import Protocol


class Link(Protocol):
    """A connection that comes and goes by itself."""

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there now."""
        ...

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Have the broker take a message; raises BrokerError."""
        ...

    def subscribe(self, topic: str) -> None:
        """Ask for the messages of a topic; raises BrokerError."""
        ...

    def unsubscribe(self, topic: str) -> None:
        """Ask for them no longer; raises BrokerError."""
        ...
