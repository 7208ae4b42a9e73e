"""How the service's log looks on stderr: one line for each event, its fields as `name=value`."""

import logging
import sys
import time
from enum import StrEnum

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogLevel(StrEnum):
    """The least important events that are shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class EventFormatter(logging.Formatter):
    """`2026-03-01T12:00:00Z INFO ready api_url=http://127.0.0.1:8470`."""

    converter = time.gmtime  # type: ignore[assignment] # a default that the base class does not use
    default_time_format = "%Y-%m-%dT%H:%M:%SZ"
    default_msec_format = None

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of the standard library
        """Return the event with its fields. What others wrote, such as a topic, neither ends the line nor paints."""
        fields = (f" {name}={value}" for name, value in vars(record).items() if name not in _STANDARD)
        line = super().formatMessage(record) + "".join(fields)
        return line if line.isprintable() else "".join(map(_printable, line))


def _printable(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def log_to_stderr(level: LogLevel) -> None:
    """Write our own events from `level` on to stderr, and of other packages what needs attention."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("controller").setLevel(level.upper())
