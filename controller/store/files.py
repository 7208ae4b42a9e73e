"""Files by their SHA-256 on the service's disk, and the blobs cut from them.

A file has its name only when its content is whole, verified and on the disk. Owns `<folder>/<digest>`, and for the
form in which it travels `<folder>/blobs/<blob>.index` and `.data`.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from agent import durable
from protocol import chunks, limits
from protocol.chunks import ChunkIndex
from protocol.errors import DigestError, LimitExceededError
from protocol.identifiers import Digest


class Upload:
    """One file on its way in; `commit` gives it its name. As a context manager it leaves nothing half-done."""

    def __init__(self, folder: Path, digest: Digest, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._target = folder / digest
        self._digest = digest
        self._hash = hashlib.sha256()
        descriptor, path = tempfile.mkstemp(dir=folder / "incoming")
        self._path = Path(path)
        self._stream: IO[bytes] = os.fdopen(descriptor, "wb")
        self.size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()
        self._path.unlink(missing_ok=True)

    def write(self, piece: bytes) -> None:
        """Add `piece`; raises LimitExceededError."""
        self.size_bytes += len(piece)
        if self.size_bytes > self._limit_bytes:
            raise LimitExceededError(f"expected a file of at most {self._limit_bytes:,} bytes, got more")
        self._hash.update(piece)
        self._stream.write(piece)

    def commit(self) -> None:
        """Give the file its name; raises DigestError unless it is what its digest says."""
        found = self._hash.hexdigest()
        if found != self._digest:
            raise DigestError(f"expected a file with SHA-256 {self._digest}, got {found}: send it again")
        durable.sync(self._stream)
        durable.rename(self._path, self._target)


class FileStore:
    """The files and blobs of one service."""

    def __init__(self, folder: Path, *, limit_bytes: int = limits.MAX_FILE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._folder = folder
        self._blobs = folder / "blobs"
        shutil.rmtree(folder / "incoming", ignore_errors=True)
        for path in (folder, folder / "incoming", self._blobs):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: Digest) -> Path:
        """Return where the file is, or would be."""
        return self._folder / digest

    def has(self, digest: Digest) -> bool:
        """Return whether the file is there."""
        return self.path(digest).is_file()

    def read(self, digest: Digest) -> bytes:
        """Return the whole file; raises OSError."""
        return self.path(digest).read_bytes()

    def names(self) -> list[Path]:
        """Return the paths of all files and of all that was cut from them."""
        return [path for folder in (self._folder, self._blobs) for path in folder.iterdir() if path.is_file()]

    def upload(self, digest: Digest) -> Upload:
        """Return the way in for one file."""
        return Upload(self._folder, digest, self.limit_bytes)

    def cut(self, digest: Digest) -> tuple[Digest, ChunkIndex]:
        """Make the file ready to publish and keep the result; raises OSError or DigestError."""
        data = self.read(digest)
        blob = chunks.cut(data)
        if blob.index.digest != digest:
            raise DigestError(f"the service's copy of file {digest[:12]} is damaged: upload it again")
        if blob.index.encoding != "identity":
            self._keep(f"{blob.blob}.data", blob.encoded)
        self._keep(f"{blob.blob}.index", blob.index.to_bytes())
        return blob.blob, blob.index

    def index(self, blob: Digest) -> ChunkIndex:
        """Return the index of a blob that was cut; raises OSError or ProtocolError."""
        return ChunkIndex.from_bytes((self._blobs / f"{blob}.index").read_bytes(), blob)

    def chunk(self, blob: Digest, index: ChunkIndex, number: int) -> bytes:
        """Return one chunk; raises OSError, or DigestError when the disk changed it."""
        path = self.path(index.digest) if index.encoding == "identity" else self._blobs / f"{blob}.data"
        with path.open("rb") as stream:
            stream.seek(number * index.chunk_bytes)
            chunk = stream.read(index.length_of(number))
        index.check(number, chunk)
        return chunk

    def _keep(self, name: str, data: bytes) -> None:
        with tempfile.NamedTemporaryFile(dir=self._folder / "incoming", delete=False) as stream:
            stream.write(data)
            durable.sync(stream)
            durable.rename(Path(stream.name), self._blobs / name)
