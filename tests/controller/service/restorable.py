"""A fleet whose database can be put back from a copy, and devices that remember what they have seen."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from agent.identity import Identity
from agent.trust import Judgement, Trust
from controller.delivery.publisher import Publisher
from protocol.assignment import parse_metadata
from protocol.manifest import Manifest
from tests.controller.service.fleet import HAPPY, FleetCore, Recorder, ScriptedDevice


class Floors:
    """What a device remembers of versions, in memory."""

    def __init__(self) -> None:
        self._versions: dict[str, int] = {}
        self._signed_time_ms = 0

    def floors(self) -> dict[str, int]:
        return dict(self._versions)

    def raise_floors(self, versions: dict[str, int], *, signed_time_ms: int | None = None) -> None:
        for name, version in versions.items():
            self._versions[name] = max(version, self._versions.get(name, 0))
        self._signed_time_ms = self._signed_time_ms if signed_time_ms is None else signed_time_ms

    def signed_time_ms(self) -> int:
        return self._signed_time_ms


class Believer:
    """A device's own judgement of what is retained, with its memory."""

    def __init__(self, fleet: FleetCore, device: ScriptedDevice, folder: Path) -> None:
        folder.mkdir()
        self._fleet = fleet
        self._device = device
        self._now_ms = fleet.core.now_ms
        identity = Identity(
            folder=folder,
            device_id=device.id,
            key=device.key,
            mqtt_url="mqtt://nowhere",
            topics=fleet.topics,
            image_root=fleet.core.trust.image_root,
            director_root=fleet.core.trust.director_root,
        )
        self._trust = Trust(identity, folder, Floors())

    def look_at(self, broker: Recorder) -> Judgement:
        """Return what the device makes of the broker's state."""
        topics = self._fleet.topics
        self._trust.judge("metadata", broker.retained[topics.metadata], self._now_ms())
        self._trust.judge("timestamp", broker.retained[topics.timestamp], self._now_ms())
        return self._trust.judge("director", broker.retained[topics.director(self._device.id)], self._now_ms())


class Restorable:
    """A fleet whose database can be copied and put back, and the broker that goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = Recorder()
        self._copy = folder / "copy.db"

    @property
    def _database(self) -> Path:
        return self.folder / "fleet" / "server" / "fleet.db"

    def back_up(self) -> None:
        """Copy the database, online."""
        with closing(sqlite3.connect(self._database)) as live, closing(sqlite3.connect(self._copy)) as copy:
            live.backup(copy)

    def put_back(self) -> None:
        """Put the copy in place, as a person would."""
        for name in ("fleet.db", "fleet.db-wal", "fleet.db-shm"):
            (self._database.parent / name).unlink(missing_ok=True)
        shutil.copy(self._copy, self._database)


def publish(fleet: FleetCore, broker: Recorder) -> Publisher:
    """Bring the broker everything, as a service does that has just connected."""
    publisher = fleet.publisher(broker)
    broker.on_message = publisher.memory.receive
    publisher.settle()
    return publisher


def finish(fleet: FleetCore, device: ScriptedDevice, manifest: Manifest, broker: Recorder, to: str = "all") -> None:
    """Roll a release out, and have the device report that it runs."""
    rollout = fleet.roll_out(manifest.model, manifest.version, to)
    publish(fleet, broker)
    deployment = next(d.id for d in rollout.deployments if d.device == device.id)
    fleet.say(device, "receipts", device.report(deployment, manifest, HAPPY))
    publish(fleet, broker)


def parse(raw: bytes) -> int:
    """Return the version of signed metadata."""
    return int(parse_metadata(raw, "metadata").signed.version)
