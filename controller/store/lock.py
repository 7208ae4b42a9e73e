"""One service for one database: a second one is refused."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controller.errors import ConflictError


@contextmanager
def one_service(folder: Path) -> Iterator[None]:
    """Hold the lock of a server's folder; raises ConflictError when another process does.

    The kernel lets go when the process dies, however it dies.
    """
    descriptor = os.open(folder / "service.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another service runs on {folder}", hint="stop it first, or serve another workspace"
            ) from error
        yield
    finally:
        os.close(descriptor)
