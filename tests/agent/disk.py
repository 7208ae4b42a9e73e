"""A real, small file system for one test: it can be filled to the last byte and made read-only."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PAGE_BYTES = 4096


class Disk:
    """A mounted tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self, *, free_bytes: int = 0) -> None:
        """Leave only `free_bytes`, in whole pages."""
        with self._filler.open("ab", buffering=0) as file:
            for piece in (1 << 20, _PAGE_BYTES):
                while True:
                    try:
                        file.write(bytes(piece))
                    except OSError:
                        break
            if free_bytes:
                file.truncate(file.tell() - free_bytes)

    def free(self) -> None:
        """Give everything back that `fill` took."""
        self._filler.unlink()

    def remount(self, mode: str) -> None:
        """Make it read-only (`ro`), or writable again (`rw`)."""
        subprocess.run(["mount", "-o", f"remount,{mode}", self.folder], check=True)


@contextmanager
def mounted(folder: Path, size_bytes: int) -> Iterator[Disk]:
    """Mount a disk of that size at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", folder], check=True)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
