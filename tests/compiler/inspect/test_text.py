"""Modules as text: what an assembler makes of it is the same module, and damage is an error."""

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.runtime.module import assemble
from compiler.inspect import inspect_module, module_text
from compiler.kernels.target import Target
from compiler.options import CompileOptions
from compiler.pipeline import CompiledModel, compile_model
from compiler.section import read_model_section
from compiler.wasm import Module, ValueType, f32, i32
from compiler.wasm.opcode import Immediate, Opcode
from compiler.wasm.opcodes import OPCODES
from protocol.errors import MalformedError, ProtocolError
from protocol.wasm import sections
from tests.compiler.execution import run_compiled
from tests.compiler.inspect.test_features import HEADER, section
from tests.compiler.onnx_models import ModelWriter, small_cnn

CODE = 10
IMMEDIATES = {
    Immediate.NONE: b"",
    Immediate.MEMORY: b"\0\x90\1",
    Immediate.LANE: b"\1",
    Immediate.MEMORY_LANE: b"\0\x90\1\1",
    Immediate.BYTES_16: bytes(range(16)),
    Immediate.I32: b"\x80\x7d",
    Immediate.I64: b"\x80\x80\x80\x7d",
    Immediate.F32: b"\xcd\xcc\xcc\x3d",
    Immediate.F64: b"\x9a\x99\x99\x99\x99\x99\xb9\x3f",
    Immediate.INDEX: b"\0",
    Immediate.INDEX_2: b"\0\0",
    Immediate.BLOCK: b"\x7b",
    Immediate.BRANCH_TABLE: b"\2\0\0\0",
    Immediate.HEAP_TYPE: b"\x70",
    Immediate.VALUE_TYPES: b"\1\x7f",
}
STRUCTURE = {"block": b"\x0b", "loop": b"\x0b", "if": b"\x0b"}
"""What else has to stand in the text, which knows no block without an end."""


def text(wasm: bytes) -> str:
    """Return the whole text of a module."""
    return "\n".join(module_text(wasm)) + "\n"


def by_kind(wasm: bytes) -> list[tuple[int, bytes]]:
    """Return the sections in an order that does not depend on that of custom ones."""
    return sorted(sections(wasm))


def one_function(body: bytes) -> bytes:
    """Return a module with a table, a memory and one function of this body."""
    entry = b"\0" + body + b"\x0b"
    return HEADER + b"".join(
        (
            section(1, b"\1\x60\0\0"),
            section(3, b"\1\0"),
            section(4, b"\1\x70\0\1"),
            section(5, b"\1\0\1"),
            section(CODE, b"\1" + bytes([len(entry)]) + entry),
        )
    )


@pytest.fixture(scope="module", params=list(Target), ids=lambda target: target.name.lower())
def compiled(request: pytest.FixtureRequest) -> CompiledModel:
    return compile_model(small_cnn(), CompileOptions(target=request.param))


def test_a_compiled_model_is_the_same_again(compiled: CompiledModel) -> None:
    """Every section is equal byte for byte: code, weights, names, and what the module says of itself."""
    again = assemble(text(compiled.wasm))
    assert dict(sections(compiled.wasm))[CODE] == dict(sections(again))[CODE]
    assert by_kind(compiled.wasm) == by_kind(again)
    assert compiled.spec == read_model_section(again)


