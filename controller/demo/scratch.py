"""The folder of a demo that keeps nothing, and what is left of demos that were killed.

A demo holds a lock on its folder, which ends with its process, and marks the folder as its own. A folder with the
mark and without the lock belongs to nobody: the next demo takes it away. One that a demo left behind on purpose, for
its logs, has no mark.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "fleet-demo-"
_MARK = "running"


@contextmanager
def scratch_folder(temporary: Path) -> Iterator[Path]:
    """Make a folder in `temporary`: gone when all went well and after Ctrl-C, kept after an error for its logs."""
    _clear_abandoned(temporary)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=temporary))
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)  # another demo may be looking at it: without the mark it leaves it alone
    try:
        (folder / _MARK).touch()
        yield folder
    except Exception:
        (folder / _MARK).unlink(missing_ok=True)
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _clear_abandoned(temporary: Path) -> None:
    """Take away the folders of demos that were killed; what belongs to another user or a running demo stays."""
    for folder in temporary.glob(f"{_PREFIX}*"):
        lock = _locked(folder)
        if lock is None:
            continue
        try:
            if (folder / _MARK).exists() and os.fstat(lock).st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """Return a descriptor of the folder, locked until it is closed, or None: it is no folder, or somebody's."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
