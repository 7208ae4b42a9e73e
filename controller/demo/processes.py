"""The demo's processes: each with its own log, none left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from controller.child import tied
from controller.demo.ending import undisturbed
from controller.errors import ControllerError

_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.05


class DemoError(ControllerError):
    """A step of the demo did not end as it should."""

    code = "demo_failed"


def command(name: str) -> str:
    """Return the path of one of the project's own commands, of this very installation."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(name)
    if found is None:
        raise DemoError(f"`{name}` is not installed beside {sys.executable}")
    return found


class Process:
    """A background process whose output goes to a log file; killed or not, the demo takes it along when it ends."""

    def __init__(self, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = Path(argv[0]).name
        self.log = log
        with log.open("ab") as output:
            # The argument list is the demo's own: nothing in it comes from outside.
            self._popen = subprocess.Popen(  # noqa: S603
                tied(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    def is_alive(self) -> bool:
        """Return whether the process runs."""
        return self._popen.poll() is None

    def last_words(self) -> str:
        """Return the end of what the process printed."""
        return self.log.read_text(errors="replace")[-1500:]

    def wait_killed(self, timeout_s: float) -> None:
        """Wait until the process was killed by SIGKILL; raises DemoError when it was not."""
        try:
            status = self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"{self.name} should have been killed within {timeout_s:.0f} s") from error
        if status != -signal.SIGKILL:
            raise DemoError(f"{self.name} ended with status {status} instead of SIGKILL: see {self.log}")

    def stop(self) -> None:
        """Ask the process to end; kill it when it does not."""
        if not self.is_alive():
            return
        self._popen.terminate()
        try:
            self._popen.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill the process and its children at once, as a power cut does."""
        os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(_STOP_TIMEOUT_S)


def run(argv: Sequence[str], *, timeout_s: float, accept: tuple[int, ...] = (0,)) -> str:
    """Run a command to its end and return its standard output; raises DemoError with its last words."""
    typed = " ".join([Path(argv[0]).name, *argv[1:]])
    with ExitStack() as ending:
        with undisturbed():
            # The argument list is the demo's own: nothing in it comes from outside.
            child = ending.enter_context(
                subprocess.Popen(  # noqa: S603
                    argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
            ending.callback(child.wait)
            ending.callback(child.kill)
        try:
            output, errors = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"`{typed}` did not end within {timeout_s:.0f} s") from error
    if child.returncode not in accept:
        words = (errors.strip() or output.strip())[-1500:]
        raise DemoError(f"`{typed}` ended with status {child.returncode}:\n{words}")
    return output


def wait_for(what: str, is_true: Callable[[], bool], *, timeout_s: float) -> None:
    """Return as soon as `is_true`; raises DemoError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            raise DemoError(f"{what} did not happen within {timeout_s:.0f} s")
        time.sleep(_POLL_S)
