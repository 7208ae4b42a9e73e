"""A disk that takes nothing: told apart from a mistake of ours, because somebody else has to mend it."""

import errno
import sqlite3

from sqlalchemy.exc import OperationalError

_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
_SQLITE_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR})
_PRIMARY = 0xFF
"""The low byte of an extended result code, see https://sqlite.org/rescode.html."""


def disk_fault(error: Exception) -> str | None:
    """Return in words why the disk took nothing, or None when that is not what `error` says."""
    if isinstance(error, OperationalError) and isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", 0)  # the driver sets it on errors of the library alone
        return str(error.orig) if code & _PRIMARY in _SQLITE_CODES else None
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return error.strerror
    return None
