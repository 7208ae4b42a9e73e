"""Getting all files of the releases that are being installed: one window of topics for each missing file.

Runs on the main loop: messages and time in, subscriptions, questions and jobs out. Files that are on the disk are not
fetched; a file that two releases need is fetched once.
"""

import logging
import random
from typing import Final, Protocol

from agent import faults
from agent.engine import Installed
from agent.engine.actions import Download
from agent.engine.events import Downloaded, Event, Failed, Progressed, Squeezed
from agent.errors import AgentError, DiskFullError, DiskQuotaError
from agent.fetch import ChunkFound, FileFetch, IndexFound
from agent.files import Files, Partial
from protocol.chunks import ChunkIndex
from protocol.errors import ProtocolError
from protocol.identifiers import Digest
from protocol.manifest import FileRef
from protocol.messages import Progress, Reason, Want
from protocol.topics import Topics

MAX_ATTEMPTS: Final = 3
"""How often a full disk, or a blob that held another file, is tried again before the deployment fails."""
REST_MS: Final = 2_000
PROGRESS_INTERVAL_MS: Final = 1_000

_log = logging.getLogger(__name__)


class Surroundings(Protocol):
    """What a download needs of the agent around it."""

    def listen(self, topics: dict[str, int]) -> None:
        """Listen to exactly these chunk topics from now on; the numbers are the largest acceptable sizes."""

    def want(self, want: Want) -> None:
        """Ask the controller for something that the broker does not have."""

    def post(self, event: Event) -> None:
        """Tell the engine."""

    def make_room(self) -> int:
        """Delete files that nothing refers to, and return the bytes set free."""

    def plan(self, action: Download) -> None:
        """Have the manifest read on the worker; `planned` follows."""

    def assemble(self, blob: Digest, index: ChunkIndex, file: FileRef) -> None:
        """Have a complete blob turned into its file on the worker; `assembled` follows."""


class _Fetch:
    def __init__(self, core: FileFetch) -> None:
        self.core = core
        self.partial: Partial | None = None
        self.attempts = 0
        self.resting_until_ms = 0
        self.is_assembling = False

    def close(self) -> None:
        if self.partial:
            self.partial.close()
            self.partial = None


class _Release:
    def __init__(self, action: Download, now_ms: int) -> None:
        self.action = action
        self.candidate: Installed | None = None
        self.posted_ms = now_ms
        self.posted: Progressed | None = None

    @property
    def files(self) -> tuple[FileRef, ...]:
        return self.candidate.files if self.candidate else (self.action.manifest,)


