"""The slow work, as jobs for the worker: what each of them puts into the daemon's inbox when it has ended."""

import logging
from collections.abc import Callable

import msgspec

from agent.engine.actions import Compile, Download, Test, Verify
from agent.engine.events import Event
from agent.errors import AgentError
from agent.files import Files
from agent.installer import Installer
from protocol.chunks import ChunkIndex
from protocol.errors import ProtocolError
from protocol.identifiers import Digest
from protocol.manifest import FileRef

_log = logging.getLogger(__name__)


class Done(msgspec.Struct, frozen=True):
    """A step of an installation ended."""

    event: Event


class Assembled(msgspec.Struct, frozen=True):
    """A complete blob became its file, or could not."""

    file: FileRef
    error: ProtocolError | AgentError | OSError | None


class Tidied(msgspec.Struct, frozen=True):
    """Something that is not needed any more is gone."""


Result = Done | Assembled | Tidied


class Jobs:
    """Submits jobs; they run one after another, in this order."""

    def __init__(self, submit: Callable[[Callable[[], Result]], None], installer: Installer, files: Files) -> None:
        self._submit = submit
        self._installer = installer
        self._files = files

    def plan(self, action: Download) -> None:
        """Read the manifest and choose the variant."""
        self._submit(lambda: Done(self._installer.plan(action)))

    def verify(self, action: Verify) -> None:
        """Check every file."""
        self._submit(lambda: Done(self._installer.verify(action)))

    def compile(self, action: Compile) -> None:
        """Compile and instantiate."""
        self._submit(lambda: Done(self._installer.compile(action)))

    def test(self, action: Test) -> None:
        """Run the self-test."""
        self._submit(lambda: Done(self._installer.test(action)))

    def abandon(self, deployment_id: str) -> None:
        """Drop the compiled model of a deployment."""
        self._submit(lambda: self._tidied(lambda: self._installer.abandon(deployment_id)))

    def prune(self, keep: frozenset[Digest]) -> None:
        """Delete compiled modules that belong to none of the files `keep`; not while another one is compiled."""
        self._submit(lambda: self._tidied(lambda: self._installer.prune(keep)))

    def assemble(self, blob: Digest, index: ChunkIndex, file: FileRef) -> None:
        """Turn a complete blob into its file."""
        self._submit(lambda: Assembled(file, self._assembled(blob, index, file)))

    def _tidied(self, job: Callable[[], None]) -> Tidied:
        job()
        return Tidied()

    def _assembled(self, blob: Digest, index: ChunkIndex, file: FileRef) -> ProtocolError | AgentError | OSError | None:
        try:
            self._files.assemble(blob, index, file)
        except (ProtocolError, AgentError, OSError) as error:
            return error
        except Exception as error:  # noqa: BLE001 - the worker lives on
            _log.exception("unexpected error while assembling file %s", file.digest[:12])
            return AgentError(f"unexpected {type(error).__name__}: see the device's log")
        return None
