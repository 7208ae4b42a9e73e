"""Inputs on which a release went wrong, one file each, as long as the device's owner allows some.

A capture is one line of JSON (what happened, the release's manifest, the caps), then the raw tensors in the order of
the release's inputs. Each kind of fault at each place of a release is captured once. When there is no more room, the
oldest capture goes.
"""

import hashlib
import platform
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from agent import durable
from agent.errors import AgentError
from agent.runtime import runtime_name
from agent.runtime.sandbox import Caps
from protocol import limits
from protocol.errors import ProtocolError
from protocol.manifest import Manifest

FOLDER_NAME: Final = "captures"
SUFFIX: Final = ".capture"
SCHEMA: Final = 1
MAX_HEAD_BYTES: Final = limits.MAX_MANIFEST_BYTES + 64 * limits.KIB
END_OF_TIME_MS: Final = 253_402_300_800_000
"""The year 10000: later moments cannot be written as dates."""

Isolation = Literal["thread", "process"]


class CaptureError(AgentError):
    """The file is not a capture that this agent can read."""

    code = "bad_capture"


class FaultFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What happened. `layer` is empty when no function near it has a name."""

    code: str
    kind: str
    layer: str
    offset: int
    message: str
    input_digest: str
    at_ms: Annotated[int, msgspec.Meta(ge=0, lt=END_OF_TIME_MS)]


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a capture."""

    schema: int
    fault: FaultFacts
    manifest: Manifest
    caps: Caps
    isolation: Isolation
    runtime: str
    arch: str


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """A whole capture."""

    head: Head
    inputs: list[bytes]


class Captures:
    """The folder of captures. It keeps none until it is allowed to. Safe to use from many threads."""

    def __init__(self, folder: Path, *, isolation: Isolation = "thread") -> None:
        self._folder = folder
        self._isolation = isolation
        self._lock = threading.Lock()
        self._max_count = self._max_bytes = 0

    def allow(self, max_count: int, max_bytes: int) -> None:
        """Keep so many from now on, of so many bytes together; what is there stays until the next one comes."""
        with self._lock:
            self._max_count, self._max_bytes = max_count, max_bytes

    def add(self, manifest: Manifest, caps: Caps, inputs: Sequence[bytes], fault: FaultFacts) -> str | None:
        """Keep one, unless there is one of this fault or no room; return the name of the file. Raises OSError."""
        key = (manifest.model, manifest.version, fault.kind, fault.layer, fault.offset)
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
        path = self._folder / f"{manifest.model}-{manifest.version}-{digest}{SUFFIX}"
        with self._lock:
            if self._max_count == 0:
                return None
            if path.exists():
                return path.name
            head = Head(
                schema=SCHEMA,
                fault=fault,
                manifest=manifest,
                caps=caps,
                isolation=self._isolation,
                runtime=runtime_name(),
                arch=platform.machine(),
            )
            raw = b"".join((msgspec.json.encode(head), b"\n", *inputs))
            if len(raw) > self._max_bytes:
                return None
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._make_room(len(raw))
            durable.replace(path, raw)
        return path.name

    def _make_room(self, size_bytes: int) -> None:
        kept = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in capture_files(self._folder))
        used = sum(size for _, size, _ in kept)
        count = len(kept)
        for _, size, path in kept:
            if count < self._max_count and used + size_bytes <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            used, count = used - size, count - 1


def capture_files(folder: Path) -> list[Path]:
    """Return the captures in `folder`, by name."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def read_head(path: Path) -> Head:
    """Return what a capture says about itself; raises CaptureError or OSError."""
    with path.open("rb") as file:
        line = file.readline(MAX_HEAD_BYTES + 1)
    try:
        head = msgspec.json.decode(line, type=Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ProtocolError) as error:
        raise CaptureError(f"{path} is not a capture: {error}") from error
    if head.schema != SCHEMA or not line.endswith(b"\n"):
        raise CaptureError(f"{path}: expected a whole capture of schema {SCHEMA}, got schema {head.schema}")
    return head


def read_capture(path: Path) -> Capture:
    """Return a capture whose input is what it was; raises CaptureError or OSError."""
    head = read_head(path)
    sizes = [tensor.size_bytes for tensor in head.manifest.inputs]
    with path.open("rb") as file:
        file.readline()
        inputs = [file.read(size) for size in sizes]
        is_over = not file.read(1)
    digest = hashlib.sha256(b"".join(inputs)).hexdigest()
    if not is_over or [len(data) for data in inputs] != sizes or digest != head.fault.input_digest:
        raise CaptureError(f"{path} is damaged: its tensors are not those whose digest it names")
    return Capture(head=head, inputs=inputs)
