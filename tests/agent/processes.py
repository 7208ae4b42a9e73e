"""Other processes as the kernel sees them: which there are below one, and a hand that kills them."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

COMPILER = "agent.runtime.compiler_process"


def children(parent: int, program: str = "") -> list[int]:
    """Return the children of a process, also those that nobody has waited for; of those that run `program` alone."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and program.encode() in path.with_name("cmdline").read_bytes():
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@contextlib.contextmanager
def killing(parent: int, program: str, times: int = 1_000) -> Iterator[list[int]]:
    """Kill the children of `parent` that run `program` as soon as they do, so many `times`; give who was killed."""
    killed: list[int] = []
    is_over = threading.Event()

    def kill() -> None:
        while len(killed) < times and not is_over.wait(0.005):
            for pid in set(children(parent, program)) - set(killed):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        is_over.set()
        killer.join()
