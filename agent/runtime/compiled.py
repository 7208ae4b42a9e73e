"""Machine code: a module that this process can instantiate, and the file that another process can map."""

import os
from typing import BinaryIO

from wasmtime import Module, WasmtimeError

from agent.runtime.engine import engine_for
from agent.runtime.errors import CompileError, one_line


class Compiled:
    """A compiled module with its code in an open file, or in this process alone."""

    def __init__(self, module: Module, code: BinaryIO | None = None) -> None:
        self.module = module
        self._code = code

    @classmethod
    def compile(cls, wasm: bytes, stack_kib: int) -> "Compiled":
        """Compile in this process; raises CompileError."""
        try:
            return cls(Module(engine_for(stack_kib).engine, wasm))
        except WasmtimeError as error:
            raise CompileError(f"the module does not compile: {one_line(str(error))}") from error

    @classmethod
    def map(cls, code: BinaryIO, stack_kib: int) -> "Compiled":
        """Map authenticated machine code, and own the file; raises WasmtimeError when it is for another engine."""
        # By its descriptor, so that what is mapped is what was authenticated.
        return cls(Module.deserialize_file(engine_for(stack_kib).engine, f"/proc/self/fd/{code.fileno()}"), code)

    def code_fd(self) -> int:
        """Return a descriptor of the machine code, which stays ours."""
        if self._code is None:
            code = os.fdopen(os.memfd_create("code"), "w+b")
            code.write(self.module.serialize())
            code.flush()
            self._code = code
        return self._code.fileno()

    def close(self) -> None:
        """Give the code back. Closing twice does nothing."""
        self.module.close()
        if self._code is not None:
            self._code.close()
