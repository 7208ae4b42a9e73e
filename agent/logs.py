"""The device's own log: JSON lines in `agent.log`, rotated, and readable lines on standard error.

One event is one line with a time, a level, the part of the agent and a message. Keys, tokens, payloads and tensors
never appear.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

import msgspec

FILE_NAME: Final = "agent.log"
MAX_BYTES: Final = 1 << 20
BACKUPS: Final = 2


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the log."""

    at: str
    level: str
    part: str
    message: str
    error: str = ""

    def __str__(self) -> str:
        text = f"{self.at} {self.level:<7} {self.part}: {self.message}"
        return f"{text}\n{self.error}" if self.error else text


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = LogLine(
            at=at,
            level=record.levelname.lower(),
            part=record.name.removeprefix("agent."),
            message=record.getMessage(),
            error=self.formatException(record.exc_info) if record.exc_info else "",
        )
        return msgspec.json.encode(line).decode()


class _Readable(_JsonLines):
    def format(self, record: logging.LogRecord) -> str:
        return str(msgspec.json.decode(super().format(record), type=LogLine))


def start_logging(state_dir: Path, level: int = logging.INFO) -> list[logging.Handler]:
    """Write the log of `agent` from now on; return the handlers, for whoever closes them."""
    to_file = _LogFile(state_dir / FILE_NAME)
    to_file.setFormatter(_JsonLines())
    to_screen = logging.StreamHandler(sys.stderr)
    to_screen.setFormatter(_Readable())
    logger = logging.getLogger("agent")
    logger.setLevel(level)
    logger.propagate = False
    logger.handlers[:] = [to_file, to_screen]
    return logger.handlers[:]


class _LogFile(RotatingFileHandler):
    """Leaves out what the disk does not take: a full disk must not keep an agent from serving."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8", delay=True)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, ARG002 - the standard library's
        """Begin with a fresh line when there is room again; standard error has the event meanwhile."""
        if self.stream:
            stream, self.stream = self.stream, None  # as after `close`: opened anew
            with contextlib.suppress(OSError):
                stream.close()


def last_lines(state_dir: Path, count: int) -> list[LogLine]:
    """Return the newest `count` lines, oldest first; lines that a loss of power cut off are left out."""
    lines: list[LogLine] = []
    for path in (state_dir / FILE_NAME, *(state_dir / f"{FILE_NAME}.{n}" for n in range(1, BACKUPS + 1))):
        if len(lines) < count and path.exists():
            lines = [line for raw in path.read_bytes().splitlines() if (line := _parsed(raw))] + lines
    return lines[-count:]


def follow(state_dir: Path, poll_s: float = 0.25) -> Iterator[LogLine]:
    """Yield lines as they are written from now on, also across rotation; for ever."""
    path = state_dir / FILE_NAME
    return _follow(path, path.stat().st_size if path.exists() else 0, poll_s)


def _follow(path: Path, offset: int, poll_s: float) -> Iterator[LogLine]:
    while True:
        time.sleep(poll_s)
        size = path.stat().st_size if path.exists() else 0
        offset = 0 if size < offset else offset  # rotated: a new file
        if size > offset:
            with path.open("rb") as file:
                file.seek(offset)
                whole, newline, _ = file.read().rpartition(b"\n")
            offset += len(whole) + len(newline)
            yield from (line for raw in whole.splitlines() if (line := _parsed(raw)))


def _parsed(raw: bytes) -> LogLine | None:
    try:
        return msgspec.json.decode(raw, type=LogLine)
    except msgspec.DecodeError:
        return None
