"""Files on the disk: whole, verified, within the quota; and arriving ones that survive a death in the middle."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import CorruptFileError, DiskFullError, DiskQuotaError
from agent.files import Files, _disk_errors
from protocol.chunks import Blob, cut
from protocol.codec import sha256
from protocol.errors import DigestError, LimitExceededError
from protocol.manifest import FileRef

RANDOM = random.Random(1).randbytes(100_000)
PLAIN = b"compressible " * 10_000


def fetched(files: Files, blob: Blob) -> FileRef:
    """Let `blob` arrive and become its file."""
    partial = files.begin(blob.blob, blob.index)
    for number in range(len(blob.index.chunks)):
        partial.write(number, blob.chunk(number))
    partial.close()
    file = FileRef(digest=blob.index.digest, size=blob.index.size)
    files.assemble(blob.blob, blob.index, file)
    return file


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """An empty folder with room for a megabyte."""
    return Files(tmp_path / "files", 1_000_000)


@pytest.mark.parametrize("data", [RANDOM, PLAIN, b"x"], ids=["identity", "zstd", "one byte"])
def test_file_that_arrived_is_read_back(files: Files, data: bytes, tmp_path: Path) -> None:
    """Compressed or not, what comes out is the file, and nothing else stays on the disk."""
    file = fetched(files, cut(data, 4096))
    assert files.has(file)
    assert data == files.read(file)
    assert [file.digest] == [p.name for p in (tmp_path / "files").rglob("*") if p.is_file()]


def test_damaged_file_is_noticed_and_forgotten(files: Files, tmp_path: Path) -> None:
    """A file that no longer hashes to its name is deleted, so that it is fetched again."""
    file = fetched(files, cut(RANDOM, 4096))
    path = tmp_path / "files" / file.digest
    path.write_bytes(RANDOM[:-1] + b"!")
    with pytest.raises(CorruptFileError):
        files.read(file)
    assert not files.has(file)
    with pytest.raises(CorruptFileError):
        files.read(file)


def test_file_that_cannot_be_read_just_now_is_kept(files: Files) -> None:
    """With no file descriptor left nothing is known about the file: it is read again, not fetched again."""
    file = fetched(files, cut(RANDOM, 4096))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(CorruptFileError, match="Too many open files"):
            files.read(file)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert RANDOM == files.read(file)


def test_file_that_was_cut_off_is_not_there(files: Files, tmp_path: Path) -> None:
    """The size is compared before a download is left out."""
    file = fetched(files, cut(RANDOM, 4096))
    os.truncate(tmp_path / "files" / file.digest, 10)
    assert not files.has(file)


@pytest.mark.property
@given(st.sets(st.integers(0, 24)), st.sets(st.integers(0, 24)))
def test_chunks_that_are_on_the_disk_are_found_again(written: set[int], spoilt: set[int]) -> None:
    """A new start keeps exactly the chunks that were written and are what the index names."""
    import tempfile  # noqa: PLC0415 - a folder for each example

    blob = cut(RANDOM, 4096)
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder), 1_000_000)
        partial = files.begin(blob.blob, blob.index)
        for number in written:
            partial.write(number, blob.chunk(number))
        partial.close()
        with (Path(folder) / "partial" / blob.blob).open("r+b") as file:
            for number in spoilt & written:
                file.seek(number * 4096)
                file.write(b"?")
        partial = Files(Path(folder), 1_000_000).begin(blob.blob, blob.index)
        assert written - spoilt == set(partial.present)
        partial.close()


def test_blob_of_another_file_is_refused_and_forgotten(files: Files, tmp_path: Path) -> None:
    """Whatever the index says, the file must hash to what was signed."""
    blob = cut(RANDOM, 4096)
    partial = files.begin(blob.blob, blob.index)
    for number in range(len(blob.index.chunks)):
        partial.write(number, blob.chunk(number))
    partial.close()
    with pytest.raises(DigestError, match="another file"):
        files.assemble(blob.blob, blob.index, FileRef(digest=sha256(b"wanted"), size=len(RANDOM)))
    assert [] == [p for p in (tmp_path / "files").rglob("*") if p.is_file()]


def test_bomb_is_stopped(files: Files) -> None:
    """A blob that decompresses to more than was signed ends there."""
    blob = cut(bytes(900_000), 4096)
    partial = files.begin(blob.blob, blob.index)
    for number in range(len(blob.index.chunks)):
        partial.write(number, blob.chunk(number))
    partial.close()
    with pytest.raises(LimitExceededError, match="larger than 1,000 bytes"):
        files.assemble(blob.blob, blob.index, FileRef(digest=blob.index.digest, size=1_000))


def test_quota_is_kept_before_anything_is_written(files: Files, tmp_path: Path) -> None:
    """A blob and its file must fit beside what is there."""
    large = cut(random.Random(2).randbytes(600_000), 65_536)
    with pytest.raises(DiskQuotaError, match="disk_quota_bytes"):
        files.begin(large.blob, large.index)
    assert 0 == files.used_bytes()


def test_quota_counts_a_blob_that_is_half_here_once(files: Files) -> None:
    """An interrupted download may go on in a folder that is nearly full."""
    blob = cut(random.Random(2).randbytes(490_000), 65_536)
    for _ in range(3):
        files.begin(blob.blob, blob.index).close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_has_an_error_of_its_own(number: int) -> None:
    """Each way in which a system says that there is no room means the same to us."""
    with pytest.raises(DiskFullError), _disk_errors():
        raise OSError(number, os.strerror(number))


def test_other_disk_errors_stay_what_they_are() -> None:
    """A broken disk is not a full one."""
    with pytest.raises(OSError, match="Input/output"), _disk_errors():
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_collection_keeps_what_is_referred_to(files: Files, tmp_path: Path) -> None:
    """Files and arriving blobs that nothing refers to are deleted, and the bytes are counted."""
    kept, gone = fetched(files, cut(b"kept", 4096)), fetched(files, cut(b"gone!", 4096))
    arriving, stale = cut(RANDOM, 4096), cut(RANDOM[1:], 4096)
    for blob in (arriving, stale):
        files.begin(blob.blob, blob.index).close()
    freed = files.collect(frozenset({kept.digest}), frozenset({arriving.blob}))
    assert files.has(kept)
    assert not files.has(gone)
    assert {arriving.blob} == {p.name for p in (tmp_path / "files/partial").iterdir()}
    assert 5 + len(RANDOM[1:]) == freed


_ASSEMBLER = """
import sys
from pathlib import Path
from agent.files import Files
from protocol.chunks import cut
from protocol.manifest import FileRef
data = Path(sys.argv[1]).read_bytes()
files = Files(Path(sys.argv[2]), 10_000_000)
blob = cut(data, 4096)
partial = files.begin(blob.blob, blob.index)
for number in range(len(blob.index.chunks)):
    if number not in partial.present:
        partial.write(number, blob.chunk(number))
