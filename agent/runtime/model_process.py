"""The inside of a process that runs one model: the caps of the engine, and around them those of the kernel.

It serves one command at a time: infer, reset, check addresses. Tensors are in memory shared with the agent. It ends
when the agent closes the socket, and after any error that leaves its instance unsound. What else went wrong in it, it
tells the agent, which has a log and bounds for it.
"""

import contextlib
import mmap
import resource
import socket
import traceback
from pathlib import Path
from typing import Final

from wasmtime import Module, WasmtimeError

from agent.runtime.engine import engine_for
from agent.runtime.errors import CompileError, InputError, ModelError, ProcessDiedError, StatusError, one_line
from agent.runtime.sandbox import Terms, ThreadSandbox
from agent.runtime.wire import CHECK, INFER, RESET, Done, Ready, decode_terms, describe, encode, layout

_OWN_BYTES: Final = 64 * 1024 * 1024
"""What the process may take besides the model's memory: stacks of the clock's threads, the engine's tables."""
_MAX_DESCRIPTORS: Final = 32
_SOON_TO_DIE: Final = "500"
_MAX_FRAMES: Final = 6


def run(raw_terms: bytes, channel_fd: int, memory_fd: int, code_fd: int) -> None:
    """Serve the model until the agent has no more use for this process."""
    with socket.socket(fileno=channel_fd) as channel:
        try:
            _run(raw_terms, channel, memory_fd, code_fd)
        except Exception as error:
            with contextlib.suppress(OSError):  # the agent has closed the model, or is gone
                channel.send(encode(describe(_defect(error), 0)))
            raise


def _defect(error: Exception) -> ProcessDiedError:
    """Return what ended this process, and where. The words of `error` may quote what came: they are left out."""
    codes = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)][-_MAX_FRAMES:]
    place = " < ".join(f"{code.co_name} ({Path(code.co_filename).name}:{line})" for code, line in reversed(codes))
    return ProcessDiedError(f"the model's process ended by a defect: {type(error).__name__} in {place}")


def _run(raw_terms: bytes, channel: socket.socket, memory_fd: int, code_fd: int) -> None:
    terms = decode_terms(raw_terms)
    _limit(terms.caps.memory_bytes)
    memory = mmap.mmap(memory_fd, 0)  # not to be closed: an error holds views of it; it goes with the process
    try:
        sandbox = ThreadSandbox(_map_module(code_fd, terms.caps.stack_kib), terms)
    except ModelError as error:
        channel.send(encode(describe(error, 0)))
        return
    channel.send(encode(Ready(memory_bytes=sandbox.memory_bytes, can_reset=sandbox.can_reset)))
    _serve(sandbox, terms, channel, memoryview(memory))


def _serve(sandbox: ThreadSandbox, terms: Terms, channel: socket.socket, memory: memoryview) -> None:
    inputs, outputs = ([memory[part] for part in parts] for parts in layout(terms))
    while command := channel.recv(1):
        try:
            if command == INFER:
                for view, data in zip(outputs, sandbox.infer(inputs), strict=True):
                    view[:] = data
            elif command == RESET:
                sandbox.reset()
            elif command == CHECK:
                sandbox.check_addresses()
        except ModelError as error:
            channel.send(encode(describe(error, sandbox.memory_bytes)))
            if not isinstance(error, (InputError, StatusError)):
                return
        else:
            channel.send(encode(Done(memory_bytes=sandbox.memory_bytes)))


def _map_module(code_fd: int, stack_kib: int) -> Module:
    try:
        return Module.deserialize_file(engine_for(stack_kib).engine, f"/proc/self/fd/{code_fd}")
    except WasmtimeError as error:
        raise CompileError(f"the compiled module cannot be mapped: {one_line(str(error))}") from None


def _limit(memory_bytes: int) -> None:
    """Bound what this process can take from the machine, whatever the module does to the engine."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    data_bytes = pages * resource.getpagesize() + memory_bytes + _OWN_BYTES
    for kind, limit in (
        (resource.RLIMIT_DATA, data_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _MAX_DESCRIPTORS),
    ):
        resource.setrlimit(kind, (limit, limit))
    Path("/proc/self/oom_score_adj").write_text(_SOON_TO_DIE)
