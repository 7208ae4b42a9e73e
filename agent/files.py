"""Files on the device's disk, named by their SHA-256, and those that are still arriving.

A file has its name only when all of it is there, hashed and synced. An arriving blob lies in `partial/`, and the chunk
index serves as its journal: after a restart every chunk that hashes to what the index names is kept. Nothing is
written beyond the disk quota.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from agent import durable, faults
from agent.errors import CorruptFileError, DiskFullError, DiskQuotaError
from protocol.chunks import ChunkIndex
from protocol.compression import Decompressor
from protocol.errors import DigestError, ProtocolError
from protocol.identifiers import Digest
from protocol.manifest import FileRef

_Read = Callable[[int], bytes]
_Write = Callable[[bytes], object]
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LOST: Final = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EREMOTEIO})
"""What a disk answers that cannot give back what was written to it."""
RESERVE_BYTES: Final = 4 << 20
"""What a download leaves free: the agent's own memory must go on being written while models fill the disk."""
_SYNC_BYTES: Final = 1 << 20
"""A loss of power costs at most about this much of a download."""


class Files:
    """The folder of files. Reading and assembling may happen on another thread than the rest."""

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        self._folder = folder
        self._partials = folder / "partial"
        self.quota_bytes = quota_bytes
        """What the device's policy allows now."""
        self._partials.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.tmp"):
            path.unlink()

    def has(self, file: FileRef) -> bool:
        """Return whether a file of that name and size is here; `read` is what verifies it."""
        try:
            return (self._folder / file.digest).stat().st_size == file.size
        except FileNotFoundError:
            return False

    def read(self, file: FileRef) -> bytes:
        """Return the content; raises CorruptFileError unless it hashes to its name.

        What does not, or what the disk itself has lost, is forgotten, so that it is fetched again. What cannot be read
        for another reason stays: it may be good.
        """
        path = self._folder / file.digest
        try:
            data = path.read_bytes()
        except OSError as error:
            if error.errno in _LOST:
                _forget(path)
            raise CorruptFileError(f"cannot read file {file.digest[:12]}: {error}") from error
        if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.digest:
            _forget(path)
            raise CorruptFileError(f"file {file.digest[:12]} on the disk is damaged; it was deleted")
        return data

    def begin(self, blob: Digest, index: ChunkIndex) -> "Partial":
        """Open the place of an arriving blob, with what is left of an earlier attempt.

        Raises:
            DiskQuotaError: the blob and its file would go beyond the quota.
            DiskFullError: there is no room for the blob and its file.
        """
        path = self._partials / blob
        needed = index.encoded_size + index.size - (path.stat().st_size if path.exists() else 0)
        used = self.used_bytes()
        if used + needed > self.quota_bytes:
            raise DiskQuotaError(
                f"expected at most {self.quota_bytes:,} bytes of model files, got {used:,} and {needed:,} more: "
                f"raise disk_quota_bytes in the device's policy, or remove models"
            )
        self._require_room(needed)
        with _disk_errors():
            partial = Partial(path, index)
        faults.reach("fetch.blob_begun")
        return partial

    def assemble(self, blob: Digest, index: ChunkIndex, file: FileRef) -> None:
        """Turn a complete blob into the file that it holds; on any error the blob is gone.

        Raises:
            DigestError: what comes out is not `file`.
            MalformedError, LimitExceededError: nothing sensible comes out.
            DiskFullError: there is no room for the file.
        """
        source = self._partials / blob
        draft = self._folder / f"{file.digest}.tmp"
        try:
            with _disk_errors(), source.open("rb") as pieces, draft.open("wb") as out:
                self._decode(pieces.read, index, file, out.write)
                durable.sync(out)
            faults.reach("fetch.before_rename")
            durable.rename(draft, self._folder / file.digest)
            faults.reach("fetch.after_rename")
            self.forget_partial(blob)
        except ProtocolError:
            self.forget_partial(blob)
            raise
        finally:
            draft.unlink(missing_ok=True)
        faults.reach("fetch.file_complete")

    def forget_partial(self, blob: Digest) -> None:
        """Delete what arrived of a blob."""
        (self._partials / blob).unlink(missing_ok=True)

    def collect(self, keep: frozenset[Digest], keep_blobs: frozenset[Digest]) -> int:
        """Delete every file but `keep` and every arriving blob but `keep_blobs`; return the bytes set free."""
        faults.reach("collect.before")
        freed = 0
        for folder, wanted in ((self._folder, keep), (self._partials, keep_blobs)):
            for path in folder.iterdir():
                if path.is_file() and path.suffix != ".tmp" and path.name not in wanted:
                    freed += path.stat().st_size
                    path.unlink()
                    faults.reach("collect.after_unlink")
        return freed

    def used_bytes(self) -> int:
        """Return the size of everything here."""
        return sum(
            p.stat().st_size for folder in (self._folder, self._partials) for p in folder.iterdir() if p.is_file()
        )

    def _require_room(self, needed_bytes: int) -> None:
        disk = os.statvfs(self._folder)
        free_bytes = disk.f_bavail * disk.f_frsize
        if free_bytes < needed_bytes + RESERVE_BYTES:
            raise DiskFullError(
                f"the disk is too full: expected {needed_bytes + RESERVE_BYTES:,} bytes of room, {RESERVE_BYTES:,} of "
                f"them to stay free, got {free_bytes:,}: free some space; the download then goes on"
            )

    def _decode(self, read: _Read, index: ChunkIndex, file: FileRef, write: _Write) -> None:
        what = f"blob of file {file.digest[:12]}"
        frame = Decompressor(limit_bytes=file.size, what=what) if index.encoding == "zstd" else None
        digest = hashlib.sha256()
        size = 0
        while piece := read(index.chunk_bytes):
            out = frame.feed(piece) if frame else piece
            size += len(out)
            digest.update(out)
            write(out)
        if frame:
            frame.finish()
        if size != file.size or digest.hexdigest() != file.digest:
            raise DigestError(f"the {what} holds another file: expected SHA-256 {file.digest}")


class Partial:
    """A blob that is arriving."""

    def __init__(self, path: Path, index: ChunkIndex) -> None:
        self.index = index
        self._unsynced_bytes = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(self._file).st_size == index.encoded_size:
                self.present = frozenset(self._verified_chunks())
            else:
                os.ftruncate(self._file, 0)
                os.posix_fallocate(self._file, 0, index.encoded_size)
                self.present = frozenset()
        except BaseException:
            os.close(self._file)
            path.unlink(missing_ok=True)
            raise

    def write(self, number: int, chunk: bytes) -> None:
        """Keep a chunk that was checked against the index; raises DiskFullError."""
        with _disk_errors():
            os.pwrite(self._file, chunk, number * self.index.chunk_bytes)
            self._unsynced_bytes += len(chunk)
            if self._unsynced_bytes >= _SYNC_BYTES:
                os.fdatasync(self._file)
                self._unsynced_bytes = 0
        faults.reach("fetch.chunk_written")

    def close(self) -> None:
        """Close the file. Closing twice does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _verified_chunks(self) -> Iterator[int]:
        for number in range(len(self.index.chunks)):
            chunk = os.pread(self._file, self.index.length_of(number), number * self.index.chunk_bytes)
            try:
                self.index.check(number, chunk)
            except DigestError:
                continue
            yield number


def _forget(path: Path) -> None:
    """Delete a damaged file, or at least take its name away: a directory can be sound where a file is not."""
    with suppress(OSError):  # else the next download of it fails, and says so
        path.unlink(missing_ok=True)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"the disk is full ({error.strerror}): free some space; the download then goes on"
            ) from error
        raise
