"""The process that compiles one module: `python -m agent.runtime.compiler_process STACK_KIB MEMORY_BYTES OUTPUT`.

Reads the module from standard input and writes machine code to OUTPUT. It is polite (low priority, first to die
when memory is short) and bounded: what a module makes the compiler do ends with this process. Exit status 0: done;
DOES_NOT_COMPILE or DISK_FAILED: standard output says why; any other: the compiler did not survive the module.
"""

import os
import resource
import sys
from pathlib import Path

from wasmtime import Module, WasmtimeError

from agent import durable
from agent.runtime.cache import DISK_FAILED, DOES_NOT_COMPILE
from agent.runtime.engine import engine_for
from agent.runtime.errors import one_line

_NICENESS = 10
_FIRST_TO_DIE = "1000"


def main(stack_kib: int, memory_bytes: int, output: Path) -> int:
    """Compile standard input to `output`; return the exit status."""
    os.nice(_NICENESS)
    Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_DIE)
    _limit_memory(memory_bytes)
    try:
        code = Module(engine_for(stack_kib).engine, sys.stdin.buffer.read()).serialize()
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


def _limit_memory(memory_bytes: int) -> None:
    """Let this process take `memory_bytes` more than it has, and leave no core file when it fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
