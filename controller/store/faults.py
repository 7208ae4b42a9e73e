"""A disk that takes nothing or fails: told apart from a mistake of ours, because somebody else has to mend it."""

import errno
import sqlite3
from typing import NamedTuple

from sqlalchemy.exc import OperationalError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_SQLITE_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY})
_PRIMARY = 0xFF
"""The low byte of an extended result code, see https://sqlite.org/rescode.html."""


class DiskFault(NamedTuple):
    """What is wrong with the disk."""

    words: str
    takes_nothing: bool
    """It is full, or may not be written: nothing was changed. Else it fails, at reading or writing."""


def disk_fault(error: Exception) -> DiskFault | None:
    """Return what is wrong with the disk, or None when that is not what `error` says."""
    if isinstance(error, OperationalError) and isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", 0) & _PRIMARY  # the driver sets it on the library's own alone
        if code in _SQLITE_FULL or code == sqlite3.SQLITE_IOERR:
            return DiskFault(str(error.orig), code in _SQLITE_FULL)
    if isinstance(error, OSError) and (error.errno in _FULL or error.errno == errno.EIO):
        return DiskFault(error.strerror or str(error), error.errno in _FULL)
    return None
