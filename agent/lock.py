"""One agent at a time on a state folder."""

import fcntl
import os
from pathlib import Path

from agent.errors import AgentError


def lock_folder(state_dir: Path) -> int:
    """Return the lock that only one agent of a state folder holds; on the folder itself, which takes no room."""
    descriptor = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise AgentError(f"another fleet-agent runs on {state_dir}: stop it first, or name another --state") from error
    return descriptor
