"""The report on a module agrees with the engine, and damage is an error and nothing else."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.runtime.module import assemble, inspect
from compiler.inspect import CustomSection, DataSegment, Import, MemoryReport, inspect_module
from compiler.section import with_model_section
from compiler.wasm import leb
from protocol.errors import MalformedError, ProtocolError
from protocol.tensors import ModelSpec, TensorSpec
from protocol.wasm import CORE_VERSION, MAGIC

HEADER = MAGIC + CORE_VERSION
TEXT = """
(module
  (import "env" "log" (func $log (param i32 f64)))
  (import "env" "limit" (global i32))
  (import "env" "calls" (table 1 funcref))
  (memory (export "memory") 2 5)
  (func $first (export "one") (param i32) (result i32 v128) unreachable)
  (func (export "two"))
  (func $third (drop (f32x4.splat (f32.const 1))))
  (data (i32.const -65536) "abc")
  (data (global.get 0) "de")
  (data "fghi"))
"""
WASM = assemble(TEXT)
ONES = TensorSpec(name="x", datatype="FP32", shape=(1,))
LINEAR = Path(__file__).parents[3] / "examples" / "linear_regression" / "model.wat"


def section(number: int, payload: bytes) -> bytes:
    """Return one section."""
    return bytes([number]) + leb.unsigned(len(payload)) + payload


def test_everything_is_found() -> None:
    """Imports, exports, memory, names, code, data, features."""
    report = inspect_module(WASM)
    assert len(WASM) == report.size_bytes
    assert Import(module="env", name="log", kind="function", signature="(i32, f64) -> ()") == report.imports[0]
    assert ["function", "global", "table"] == [i.kind for i in report.imports]
    assert {"memory": None, "one": "(i32) -> (i32, v128)", "two": "() -> ()"} == {
        e.name: e.signature for e in report.exports
    }
    assert (MemoryReport(min_bytes=2 * 65536, max_bytes=5 * 65536),) == report.memories
    assert [(1, "first"), (2, "two"), (3, "third")] == [(f.index, f.name) for f in report.functions]
    assert (
        DataSegment(address=0xFFFF0000, size_bytes=3),
        DataSegment(address=None, size_bytes=2),
        DataSegment(address=None, size_bytes=4),
    ) == report.data
    assert (9, ("simd128",)) == (report.data_bytes, report.required_features)
    assert sum(f.code_bytes for f in report.functions) == report.code_bytes > 0
    assert report.spec is None


def test_it_agrees_with_the_engine() -> None:
    """Both read the same declarations out of the same bytes."""
    for wasm in (WASM, assemble(LINEAR.read_text())):
        report, facts = inspect_module(wasm), inspect(wasm)
        assert facts.imports == tuple(f"{i.module}.{i.name}" for i in report.imports)
        assert facts.exports == {e.name: e.signature or e.kind for e in report.exports}
        assert (facts.memory_min_bytes, facts.memory_max_bytes) == (
            report.memories[0].min_bytes,
            report.memories[0].max_bytes,
        )


def test_the_model_section_is_read() -> None:
    """What the module says of itself is in the report, and its size among the custom sections."""
    spec = ModelSpec(name="m", inputs=(ONES,), outputs=(ONES,))
    report = inspect_module(with_model_section(WASM, spec))
    assert spec == report.spec
    assert CustomSection(name="fleet.model", size_bytes=len(spec.to_bytes())) == report.custom_sections[-1]


def test_damaged_names_are_ignored() -> None:
    """As an engine ignores them: the module is as valid as without."""
    names = section(0, b"\4name\1\x7f\1")
    assert [None, None] == [f.name for f in inspect_module(assemble("(module (func) (func))") + names).functions]


def test_a_long_signature_is_cut_short() -> None:
    """A type of a thousand parameters is shown once for each function; the report stays small."""
    text = f"(module (type $t (func (param {'i64 ' * 1000}))) {'(func (type $t))' * 500})"
    report = inspect_module(assemble(text))
    assert report.functions[0].signature.endswith("… 1000 in all) -> ()")
    assert max(len(f.signature) for f in report.functions) < 150


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (b"", "not a wasm file"),
        (HEADER + section(1, b"\1\x60\0"), "cut off"),
        (HEADER + section(1, b"\1\x60\0\1\x6b"), "value type 0x6b"),
        (HEADER + section(1, b"\1\x60\0\0\0"), "1 bytes are left over"),
        (HEADER + section(3, b"\1\0"), "type 0 that does not exist"),
        (HEADER + section(5, b"\1\4\1"), "64-bit"),
        (HEADER + section(7, b"\1\1a\0\5"), "function 5 that does not exist"),
        (HEADER + section(7, b"\1\1a\7\5"), "unknown kind"),
        (HEADER + section(7, b"\1\2\xff\xff\0\0"), "not UTF-8"),
        (HEADER + section(7, b"\1\x7fa"), "too early"),
        (HEADER + section(10, b"\1\2\0\x0b"), "another number of functions"),
        (HEADER + section(11, b"\1\0\x42\0\x0b\0"), "constant"),
        (HEADER + section(11, b"\1\0\x41\0\0\0"), "nothing behind"),
        (HEADER + section(11, b"\1\7"), "unknown kind, 7"),
        (HEADER + section(0, b"\5ab"), "too early"),
    ],
)
def test_damage_is_named(module: bytes, message: str) -> None:
    """Every way of being broken has a message with its place."""
    with pytest.raises(MalformedError, match=message):
        inspect_module(module)


@pytest.mark.property
@given(st.data())
def test_any_damage(data: st.DataObject) -> None:
    """With a byte changed or the end cut off there is a report or a ProtocolError."""
    module = bytearray(WASM)
    module[data.draw(st.integers(0, len(module) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        inspect_module(bytes(module[: data.draw(st.integers(0, len(module)))]))


@pytest.mark.property
@given(st.lists(st.tuples(st.integers(0, 12), st.binary(max_size=40)), max_size=4))
def test_rubbish(parts: list[tuple[int, bytes]]) -> None:
    """Random sections give a report or a ProtocolError."""
    with contextlib.suppress(ProtocolError):
        inspect_module(HEADER + b"".join(section(number, payload) for number, payload in parts))
