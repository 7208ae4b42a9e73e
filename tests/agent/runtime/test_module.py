"""What a file declares, and whether it can be a model."""

from collections.abc import Callable

import pytest

from agent.runtime import assemble, check_abi, inspect
from agent.runtime.errors import AbiError, CompileError, UndeclaredImportError

Text = Callable[..., str]


def test_text_becomes_a_module() -> None:
    """The empty module is the header alone."""
    assert b"\0asm\x01\0\0\0" == assemble("(module)")


def test_wrong_text_is_refused_with_its_line() -> None:
    """The message points at the mistake."""
    with pytest.raises(CompileError, match=r"2:\d"):
        assemble("(module\n (func i32.bogus))")


def test_declarations_are_read(text: Text) -> None:
    """Exports carry their signatures, memory its bounds, imports their full names."""
    facts = inspect(assemble(text(memory="2 16")))
    assert () == facts.imports
    assert {
        "memory": "memory",
        "fleet_input": "(i32) -> i32",
        "fleet_output": "(i32) -> i32",
        "fleet_infer": "() -> i32",
    } == facts.exports
    assert (2 * 65536, 16 * 65536) == (facts.memory_min_bytes, facts.memory_max_bytes)
    check_abi(facts)


HEADER = b"\0asm\x01\0\0\0"


@pytest.mark.parametrize(
    ("section", "content"),
    [
        (1, b"\x01\x60\x01\x63\x70\x00"),  # a parameter `(ref null func)`
        (1, b"\x01\x60\x00\x01\x63\x6f"),  # a result `(ref null extern)`
        (1, b"\x01\x4f\x00\x60\x00\x00"),  # `(sub final (func))`
        (4, b"\x01\x63\x70\x00\x01"),  # a table of `(ref null func)`
        (2, b"\x01\x01a\x01b\x01\x63\x70\x00\x01"),  # an imported one
        (2, b"\x01\x01a\x01b\x03\x63\x70\x00"),  # a global of that type
        (2, b"\x01\x01a\x00\x7f\x01\x01b\x03\x7f\x00"),  # imports that share the name of their module
    ],
)
def test_longer_forms_are_refused_and_not_misread(section: int, content: bytes) -> None:
    """The engine takes them; whoever passed over them would believe signatures that are not the module's."""
    with pytest.raises(CompileError, match="expected a module of plain types and imports, got one with the code 0x"):
        inspect(HEADER + bytes((section, len(content))) + content)


def test_many_types_are_refused_before_they_are_read() -> None:
    """A file of a few megabytes could keep the device busy for long otherwise."""
    count = 100_001
    types = HEADER + b"\x01" + leb(3 + 3 * count) + leb(count) + b"\x60\x00\x00" * count
    with pytest.raises(CompileError, match=r"expected at most 100,000 types, .* got 100,001 of a kind"):
        inspect(types)


def test_many_parameters_are_counted_and_not_named() -> None:
    """A signature stays short; no model has such a one."""
    facts = inspect(assemble(f'(module (func (export "f") (param {"i32 " * 1000}) (result i32) unreachable))'))
    assert {"f": "(1000 values) -> i32"} == facts.exports


def leb(number: int) -> bytes:
    """Return an unsigned number as WebAssembly writes it."""
    if number < 0x80:
        return bytes((number,))
    return bytes((number & 0x7F | 0x80,)) + leb(number >> 7)


def test_every_kind_of_import_and_export_is_read() -> None:
    """Imports shift the indices of functions; exports of every kind have a name for it."""
    facts = inspect(
        assemble("""(module
          (import "a" "f" (func (param f64 i64) (result i32 v128)))
          (import "a" "t" (table 1 2 funcref))
          (import "a" "g" (global (mut i32)))
          (import "b" "m" (memory 3))
          (func (param f32))
          (table 1 funcref) (table 7 9 externref)
          (global i32 (i32.const 0))
          (export "first" (func 0)) (export "second" (func 1))
          (export "t" (table 1)) (export "g" (global 1)) (export "m" (memory 0)))""")
    )
    assert ("a.f", "a.t", "a.g", "b.m") == facts.imports
    assert {
        "first": "(f64, i64) -> (i32, v128)",
        "second": "(f32) -> ()",
        "t": "table",
        "g": "global",
        "m": "memory",
    } == facts.exports
    assert (3 * 65536, None, (1, 7)) == (facts.memory_min_bytes, facts.memory_max_bytes, facts.tables)


@pytest.mark.parametrize(
    ("wasm", "message"),
    [
        (b"", "not a wasm file"),
        (b"#!/bin/sh\n", "not a wasm file"),
        (b"(module)", "not a wasm file"),
        (b"\0asm\x0d\0\x01\0", "component"),
        (b"\0asm\x01\0\0\0\x01\x7f", "cut off"),
        (b"\0asm\x01\0\0\0\x01\x02\xff\xff", "not a valid wasm module"),
    ],
)
def test_what_is_no_module_is_refused(wasm: bytes, message: str) -> None:
    """The message says in what way the file is not a wasm module."""
    with pytest.raises(CompileError, match=message):
        inspect(wasm)


@pytest.mark.parametrize("name", ["memory", "fleet_input", "fleet_output", "fleet_infer"])
def test_each_missing_export_is_named(text: Text, name: str) -> None:
    """A module without the ABI is refused with what is missing."""
    facts = inspect(assemble(text().replace(f'(export "{name}")', "")))
    with pytest.raises(AbiError, match=f"missing: {name}\\."):
        check_abi(facts)


def test_wrong_signature_is_refused(text: Text) -> None:
    """An export of another type would be called with the wrong arguments."""
    facts = inspect(assemble(text().replace('"fleet_infer") (result i32)', '"fleet_infer") (param i32) (result i32)')))
    with pytest.raises(AbiError, match=r"expected \(\) -> i32, got \(i32\) -> i32"):
        check_abi(facts)


def test_function_named_memory_is_refused(text: Text) -> None:
    """The name of an export says nothing of its kind."""
    wat = text().replace('(export "memory")', "").replace("(func $run", '(func (export "memory"))(func $run')
    with pytest.raises(AbiError, match="'memory': expected memory"):
        check_abi(inspect(assemble(wat)))


def test_wasi_imports_are_refused_with_the_reason(text: Text) -> None:
    """Somebody who built for WASI learns how to build without it."""
    wat = text().replace("(memory", '(import "wasi_snapshot_preview1" "fd_write" (func))(memory', 1)
    with pytest.raises(UndeclaredImportError, match=r"wasi_snapshot_preview1\.fd_write.*without WASI"):
        check_abi(inspect(assemble(wat)))


def test_host_imports_are_refused(text: Text) -> None:
    """A model is given nothing to call."""
    wat = text().replace("(memory", '(import "env" "expf" (func (param f32) (result f32)))(memory', 1)
    with pytest.raises(UndeclaredImportError, match=r"env\.expf.*no host functions"):
        check_abi(inspect(assemble(wat)))
