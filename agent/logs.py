"""The device's own log: JSON lines in `agent.log`, rotated, and lines on standard error in one of three forms.

One event is one line with a time, a level, the part of the agent and a message; what programs count or search for has a
name (`event`) and fields besides: one such line for each operation, when it has ended. Keys, tokens, payloads and
tensors never appear.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any, Final, Literal

import msgspec

FILE_NAME: Final = "agent.log"
MAX_BYTES: Final = 1 << 20
BACKUPS: Final = 2


LogFormat = Literal["auto", "text", "json", "journal"]
"""On standard error: `auto` is `journal` where systemd's journal reads it, else `text`."""
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


class LogLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of the log."""

    at: str
    level: str
    part: str
    message: str
    event: str = ""
    fields: dict[str, Any] = {}
    error: str = ""

    def __str__(self) -> str:
        text = f"{self.at} {self.level:<7} {self.part}: {self.message}"
        return f"{text}\n{self.error}" if self.error else text


def named(event: str, **fields: object) -> dict[str, object]:
    """Return the `extra` that gives a log line a name and fields."""
    return {"event": event, "fields": fields}


class _LogFile(RotatingFileHandler):
    """The log in the state folder. On a full disk it misses lines without a word for each: the screen has them."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is that of the standard library
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class _JsonLines(logging.Formatter):
    def line(self, record: logging.LogRecord) -> LogLine:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return LogLine(
            at=at,
            level=record.levelname.lower(),
            part=record.name.removeprefix("agent."),
            message=record.getMessage(),
            event=getattr(record, "event", ""),
            fields=getattr(record, "fields", {}),
            error=self.formatException(record.exc_info) if record.exc_info else "",
        )

    def format(self, record: logging.LogRecord) -> str:
        return msgspec.json.encode(self.line(record)).decode()


class _Readable(_JsonLines):
    def format(self, record: logging.LogRecord) -> str:
        return str(self.line(record))


class _Journal(_JsonLines):
    """Lines as sd-daemon(3) wants them: a priority, no time, and every line of a message for itself."""

    def format(self, record: logging.LogRecord) -> str:
        line = self.line(record)
        text = f"{line.part}: {line.message}\n{line.error}".rstrip()
        return "\n".join(f"<{_PRIORITIES[line.level]}>{part}" for part in text.splitlines())


_FORMATTERS: Final = {"text": _Readable, "json": _JsonLines, "journal": _Journal}


def start_logging(state_dir: Path, form: LogFormat = "auto", level: int = logging.INFO) -> list[logging.Handler]:
    """Write the log of `agent` from now on; return the handlers, for whoever closes them."""
    to_file = _LogFile(state_dir / FILE_NAME, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8")
    to_file.setFormatter(_JsonLines())
    to_screen = logging.StreamHandler(sys.stderr)
    if form == "auto":
        form = "journal" if _is_journal(sys.stderr, os.environ) else "text"
    to_screen.setFormatter(_FORMATTERS[form]())
    logger = logging.getLogger("agent")
    logger.setLevel(level)
    logger.propagate = False
    logger.handlers[:] = [to_file, to_screen]
    return logger.handlers[:]


def _is_journal(stream: IO[str], environ: Mapping[str, str]) -> bool:
    """Return whether `stream` goes to systemd's journal: systemd.exec(5), JOURNAL_STREAM."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # a test that captures it
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


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
