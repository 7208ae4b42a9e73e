"""Whether the broker still has what it was given.

A retained marker carries a number that rises with every change. On each connection it is compared with ours; another
number, or none, means that the broker forgot, wholly or since a backup, and everything is published again.
"""

import logging
import threading

import msgspec
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from controller.core import Core
from controller.delivery.metadata import METADATA_KEY, TIMESTAMP_KEY
from controller.delivery.outlet import Outlet
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
        self._found: Marker | None = None
        self.is_changing = False
        """Whether something was published since the last marker."""

    def receive(self, payload: bytes) -> None:
        """Take a message of the memory topic, from the link's thread."""
        try:
            marker = decode(payload, Marker, limit_bytes=_MAX_MARKER_BYTES, what="memory marker")
        except ProtocolError:
            self._core.counters.add("memory.malformed")
            return
        with self._lock:
            if marker.probe is None:
                self._found = marker
            elif marker.probe == self._probe:
                self._is_back.set()

    def is_kept(self, timeout_s: float) -> bool:
        """Return whether the broker has our newest marker; raises BrokerError.

        The probe comes back after the retained marker, so that "there is none" need not be guessed from silence.
        """
        with self._lock:
            self._probe, self._found = self._core.random_hex(8), None
            self._is_back.clear()
        ours = self._marker()
        self._link.subscribe(self._topic)
        try:
            probe = msgspec.structs.replace(ours, probe=self._probe)
            self._link.publish(self._topic, encode(probe))
            self._is_back.wait(timeout_s)
        finally:
            self._link.unsubscribe(self._topic)
        with self._lock:
            return self._found == ours

    def expect_change(self) -> None:
        """Count up before something is published, so that a crash in between leaves the broker's marker behind ours."""
        if self.is_changing:
            return
        with self._core.store.write() as session:
            put_setting(session, _GENERATION, str(int(get_setting(session, _GENERATION, "0")) + 1))
        self.is_changing = True

    def seal(self) -> None:
        """Mark the broker's state as the newest, after everything was published; raises BrokerError."""
        self._link.publish(self._topic, encode(self._marker()), retain=True)
        self.is_changing = False

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
