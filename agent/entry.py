"""The `fleet-agent` command as installed: loads the command line, so that Ctrl-C while it loads is no traceback."""

import os
import signal
import sys


def main() -> None:
    """Run `fleet-agent` and exit."""
    is_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # it may be ignored, as by nohup
    if is_interruptible:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # nothing has begun that could be left half done
    from agent.cli import main as run  # noqa: PLC0415 - it takes the time in which Ctrl-C may come

    if is_interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run())