class Downloads:
    """The downloads in progress."""

    def __init__(self, files: Files, topics: Topics, around: Surroundings, rng: random.Random) -> None:
        self._files = files
        self._topics = topics
        self._around = around
        self._rng = rng
        self._releases: dict[str, _Release] = {}
        self._fetches: dict[Digest, _Fetch] = {}
        self._listening: dict[str, int] = {}

    @property
    def is_busy(self) -> bool:
        """Whether anything is being fetched."""
        return bool(self._releases)

    def start(self, action: Download, now_ms: int) -> None:
        """Get the files of a release: its manifest first, which says what else there is."""
        release = self._releases[action.deployment_id] = _Release(action, now_ms)
        self._advance(release, now_ms)
        self._listen(now_ms)

    def planned(self, deployment_id: str, candidate: Installed, now_ms: int) -> None:
        """The manifest was read: get the rest."""
        if release := self._releases.get(deployment_id):
            release.candidate = candidate
            self._advance(release, now_ms)
            self._listen(now_ms)

    def abandon(self, deployment_id: str, now_ms: int) -> None:
        """Give up a release; what arrived of it stays on the disk until it is collected."""
        if self._releases.pop(deployment_id, None):
            needed = {file.digest for release in self._releases.values() for file in release.files}
            for digest in self._fetches.keys() - needed:
                self._fetches.pop(digest).close()
            self._listen(now_ms)

    def receive(self, topic: str, payload: bytes, now_ms: int) -> None:
        """Take a message on an offer or blob topic."""
        for fetch in list(self._fetches.values()):
            if fetch.resting_until_ms <= now_ms and topic in fetch.core.topics():
                found = fetch.core.receive(topic, payload, now_ms)
                if found is None and fetch.core.problem:
                    _log.warning("not acceptable on %s: %s", topic, fetch.core.problem.message)
                try:
                    self._take(fetch, found, now_ms)
                except (AgentError, OSError) as error:
                    self._stumble(fetch, error, now_ms)
        self._listen(now_ms)

    def assembled(self, file: FileRef, error: ProtocolError | AgentError | OSError | None, now_ms: int) -> None:
        """The worker made the file of a complete blob, or could not."""
        fetch = self._fetches.get(file.digest)
        if fetch is None:
            return
        fetch.is_assembling = False
        if error is not None:
            self._stumble(fetch, error, now_ms)
        else:
            del self._fetches[file.digest]
            for release in list(self._releases.values()):
                if file in release.files:
                    self._advance(release, now_ms)
        self._listen(now_ms)

    def tick(self, now_ms: int) -> None:
        """Ask for what is overdue, report progress."""
        for fetch in self._fetches.values():
            if fetch.resting_until_ms <= now_ms and not fetch.is_assembling:
                for want in fetch.core.overdue(now_ms):
                    self._around.want(want)
        for release in self._releases.values():
            self._report(release, now_ms)
        self._listen(now_ms)

    def references(self) -> tuple[frozenset[Digest], frozenset[Digest]]:
        """Return the files and the blobs that must stay on the disk."""
        files = {file.digest for release in self._releases.values() for file in release.files}
        blobs = {fetch.core.blob for fetch in self._fetches.values() if fetch.core.blob}
        return frozenset(files), frozenset(blobs)

    def close(self) -> None:
        """Close the files that are being written."""
        for fetch in self._fetches.values():
            fetch.close()

    def _advance(self, release: _Release, now_ms: int) -> None:
        missing = [file for file in release.files if not self._files.has(file)]
        for file in missing:
            if file.digest not in self._fetches:
                self._fetches[file.digest] = _Fetch(FileFetch(file, self._topics, self._rng, now_ms))
        if missing:
            return
        action = release.action
        if release.candidate is None:
            self._around.plan(action)
        else:
            del self._releases[action.deployment_id]
            self._around.post(Downloaded(model=action.model, deployment_id=action.deployment_id))

    def _take(self, fetch: _Fetch, found: IndexFound | ChunkFound | None, now_ms: int) -> None:
        if isinstance(found, IndexFound):
            fetch.partial = self._files.begin(found.blob, found.index)
            fetch.core.resume(fetch.partial.present, now_ms)
        elif isinstance(found, ChunkFound) and fetch.partial:
            fetch.partial.write(found.number, found.data)
        if found is not None and fetch.core.is_complete and fetch.core.index and fetch.core.blob:
            fetch.close()
            fetch.is_assembling = True
            faults.reach("fetch.chunks_complete")
            self._around.assemble(fetch.core.blob, fetch.core.index, fetch.core.file)

    def _stumble(self, fetch: _Fetch, error: Exception, now_ms: int) -> None:
        """Try again after a rest, or fail every release that needs the file."""
        code = error.code if isinstance(error, ProtocolError | AgentError) else "disk"
        reason = Reason.of(code, str(error))
        _log.warning("file %s: %s", fetch.core.file.digest[:12], reason.message)
        fetch.close()
        fetch.attempts += 1
        if fetch.attempts < MAX_ATTEMPTS:
            is_lie = isinstance(error, ProtocolError)
            if isinstance(error, DiskQuotaError | DiskFullError) and not self._around.make_room():
                self._around.post(Squeezed())
            fetch.resting_until_ms = now_ms + (0 if is_lie else REST_MS)
            fetch.core.restart(reason, fetch.resting_until_ms, is_lie=is_lie)
            return
        self._fetches.pop(fetch.core.file.digest, None)
        for release in list(self._releases.values()):
            if fetch.core.file in release.files:
                action = release.action
                del self._releases[action.deployment_id]
                self._around.post(Failed(model=action.model, deployment_id=action.deployment_id, reason=reason))

    def _report(self, release: _Release, now_ms: int) -> None:
        if release.candidate is None and release.action.manifest.digest not in self._fetches:
            return
        if now_ms - release.posted_ms < PROGRESS_INTERVAL_MS:
            return
        done = total = 0
        waiting = None
        for file in release.files:
            fetch = self._fetches.get(file.digest)
            done += fetch.core.done_bytes if fetch else file.size
            total += fetch.core.total_bytes if fetch else file.size
            waiting = waiting or (fetch.core.problem if fetch else None)
        progressed = Progressed(
            model=release.action.model,
            deployment_id=release.action.deployment_id,
            progress=Progress(done_bytes=done, total_bytes=total),
            waiting=waiting,
        )
        if progressed != release.posted:
            release.posted, release.posted_ms = progressed, now_ms
            self._around.post(progressed)

    def _listen(self, now_ms: int) -> None:
        topics: dict[str, int] = {}
        for fetch in self._fetches.values():
            if fetch.resting_until_ms <= now_ms and not fetch.is_assembling:
                topics |= fetch.core.topics()
        if topics != self._listening:
            self._listening = topics
            self._around.listen(topics)