def test_what_was_assembled_computes_the_same(compiled: CompiledModel) -> None:
    """The device runtime gets equal bits from both."""
    [tensor] = compiled.spec.inputs
    image = {tensor.name: np.random.default_rng(5).standard_normal(tensor.shape, np.float32)}
    again = msgspec.structs.replace(compiled, wasm=assemble(text(compiled.wasm)))
    for one, other in zip(run_compiled(compiled, image), run_compiled(again, image), strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_can_be_read(compiled: CompiledModel) -> None:
    """Layers have their names and their work; calls name them."""
    lines = [line.strip() for line in module_text(compiled.wasm)]
    at = next(number for number, line in enumerate(lines) if line.startswith("(func $Conv_4 "))
    assert ";; layer, 903,168 multiply-adds" == lines[at - 1]
    assert "call $Conv_4" in lines
    assert '(export "fleet_infer" (func $fleet_infer))' in lines


@pytest.mark.parametrize("opcode", OPCODES.values(), ids=lambda opcode: opcode.name)
def test_every_instruction(opcode: Opcode) -> None:
    """Each instruction of the table is spelled as assemblers know it."""
    if opcode.name == "end":
        body = b""
    elif opcode.name == "else":
        body = b"\x04\x40\x05\x0b"
    else:
        body = opcode.code + IMMEDIATES[opcode.immediate] + STRUCTURE.get(opcode.name, b"")
    wasm = one_function(body)
    assert dict(sections(wasm))[CODE] == dict(sections(assemble(text(wasm))))[CODE]


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=8, max_size=8))
@example(b"\0\0\xa0\x7f", b"\1\0\0\0\0\0\xf0\xff")
@example(b"\0\0\x80\xff", b"\0\0\0\0\0\0\0\x80")
@example(b"\1\0\0\0", b"\1\0\0\0\0\0\0\0")
def test_every_number_is_exact(single: bytes, double: bytes) -> None:
    """Whatever the bits are: infinities, NaNs of any payload, the smallest numbers."""
    wasm = one_function(b"\x43" + single + b"\x1a\x44" + double + b"\x1a")
    assert dict(sections(wasm))[CODE] == dict(sections(assemble(text(wasm))))[CODE]


@pytest.mark.parametrize("name", ["/model/layers.0/Conv", 'a "b" \\ (;c', "zwölf\n;;", "$x", "same"])
def test_every_name_is_kept(name: str) -> None:
    """Names are those of nodes, which may be anything; two functions may share one."""
    module = Module()
    first = module.function(name)
    first.drop(f32.const(1.5))
    caller = module.function("same", [ValueType.I32], export=name)
    caller.do(first())
    caller.leave(i32.const(-7))
    wasm = module.encode()
    assert by_kind(wasm) == by_kind(assemble(text(wasm)))


def test_a_profiling_table_and_globals_are_kept() -> None:
    """A table with its functions, calls through it, globals, a start function."""
    module = Module()
    module.memory(1, None)
    count = module.global_i32(3, export="count")
    work = module.function("work")
    work.do(count.set(count + i32.const(1)))
    module.slot(work)
    start = module.function("start")
    with start.block() as outside, start.loop() as again:
        start.branch_table(count, [again, outside], outside)
    start.do(module.call_slot(i32.const(0), work))
    module.start(start)
    wasm = module.encode()
    assert by_kind(wasm) == by_kind(assemble(text(wasm)))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('(module (import "a" "b" (func)))', "cannot be shown as text"),
        ("(module (table 1 funcref) (elem func))", "got one of kind 1"),
    ],
)
def test_what_the_compiler_does_not_write_is_refused(source: str, said: str) -> None:
    """The message says what it is."""
    with pytest.raises(MalformedError, match=said):
        text(assemble(source))


def _small() -> bytes:
    w = ModelWriter()
    return compile_model(w.model(w.node("Relu", w.input("x", [3]))), CompileOptions()).wasm


SMALL = _small()


@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255))
def test_a_damaged_module_is_an_error_or_another_module(at: int, byte: int) -> None:
    """Nothing but ProtocolError comes out, whatever byte is wrong."""
    with contextlib.suppress(ProtocolError):
        text(SMALL[:at] + bytes([byte]) + SMALL[at + 1 :])


def test_a_function_with_too_many_locals_is_refused() -> None:
    """A few bytes cannot ask for gigabytes of text."""
    entry = b"\1\xff\xff\xff\xff\x0f\x7f\x0b"
    wasm = HEADER + section(1, b"\1\x60\0\0") + section(3, b"\1\0") + section(CODE, b"\1" + bytes([len(entry)]) + entry)
    with pytest.raises(ProtocolError, match="locals"):
        text(wasm)
    assert 1 == len(inspect_module(wasm).functions)
