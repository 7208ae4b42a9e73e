"""What signals ask of the agent: to end (SIGTERM, SIGINT), or to read its policy again (SIGHUP)."""

import signal
from collections.abc import Callable

import msgspec


class Stop(msgspec.Struct, frozen=True):
    """The agent is to end."""


class Reload(msgspec.Struct, frozen=True):
    """The agent is to read its policy again."""


def listen(tell: Callable[[Stop | Reload], None]) -> None:
    """Let signals be told from now on, from within their handlers. From the main thread."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: tell(Stop()))
    signal.signal(signal.SIGHUP, lambda *_: tell(Reload()))
