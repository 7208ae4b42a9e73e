"""Whether the broker still has what it was given.

A retained marker carries a number that rises before and after every change. On each connection it is compared with
ours; another number, or none, means that one of the two fell back to a backup: what the broker has is looked at (see
`controller.delivery.recovery`), and everything is published again.
"""

import logging
import threading
from collections.abc import Sequence

import msgspec
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from controller.core import Core
from controller.delivery.metadata import METADATA_KEY, TIMESTAMP_KEY
from controller.delivery.outlet import Outlet
from controller.errors import BrokerError
from controller.store import outbox
from controller.store.deployments import OPEN_STATES
from controller.store.models import AckRow, DeploymentRow, DirectorRow, FileRow, InstalledRow, ReleaseFileRow
from controller.store.settings import get_setting, put_setting
from protocol.codec import decode, encode
from protocol.errors import ProtocolError
from protocol.topics import Topics

log = logging.getLogger(__name__)

_INSTANCE = "instance"
_GENERATION = "published_generation"
_MAX_MARKER_BYTES = 1_024


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """What the memory topic holds: retained, whose broker it is and since when; not retained, a probe."""

    instance: str
    generation: int = 0
    probe: str | None = None


class BrokerMemory:
    """Compares what the broker remembers with what we gave it."""

    def __init__(self, core: Core, topics: Topics, link: Outlet) -> None:
        self._core = core
        self._topic = topics.memory_marker
        self._link = link
        self._lock = threading.Lock()
        self._probe = ""
        self._is_back = threading.Event()
        self._asked: frozenset[str] = frozenset()
        self._found: dict[str, bytes] = {}
        self.is_changing = False
        """Whether something was published since the last marker."""

    def receive(self, topic: str, payload: bytes) -> bool:
        """Take a message from the link's thread; return whether it was one that is asked for here."""
        if topic != self._topic:
            with self._lock:
                if topic not in self._asked:
                    return False
                self._found[topic] = payload
            return True
        try:
            marker = decode(payload, Marker, limit_bytes=_MAX_MARKER_BYTES, what="memory marker")
        except ProtocolError:
            self._core.counters.add("memory.malformed")
            return True
        with self._lock:
            if marker.probe is None:
                self._found[topic] = payload
            elif marker.probe == self._probe:
                self._is_back.set()
        return True

    def is_kept(self, timeout_s: float) -> bool:
        """Return whether the broker has our newest marker; raises BrokerError."""
        ours = self._marker()
        found = self.retained([], timeout_s).get(self._topic)
        return found is not None and decode(found, Marker, limit_bytes=_MAX_MARKER_BYTES, what="memory marker") == ours

    def retained(self, topics: Sequence[str], timeout_s: float) -> dict[str, bytes]:
        """Return what the broker holds under the marker's topic and `topics`.

        A probe comes back after the retained messages, so that "there is none" need not be guessed from silence.

        Raises:
            BrokerError: the connection was lost, or the probe did not come back within `timeout_s`.
        """
        with self._lock:
            self._probe, self._found, self._asked = self._core.random_hex(8), {}, frozenset(topics)
            self._is_back.clear()
        asked = [*topics, self._topic]
        try:
            self._link.subscribe(*asked)
            self._link.publish(self._topic, encode(msgspec.structs.replace(self._marker(), probe=self._probe)))
            if not self._is_back.wait(timeout_s):
                raise BrokerError(
                    f"the broker did not give back within {timeout_s:.0f} s what it was told",
                    hint=f"let the service read and write {self._topic}",
                )
        finally:
            self._link.unsubscribe(*asked)
        with self._lock:
            found, self._found, self._asked = self._found, {}, frozenset()
        return found

    def expect_change(self) -> None:
        """Count up before something is published, so that a crash in between leaves the broker's marker behind ours."""
        if not self.is_changing:
            self._count_up()
            self.is_changing = True

    def seal(self) -> None:
        """Mark the broker's state as the newest, after everything was published; raises BrokerError.

        It counts up once more: a copy of the database that was made meanwhile must not be taken for the newest.
        """
        self._count_up()
        self._link.publish(self._topic, encode(self._marker()), retain=True)
        self.is_changing = False

    def _count_up(self) -> None:
        with self._core.store.write() as session:
            put_setting(session, _GENERATION, str(int(get_setting(session, _GENERATION, "0")) + 1))

    def _marker(self) -> Marker:
        with self._core.store.read() as session:
            return Marker(instance=instance_name(session), generation=int(get_setting(session, _GENERATION, "0")))


def instance_name(session: Session) -> str:
    """Return the name of this database."""
    return get_setting(session, _INSTANCE)


def name_instance(session: Session, core: Core) -> None:
    """Give this database a name of its own, once."""
    if not instance_name(session):
        put_setting(session, _INSTANCE, core.random_hex(16))


def republish_everything(session: Session) -> None:
    """Have all that any device may need published again."""
    log.info("the broker does not have what this service gave it last: publishing everything")
    session.execute(update(FileRow).values(published_at_ms=None))
    outbox.mark(session, "metadata", [METADATA_KEY, TIMESTAMP_KEY])
    outbox.mark(session, "file", _files_in_use(session))
    outbox.mark(session, "ack", session.scalars(select(AckRow.device_id).distinct()))
    outbox.mark(session, "director", session.scalars(select(DirectorRow.device_id)))


def _files_in_use(session: Session) -> set[str]:
    """Return the files of every release that some device has or is to get."""
    by_release = (ReleaseFileRow.model, ReleaseFileRow.version)
    files: set[str] = set()
    for used in (
        select(InstalledRow.model, InstalledRow.version).distinct(),
        select(DeploymentRow.model, DeploymentRow.version)
        .where(DeploymentRow.state.in_(OPEN_STATES), ~DeploymentRow.is_removal)
        .distinct(),
    ):
        for model, version in session.execute(used).all():
            files.update(
                session.scalars(select(ReleaseFileRow.digest).where(by_release[0] == model, by_release[1] == version))
            )
    return files
