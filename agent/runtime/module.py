"""What a wasm file is before it runs: assembled from text, inspected, held against the tensor ABI.

Inspecting validates the whole file but compiles nothing, so it is cheap for any size of model.
"""

from wasmtime import Module, WasmtimeError, wat2wasm

from agent.runtime.binary import ModuleFacts, parse_declarations
from agent.runtime.engine import engine_for
from agent.runtime.errors import AbiError, CompileError, UndeclaredImportError, one_line, printable
from protocol.errors import MalformedError
from protocol.limits import DEFAULT_STACK_KIB
from protocol.wasm import sections

__all__ = ["ModuleFacts", "assemble", "check_abi", "check_is_wasm", "inspect"]

_SIGNATURES = {
    "memory": "memory",
    "fleet_input": "(i32) -> i32",
    "fleet_output": "(i32) -> i32",
    "fleet_infer": "() -> i32",
}
_OPTIONAL_SIGNATURES = {"fleet_reset": "() -> ()"}


def assemble(wat: str) -> bytes:
    """Return the wasm file that `wat` (WebAssembly text) spells; raises CompileError with line and column."""
    try:
        return bytes(wat2wasm(wat))
    except WasmtimeError as error:
        raise CompileError(f"not valid WebAssembly text: {error}") from error


def inspect(wasm: bytes) -> ModuleFacts:
    """Validate `wasm` and return what it declares; raises CompileError."""
    check_is_wasm(wasm)
    try:
        Module.validate(engine_for(DEFAULT_STACK_KIB).engine, wasm)
        return parse_declarations(wasm)
    except WasmtimeError as error:
        raise CompileError(f"not a valid wasm module: {one_line(str(error))}") from error


def check_is_wasm(wasm: bytes) -> None:
    """Raise CompileError unless `wasm` has the outer form of a wasm module."""
    try:
        for _ in sections(wasm):
            pass
    except MalformedError as error:
        raise CompileError(str(error)) from error


def check_abi(facts: ModuleFacts) -> None:
    """Raise AbiError or UndeclaredImportError unless the module can be a model."""
    if facts.imports:
        raise UndeclaredImportError(_import_reason(facts.imports))
    missing = [name for name in _SIGNATURES if name not in facts.exports]
    if missing:
        raise AbiError(
            f"expected a model to export {', '.join(_SIGNATURES)}; missing: {', '.join(missing)}. "
            f"It exports: {', '.join(printable(n) for n in list(facts.exports)[:10]) or 'nothing'}"
        )
    for name, expected in (_SIGNATURES | _OPTIONAL_SIGNATURES).items():
        got = facts.exports.get(name, expected)
        if got != expected:
            raise AbiError(f"export {name!r}: expected {expected}, got {got}")


def _import_reason(imports: tuple[str, ...]) -> str:
    names = ", ".join(printable(name) for name in imports[:5])
    more = f" and {len(imports) - 5} more" if len(imports) > 5 else ""
    message = f"expected a model without imports, got {names}{more}. "
    if any(name.startswith(("wasi_", "wasi:")) for name in imports):
        return message + (
            "A model gets no system calls (no files, clock, randomness or output): build it without WASI, "
            "for example for wasm32-unknown-unknown, as a library without main"
        )
    return message + "A model gets no host functions: link everything that it calls into the one module"
