"""Named points at which a test may cut the power: around every durable write and every phase of an installation.

`FLEET_FAULT=name` kills the process with SIGKILL the first time it reaches that point, `name:3` the third time.
Without the variable a point costs one comparison. Nothing but the environment can set it.
"""

import os
import signal
from typing import Final

POINTS: Final = (
    "state.before_commit",
    "state.after_commit",
    "receipts.before_publish",
    "receipts.after_publish",
    "ack.before_delete",
    "telemetry.stored",
    "trust.before_persist",
    "trust.after_persist",
    "trust.floors_stored",
    "fetch.blob_begun",
    "fetch.chunk_written",
    "fetch.chunks_complete",
    "fetch.before_rename",
    "fetch.after_rename",
    "fetch.file_complete",
    "install.planned",
    "install.verified",
    "install.compiled",
    "install.tested",
    "activate.before_swap",
    "activate.after_swap",
    "commit.before",
    "commit.after",
    "rollback.before",
    "rollback.after",
    "remove.before_unload",
    "collect.before",
    "collect.after_unlink",
)
"""Every point there is."""

_name, _, _nth = os.environ.get("FLEET_FAULT", "").partition(":")
_left = int(_nth) if _nth.isdecimal() else 1

if _name and _name not in POINTS:
    raise SystemExit(f"FLEET_FAULT: expected one of {', '.join(POINTS)}, got {_name!r}")


def reach(point: str) -> None:
    """Die here when the environment says so."""
    global _left  # noqa: PLW0603 - counted per process, like the death that it leads to
    if point == _name:
        _left -= 1
        if _left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
