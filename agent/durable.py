"""Files of mode 0600 that are whole or absent after a loss of power: content first, then the name, then the folder."""

import os
from pathlib import Path
from typing import IO


def create(path: Path, data: bytes) -> None:
    """Write a file that did not exist; raises FileExistsError, or OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            sync(file)
    except BaseException:  # such as a disk that is full, which half a file would keep full
        path.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Write a file in place of the old one: a reader, and a loss of power, sees one or the other; raises OSError."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.unlink(missing_ok=True)
    create(draft, data)
    rename(draft, path)


def rename(draft: Path, path: Path) -> None:
    """Give a file whose content is durable its name, in place of whatever has it; raises OSError."""
    draft.replace(path)
    sync_folder(path.parent)


def sync(file: IO[bytes]) -> None:
    """Make what was written to an open file durable; raises OSError."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
