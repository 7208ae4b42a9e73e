"""The process that compiles one module: `python -m agent.runtime.compiler_process PARENT STACK_KIB MEMORY OUTPUT`.

Reads the module from standard input and writes machine code to OUTPUT. It is polite (low priority, first to die
when memory is short) and bounded (by MEMORY bytes): what a module makes the compiler do ends with this process, which
ends itself with PARENT, the one that started it. Exit status 0: done; DOES_NOT_COMPILE or DISK_FAILED: standard
output says why; any other: the compiler did not survive the module.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

from wasmtime import Module, WasmtimeError

from agent import durable
from agent.runtime.cache import DISK_FAILED, DOES_NOT_COMPILE
from agent.runtime.engine import engine_for
from agent.runtime.errors import one_line

_PR_SET_PDEATHSIG = 1
_NICENESS = 10
_PATIENCE_S = 1.0
"""How long to live on what nobody else wants: a device that is never idle gets its release soon all the same."""
_FIRST_TO_DIE = "1000"


def main(stack_kib: int, memory_bytes: int, output: Path) -> int:
    """Compile standard input to `output`; return the exit status."""
    Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_DIE)
    _limit_memory(memory_bytes)
    try:
        engine, wasm = engine_for(stack_kib).engine, sys.stdin.buffer.read()
        _give_way()  # not before: the idle hold the interpreter for long when no processor is
        code = Module(engine, wasm).serialize()
    except WasmtimeError as error:
        sys.stdout.write(one_line(str(error)))
        return DOES_NOT_COMPILE
    except MemoryError:
        sys.stdout.write(f"it takes more than {memory_bytes:,} bytes of memory to compile")
        return DOES_NOT_COMPILE
    try:
        with output.open("wb") as file:
            file.write(code)
            durable.sync(file)
    except OSError as error:
        sys.stdout.write(str(error))
        return DISK_FAILED
    return 0


def _end_with(parent: int) -> None:
    """Have Linux kill this process when the thread of `parent` that waits for it ends. Source: prctl(2)."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone")


def _give_way() -> None:
    """Run only where a processor would be idle, so that no inference waits for the compiler; nice after a while."""
    os.nice(_NICENESS)
    is_begun = threading.Event()
    threading.Thread(target=_idle_for_a_while, args=(is_begun,), daemon=True).start()
    is_begun.wait()


def _idle_for_a_while(is_begun: threading.Event) -> None:
    """Move the main thread, and what it starts, to the idle class and back; in a thread that is never idle itself.

    Where no processor ever is, an idle thread would wait for seconds for each look at the clock.
    """
    with contextlib.suppress(OSError):
        # Is there a way back? For a user without rights only where RLIMIT_NICE allows our niceness.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setscheduler(os.getpid(), os.SCHED_IDLE, os.sched_param(0))
        is_begun.set()
        time.sleep(_PATIENCE_S)
        _insist()
    is_begun.set()


def _insist() -> None:
    os.sched_setscheduler(os.getpid(), os.SCHED_OTHER, os.sched_param(0))  # first: the threads that it starts inherit
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


def _limit_memory(memory_bytes: int) -> None:
    """Let this process take `memory_bytes` more than it has, and leave no core file when it fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _end_with(int(sys.argv[1]))
    sys.exit(main(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
