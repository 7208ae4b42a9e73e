"""The `fleetctl` command as installed: starts the command line, or says what to install.

The base installation is a device's and has none of the controller's packages; this file needs only Python.
"""

import os
import signal
import sys
from collections.abc import Callable

EXTRA_PACKAGES = frozenset({"alembic", "httpx", "litestar", "numpy", "onnx", "rich", "sqlalchemy", "typer", "uvicorn"})
"""The top-level packages that come with `wasmfleet[controller]`."""


def main() -> None:
    """Run `fleetctl` and exit."""
    run = _load()
    run()


def _load() -> Callable[[], None]:
    """Return the command line; Ctrl-C while it loads ends the process at once and without a word."""
    is_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # it may be ignored, as by nohup
    if is_interruptible:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # nothing has begun that could be left half done
    try:
        from controller.cli.app import run  # noqa: PLC0415 - the packages that it needs may be missing
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA_PACKAGES:
            raise
        sys.stderr.write(
            f"error: fleetctl needs the package {missing!r}, which a device does without\n"
            "hint: pip install 'wasmfleet[controller]'\n"
        )
        sys.exit(1)
    if is_interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run