partial.close()
files.assemble(blob.blob, blob.index, FileRef.of(data))
"""


@pytest.mark.parametrize("point", ["fetch.before_rename", "fetch.after_rename", "fetch.chunk_written:7"])
def test_death_while_a_file_is_made(tmp_path: Path, point: str) -> None:
    """Whenever the process dies, a file with a name is whole, and the next attempt ends with it."""
    (tmp_path / "data").write_bytes(RANDOM)
    argv = [sys.executable, "-c", _ASSEMBLER, str(tmp_path / "data"), str(tmp_path / "files")]
    died = subprocess.run(argv, env={**os.environ, "FLEET_FAULT": point}, check=False)
    assert -signal.SIGKILL == died.returncode
    files, file = Files(tmp_path / "files", 10_000_000), FileRef.of(RANDOM)
    if files.has(file):
        assert RANDOM == files.read(file)
    subprocess.run(argv, check=True)
    assert RANDOM == files.read(file)


def test_file_that_the_disk_cannot_read_is_forgotten_and_fetched_again(tmp_path: Path) -> None:
    """An input/output error of the kernel's own, as a worn out card gives it, is damage like a wrong content."""
    files = Files(tmp_path, 1 << 20)
    file = FileRef.of(b"content")
    (tmp_path / file.digest).symlink_to("/proc/self/mem")  # the first page is mapped nowhere: reading it gives EIO
    with pytest.raises(OSError, match="Input/output error"):
        (tmp_path / file.digest).read_bytes()
    with pytest.raises(CorruptFileError, match="Input/output error"):
        files.read(file)
    assert not (tmp_path / file.digest).is_symlink()


def test_file_that_cannot_be_opened_just_now_is_kept(tmp_path: Path) -> None:
    """Too many links, missing rights: the content may be good."""
    files = Files(tmp_path, 1 << 20)
    file = FileRef.of(b"content")
    path = tmp_path / file.digest
    path.symlink_to(path)
    with pytest.raises(CorruptFileError):
        files.read(file)
    assert path.is_symlink()
