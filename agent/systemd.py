"""What a service manager is told: that the agent is ready, alive, reloading, stopping; and the unit that it is run by.

Source: sd_notify(3). Without a NOTIFY_SOCKET in the environment nothing is said.
"""

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

UNIT_NAME: Final = "fleet-agent.service"
_PROGRAM: Final = "/opt/fleet/bin/fleet-agent"
"""What the unit names until it is printed by an agent that is installed elsewhere."""


class Systemd:
    """Tells the service manager that started this process, if one did. Never raises."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        # Taken out, so that no child speaks in the agent's place.
        address = environ.pop("NOTIFY_SOCKET", "")
        watchdog_us, watchdog_pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        is_ours = watchdog_pid in ("", str(os.getpid()))
        self.interval_ms: int | None = None
        """How often `alive` wants to be called, or None when nobody listens."""
        if self._address and is_ours and watchdog_us.isdecimal():
            self.interval_ms = max(int(watchdog_us) // 3000, 1)
        self._alive_ms: int | None = None

    def ready(self, status: str) -> None:
        """Say that requests are answered from now on, at the start and after a reload."""
        self._tell("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Say in a line how the agent fares."""
        self._tell(f"STATUS={status}")

    def alive(self, now_ms: int) -> None:
        """Say that the main loop runs; call it from there, as often as you like."""
        if self.interval_ms is None or (self._alive_ms is not None and now_ms - self._alive_ms < self.interval_ms):
            return
        self._alive_ms = now_ms
        self._tell("WATCHDOG=1")

    def reloading(self) -> None:
        """Say that the configuration is being read again; `ready` ends it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Say that the agent ends."""
        self._tell("STOPPING=1", "STATUS=stopping")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        # A manager that does not listen must not stop the agent.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
            s.setblocking(False)
            s.sendto("\n".join(line.replace("\n", " ") for line in lines).encode(), self._address)


def unit(program: Path) -> str:
    """Return a unit file that runs `program`. Source: systemd.service(5), command lines."""
    text = str(program).replace("%", "%%")
    return Path(__file__).with_name(UNIT_NAME).read_text().replace(_PROGRAM, f'"{text}"' if " " in text else text)


def hidden_by_unit(program: Path) -> bool:
    """Return whether the service would not see `program`: the unit hides what belongs to users (ProtectHome)."""
    return any(program.is_relative_to(folder) for folder in ("/home", "/root", "/run/user"))
