"""Compiled modules on the disk: compiled once in a process of its own, authenticated, then mapped.

An entry is machine code, and the engine does not notice most damage to it, so each has a MAC in a file beside it.
Its name says for what it was compiled: module, engine, settings, processor. What is missing, damaged or meant for
something else is compiled again, never loaded.
"""

import contextlib
import hashlib
import hmac
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from wasmtime import WasmtimeError

from agent import durable
from agent.runtime.capacity import cpu_features, runtime_name
from agent.runtime.compiled import Compiled
from agent.runtime.engine import settings
from agent.runtime.errors import CompileError, DeviceMemoryError, ProcessStartError, one_line
from protocol.limits import STACK_CLASSES_KIB

COMPILE_MEMORY_BYTES: Final = 1 << 30
COMPILE_TIMEOUT_S: Final = 600.0
MIN_KEY_BYTES: Final = 16
_CODE, _MAC, _DRAFT = ".cwasm", ".mac", ".draft"
DOES_NOT_COMPILE: Final = 3
DISK_FAILED: Final = 4
"""What the compiler process says by its exit status, with the reason on its standard output."""
_COMPILER: Final = "agent.runtime.compiler_process"
_MAC_DOMAIN: Final = b"wasmfleet compiled module v1"

_log = logging.getLogger(__name__)


class ModuleCache:
    """The compiled modules in one folder. Safe to use from many threads and processes."""

    def __init__(
        self,
        folder: Path,
        mac_key: bytes,
        *,
        compile_memory_bytes: int = COMPILE_MEMORY_BYTES,
        compile_timeout_s: float = COMPILE_TIMEOUT_S,
    ) -> None:
        if len(mac_key) < MIN_KEY_BYTES:
            raise ValueError(f"expected a key of at least {MIN_KEY_BYTES} bytes, got {len(mac_key)}")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._mac_key = mac_key
        self._compile_memory_bytes = compile_memory_bytes
        self._compile_timeout_s = compile_timeout_s

    def find(self, wasm: bytes, stack_kib: int) -> Compiled | None:
        """Return the compiled form of `wasm`, mapped, if there is a sound one."""
        path = self._path(wasm, stack_kib)
        with contextlib.ExitStack() as stack:
            try:
                expected = path.with_suffix(_MAC).read_bytes()
                code = stack.enter_context(path.open("rb"))
                if not hmac.compare_digest(expected, self._mac(path.name, code)):
                    _log.warning("a compiled module on the disk is damaged: it is compiled again")
                    return None
                compiled = Compiled.map(code, stack_kib)
            except FileNotFoundError:
                return None
            except (OSError, WasmtimeError) as error:
                _log.warning("a compiled module on the disk cannot be loaded, it is compiled again: %s", error)
                return None
            stack.pop_all()
            return compiled

    def add(self, wasm: bytes, stack_kib: int) -> Compiled:
        """Compile `wasm` in a process of its own and return it, mapped: from the disk, or from memory if that is full.

        Raises:
            CompileError: the module does not compile within the limits.
            DeviceMemoryError: the device has too little free memory to compile it now.
            ProcessStartError: the machine does not let us start the compiler.
        """
        path = self._path(wasm, stack_kib)
        try:
            with self._draft(path) as draft:
                self._compile(wasm, stack_kib, draft)
                with draft.open("rb") as file:
                    mac = self._mac(path.name, file)
                draft.rename(path)
            durable.replace(path.with_suffix(_MAC), mac)
        except OSError as error:
            _log.warning("a compiled module could not be kept: %s", error)
        return self.find(wasm, stack_kib) or self._compile_in_memory(wasm, stack_kib)

    def prune(self, keep: Collection[str]) -> None:
        """Remove what does not belong to a module with one of the SHA-256 digests `keep`, or to this engine."""
        wanted = {_stem(digest, stack_kib) for digest in keep for stack_kib in STACK_CLASSES_KIB}
        for path in self._folder.iterdir():
            if path.stem not in wanted or path.suffix == _DRAFT:
                path.unlink(missing_ok=True)

    def _path(self, wasm: bytes, stack_kib: int) -> Path:
        return self._folder / (_stem(hashlib.sha256(wasm).hexdigest(), stack_kib) + _CODE)

    def _mac(self, name: str, file: BinaryIO) -> bytes:
        mac = hmac.new(self._mac_key, _MAC_DOMAIN + name.encode() + b"\0", hashlib.sha256)
        while part := file.read(1 << 20):
            mac.update(part)
        return mac.digest()

    def _compile_in_memory(self, wasm: bytes, stack_kib: int) -> Compiled:
        """Compile for this start alone; not in this process, which a module could bring down."""
        with contextlib.ExitStack() as stack:
            code = stack.enter_context(os.fdopen(os.memfd_create("code"), "w+b"))
            try:
                self._compile(wasm, stack_kib, Path(f"/proc/self/fd/{code.fileno()}"), (code.fileno(),))
                compiled = Compiled.map(code, stack_kib)
            except OSError as error:
                raise ProcessStartError(f"cannot start the compiler: {error}") from error
            except WasmtimeError as error:
                raise CompileError(f"the compiled module cannot be mapped: {one_line(str(error))}") from error
            stack.pop_all()
        return compiled

    def _compile(self, wasm: bytes, stack_kib: int, output: Path, pass_fds: tuple[int, ...] = ()) -> None:
        """Compile in a process of its own; raises ModelError, or OSError when the machine does not let us."""
        numbers = map(str, (os.getpid(), stack_kib, self._compile_memory_bytes))
        command = (sys.executable, "-P", "-m", _COMPILER, *numbers, str(output))
        try:
            done = subprocess.run(  # noqa: S603 - our own module, with numbers and a path of our own
                command,
                input=wasm,
                capture_output=True,
                check=False,
                timeout=self._compile_timeout_s,
                pass_fds=pass_fds,
                # A compiler out of memory may hang while it prints where it was.
                env={**os.environ, "RUST_BACKTRACE": "0"},
            )
        except subprocess.TimeoutExpired:
            raise CompileError(f"expected a module that compiles within {self._compile_timeout_s:g} s") from None
        if done.returncode == -signal.SIGKILL:  # none of our limits ends it so: only the kernel does
            raise DeviceMemoryError(
                "expected enough free memory on the device to compile the module, the compiler was killed (signal 9). "
                "Free some memory on the device, then deploy the release again"
            )
        if done.returncode == DOES_NOT_COMPILE:
            raise CompileError(f"the module does not compile: {done.stdout.decode(errors='replace')}")
        if done.returncode == DISK_FAILED:
            raise OSError(done.stdout.decode(errors="replace"))
        if done.returncode:
            last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise CompileError(
                f"the compiler did not survive the module within {self._compile_memory_bytes:,} bytes of memory "
                f"(exit status {done.returncode}: {one_line(last_line)})"
            )

    @contextlib.contextmanager
    def _draft(self, path: Path) -> Iterator[Path]:
        """Give a file beside `path` to write to, and remove it unless it was renamed to its place."""
        handle, name = tempfile.mkstemp(prefix=path.stem, suffix=_DRAFT, dir=self._folder)
        os.close(handle)
        draft = Path(name)
        try:
            yield draft
        finally:
            draft.unlink(missing_ok=True)


def _stem(digest: str, stack_kib: int) -> str:
    """Return the name of an entry: what was compiled, and for what."""
    target = (runtime_name(), platform.machine(), cpu_features(), sorted(settings(stack_kib).items()))
    return f"{digest}-{hashlib.sha256(repr(target).encode()).hexdigest()[:32]}"
