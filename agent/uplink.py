"""What this device says: birth and death, wants, and the reports that the store keeps."""

import math
from importlib.metadata import version
from typing import Final

from agent.engine import State, slots, troubles
from agent.identity import Identity
from agent.mqtt import Link
from agent.reports import Outbox, Reports
from agent.store import Store
from protocol.admission import Capacity
from protocol.messages import Liveness, Reason, Want, seal_liveness

AGENT_VERSION: Final = version("wasmfleet")


class Uplink:
    """Speaks for the device. Births and deaths name the session, so that an old death says nothing."""

    def __init__(self, identity: Identity, store: Store, session: int, capacity: Capacity) -> None:
        self._identity = identity
        self._session = session
        self._stream = store.stream
        self.capacity = capacity
        """What the device's policy allows now."""
        self._link: Link | None = None
        self.reports = Reports(store, identity.device_id, identity.key, self._publish_report)

    def attach(self, link: Link) -> None:
        """Speak over `link`, whose Last Will is ours too."""
        self._link = link

    def death(self, at_ms: int) -> tuple[str, bytes]:
        """Return the topic and the content of the last word: for the Last Will, and for a stop."""
        liveness = Liveness(
            device_id=self._identity.device_id, session=self._session, stream=self._stream, online=False, at_ms=at_ms
        )
        return self._liveness_topic, seal_liveness(liveness, self._identity.key)

    def announce(self, state: State, at_ms: int, problem: Reason | None) -> None:
        """Say what the device offers, holds and cannot do; `problem` is that of its memory."""
        problems = {f"model/{name}": reason for name, reason in troubles(state).items()}
        birth = Liveness(
            device_id=self._identity.device_id,
            session=self._session,
            stream=self._stream,
            online=True,
            at_ms=at_ms,
            agent_version=AGENT_VERSION,
            capacity=self.capacity,
            slots=slots(state),
            director_version=state.director_version,
            problems={**problems, **({"memory": problem} if problem else {})},
        )
        self._publish(self._liveness_topic, seal_liveness(birth, self._identity.key), retain=True)

    @property
    def due_ms(self) -> float:
        """When the reports want to be looked at again."""
        return self.reports.due_ms if self._link is not None and self._link.is_connected else math.inf

    def want(self, want: Want) -> None:
        """Ask the controller for something that the broker does not have."""
        self._publish(self._identity.topics.up(self._identity.device_id, "want"), want.to_bytes())

    @property
    def _liveness_topic(self) -> str:
        return self._identity.topics.up(self._identity.device_id, "liveness")

    def _publish_report(self, outbox: Outbox, raw: bytes) -> bool:
        return self._publish(self._identity.topics.up(self._identity.device_id, outbox), raw)

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        return self._link is not None and self._link.publish(topic, payload, retain=retain)
