"""One service for one database: a second one is refused."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controller.errors import ConflictError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`; raises ConflictError when another process does.

    The kernel lets go when the process dies, however it dies.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another service runs on {path.parent}", hint="stop it first, or serve another workspace"
            ) from error
        yield
    finally:
        os.close(descriptor)
