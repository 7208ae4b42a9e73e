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


def held(parent: int) -> list[int]:
    """Return the processes for which another one holds a handle (a pidfd), and which nobody has waited for."""
    found = []
    for path in Path(f"/proc/{parent}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            pid = path.read_text().partition("\nPid:")[2].split("\n")[0]
            if pid and int(pid) > 0:
                found.append(int(pid))
    return found


def cpu_ticks(pid: int) -> int:
    """Return the processor time of a process in hundredths of a second; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


def kill(pid: int) -> None:
    """End a process by SIGKILL, unless it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def killing(parent: int, program: str, times: int = 1_000) -> Iterator[list[int]]:
    """Kill the children of `parent` that run `program` as soon as they do, so many `times`; give who was killed."""
    killed: list[int] = []
    is_over = threading.Event()

    def strike() -> None:
        while len(killed) < times and not is_over.wait(0.005):
            for pid in set(children(parent, program)) - set(killed):
                kill(pid)
                killed.append(pid)

    killer = threading.Thread(target=strike)
    killer.start()
    try:
        yield killed
    finally:
        is_over.set()
        killer.join()
