"""Ports for servers of tests that are started after the test has chosen them, and perhaps more than once.

They lie below those that the kernel gives to connections: one of these could be gone while a server is down.
"""

import random
import socket
from pathlib import Path

_LOWEST = 10_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Return ports that nothing uses now."""
    end = int(_EPHEMERAL.read_text().split()[0])
    candidates = random.SystemRandom().sample(range(_LOWEST, end), 100 * count)
    return [port for port in candidates if _is_free(port)][:count]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
